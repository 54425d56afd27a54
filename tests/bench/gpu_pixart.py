"""PixArt Sigma 900M's real architecture with random weights on a GPU, the engine's step beside a bare loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Any

import torch
from diffusers import DDPMScheduler, PixArtTransformer2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.bench.gpu_device import ENDLESS, Subject, TimeLimit, Work, add_row, attempt, matmul_peak
from tests.bench.table import Table
from trainer_engine.batches.batch import Batch
from trainer_engine.batches.loader import StepBatches
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import parse_options
from trainer_engine.families.load import load_family
from trainer_engine.loop.step import Step
from trainer_engine.objectives.build import make_objective
from trainer_engine.optim.lr_schedules import Schedule
from trainer_engine.optim.optimizers import build_optimizer
from trainer_engine.optim.updates import make_update
from trainer_engine.runtime.devices import resolve_devices
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.environment import read_environment

PIXART_900M: Mapping[str, Any] = MappingProxyType(
    {
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 42,
        "cross_attention_dim": 1152,
        "sample_size": 128,
        "patch_size": 2,
        "caption_channels": 4096,
        "use_additional_conditions": False,
    }
)
SECTION = "PixArt 900M at 1024 px"


@dataclass(frozen=True)
class Case:
    """One row."""

    batch_size: int
    checkpointing: bool = False
    compiled: bool = False

    @property
    def words(self) -> str:
        checkpointing = ", gradient checkpointing" if self.checkpointing else ""
        return f"batch {self.batch_size}{checkpointing}, {'compiled' if self.compiled else 'eager'}"


CASES = (Case(4), Case(4, checkpointing=True), Case(4, compiled=True), Case(8, checkpointing=True, compiled=True))
NOISE: dict[str, Any] = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def options_for(*, batch_size: int, checkpointing: bool, backend: str, clip: str = "value") -> TrainingOptions:
    return parse_options(
        {
            "model_family": "pixart_sigma",
            "model_type": "full",
            "data_backend_config": "none.json",
            "output_dir": "none",
            "max_train_steps": 1000,
            "train_batch_size": batch_size,
            "gradient_checkpointing": checkpointing,
            "dynamo_backend": backend,
            "optimizer": "adamw_bf16",
            "mixed_precision": "bf16",
            "learning_rate": 1e-5,
            "max_grad_norm": 0.01,
            "grad_clip_method": clip,
        }
    )


def make_batch(subject: Subject, size: int, seed: int) -> Batch:
    """One batch as the engine's loader hands it over."""
    dice = torch.Generator().manual_seed(seed)
    shape = (size, 4, subject.latent_edge, subject.latent_edge)
    width = subject.architecture["caption_channels"]
    prompts = {"embeds": torch.randn(size, subject.tokens, width, generator=dice).bfloat16()}
    prompts["mask"] = torch.ones(size, subject.tokens, dtype=torch.int64)
    latents, noise = torch.randn(shape, generator=dice), torch.randn(shape, generator=dice)
    timesteps = torch.randint(0, 1000, (size,), generator=dice)
    batch = Batch(latents=latents, noise=noise, timesteps=timesteps, prompts=prompts, files=("random",) * size)
    return batch.pinned() if subject.device.type == "cuda" else batch


def make_network(subject: Subject, checkpointing: bool) -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    with subject.device:
        network = PixArtTransformer2DModel(**subject.architecture).bfloat16().train()
    if checkpointing:
        network.enable_gradient_checkpointing()
    return network


def engine_step(subject: Subject, network: nn.Module, options: TrainingOptions) -> Step:
    devices = resolve_devices(options, subject.device)
    compiled = torch.compile(network, backend="inductor") if options.distributed.dynamo_backend == "inductor" else network
    return Step(
        family=load_family(options, devices),
        objective=make_objective("epsilon", NOISE, options.objective),
        devices=devices,
        processes=Processes(read_environment()),
        network=compiled,
        update=make_update(options.optimizer, [list(network.parameters())], subject.device),
        schedules=(Schedule(options.schedule, options.optimizer.learning_rate, options.run.max_train_steps),),
        seed=options.run.seed,
        scaler=torch.amp.GradScaler(subject.device.type, enabled=False),
    )


def bare_loop(
    network: PixArtTransformer2DModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    compiled: bool,
    clip: Callable[[list[nn.Parameter], float], object] = torch.nn.utils.clip_grad_value_,
) -> Work:
    """The same arithmetic over tensors on the device: nothing is loaded, seeded, checked or reported."""
    call = torch.compile(network, backend="inductor") if compiled else network
    alphas = DDPMScheduler.from_config(NOISE).alphas_cumprod.to(network.device)
    on_card = batch.to(network.device)
    embeds, mask = on_card.prompts["embeds"].bfloat16(), on_card.prompts["mask"]
    parameters = list(network.parameters())

    def forward() -> Tensor:
        alpha = alphas[on_card.timesteps].view(-1, 1, 1, 1)
        noisy = (alpha.sqrt() * on_card.latents + (1 - alpha).sqrt() * on_card.noise).bfloat16()
        output = call(
            noisy,
            encoder_hidden_states=embeds,
            encoder_attention_mask=mask,
            timestep=on_card.timesteps,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return (output.chunk(2, dim=1)[0].float() - on_card.noise).square().mean()

    def steps(number: int) -> None:
        for _ in range(number):
            forward().backward()
            clip(parameters, 0.01)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


def flops_of_a_step(network: PixArtTransformer2DModel, batch: Batch) -> int:
    """Multiplications and additions of one forward and backward pass, counted, without recomputation."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    work = bare_loop(network, optimizer, batch, compiled=False)
    with FlopCounterMode(display=False) as counter:
        work(1)
    return int(counter.get_total_flops())


def compare(table: Table, subject: Subject, case: Case, *, flops: int, peak: float) -> None:
    """One row, over networks of their own."""
    options = options_for(batch_size=case.batch_size, checkpointing=case.checkpointing, backend="inductor" if case.compiled else "no")
    batches = [make_batch(subject, case.batch_size, seed) for seed in range(2)]
    step = engine_step(subject, make_network(subject, case.checkpointing), options)
    numbers = count()

    def engine(steps: int) -> None:
        for _ in range(steps):
            number = next(numbers)
            step.take(StepBatches(number, 0, (batches[number % 2],), case.batch_size))

    def make_bare() -> Work:
        network = make_network(subject, case.checkpointing)
        return bare_loop(network, build_optimizer(options.optimizer, network.parameters()), batches[0], case.compiled)

    subject.reset_peak()
    add_row(table, SECTION, case.words, subject, engine=engine, make_bare=make_bare, flops=flops, peak=peak)


def measure(table: Table, subject: Subject, cases: Sequence[Case], limit: TimeLimit = ENDLESS) -> None:
    """How large the network is, then a row for each case."""
    network = make_network(subject, checkpointing=False)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    table.add(SECTION, "parameters", f"{parameters / 1e6:.1f} M")
    sample_flops = flops_of_a_step(network, make_batch(subject, 1, 0))
    del network
    peak = matmul_peak(subject)
    for case in cases:
        flops = case.batch_size * sample_flops
        attempt(table, SECTION, case.words, partial(compare, table, subject, case, flops=flops, peak=peak), limit)


def run(table: Table, limit: TimeLimit = ENDLESS) -> None:
    """Rows for eager and compiled, with and without gradient checkpointing."""
    measure(
        table, Subject(device=torch.device("cuda"), architecture=PIXART_900M, latent_edge=128, tokens=300, steps=4, rounds=5), CASES, limit
    )
