"""Where a GPU is at hand: Flux.1 at full width with random weights, an adapter on a bf16 and on an 8-bit base, beside a bare loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.bench.gpu_device import Subject, Work, add_row, attempt, matmul_peak
from tests.bench.table import NOT_MEASURED, Table
from trainer_engine.adapters.build import make_trainable
from trainer_engine.batches.batch import Batch
from trainer_engine.batches.loader import StepBatches
from trainer_engine.config.families import find_spec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import parse_options
from trainer_engine.families.common.latent_squares import pack, positions
from trainer_engine.families.flux.family import Flux
from trainer_engine.loop.step import Step
from trainer_engine.objectives.build import make_objective
from trainer_engine.optim.lr_schedules import Schedule
from trainer_engine.optim.optimizers import build_optimizer
from trainer_engine.optim.updates import make_update
from trainer_engine.runtime.devices import resolve_devices
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.environment import read_environment

SECTION = "Flux.1 at full width, LoRA of rank 16, 1024 px"
KONTEXT_LIMIT_GIB = 24
SCHEDULER: Mapping[str, Any] = MappingProxyType({"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True})
FLUX: Mapping[str, Any] = MappingProxyType(
    {
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    }
)
BYTES_A_WEIGHT = 2
SHARE_FOR_WEIGHTS = 0.5
"""Of the device's memory: activations, the adapter's states and the bare loop's own network need the rest in turn."""


@dataclass(frozen=True)
class Case:
    """One row."""

    precision: str
    """Of the frozen base: ``no_change`` for bf16, or one of optimum-quanto's."""
    compiled: bool
    flavour: str = "dev"
    checkpointing: bool = True
    clip: str = "value"
    memory: Mapping[str, Any] = field(default_factory=dict)
    """Options that save memory."""

    @property
    def words(self) -> str:
        base = "bf16" if self.precision == "no_change" else self.precision
        kind = "Kontext with one reference" if self.flavour == "kontext" else "dev"
        return f"{kind}, {base} base, {'compiled' if self.compiled else 'eager'}"


CASES = (
    Case("no_change", compiled=False),
    Case("no_change", compiled=True),
    Case("int8-quanto", compiled=False),
    Case("int8-quanto", compiled=True),
    Case("int8-quanto", compiled=False, flavour="kontext"),
)


def parameters_of(architecture: Mapping[str, Any]) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in FluxTransformer2DModel(**architecture).parameters())


def that_fits(architecture: Mapping[str, Any], memory: float) -> Mapping[str, Any]:
    """The architecture with as many blocks of both kinds, in their proportion, as a device of ``memory`` bytes takes."""
    blocks = int(architecture["num_layers"])
    each = int(architecture["num_single_layers"]) // blocks
    for number in range(blocks, 1, -1):
        smaller = {**architecture, "num_layers": number, "num_single_layers": each * number}
        if parameters_of(smaller) * BYTES_A_WEIGHT <= memory * SHARE_FOR_WEIGHTS:
            return smaller
    return {**architecture, "num_layers": 1, "num_single_layers": each}


class RandomFlux(Flux):
    """The family with a network of random weights in place of the hub's: what it computes is the same work."""

    architecture: Mapping[str, Any] = FLUX

    def load_component(self, name: str, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        with torch.random.fork_rng(), self.devices.device:
            torch.manual_seed(0)
            before = torch.get_default_dtype()
            torch.set_default_dtype(dtype)  # float32 first would need twice the memory
            try:
                return FluxTransformer2DModel(**self.architecture)
            finally:
                torch.set_default_dtype(before)

    def scheduler_config(self) -> Mapping[str, Any]:
        return SCHEDULER


def options_for(case: Case) -> TrainingOptions:
    return parse_options(
        {
            "model_family": "flux",
            "model_flavour": case.flavour,
            "model_type": "lora",
            "lora_rank": 16,
            "data_backend_config": "none.json",
            "output_dir": "none",
            "max_train_steps": 1000,
            "train_batch_size": 1,
            "gradient_checkpointing": case.checkpointing,
            "dynamo_backend": "inductor" if case.compiled else "no",
            "base_model_precision": case.precision,
            "optimizer": "adamw_bf16",
            "mixed_precision": "bf16",
            "learning_rate": 1e-5,
            "max_grad_norm": 2.0,
            "grad_clip_method": case.clip,
            **case.memory,
        }
    )


def make_family(subject: Subject, case: Case) -> RandomFlux:
    options = options_for(case)
    family = RandomFlux(options, resolve_devices(options, subject.device))
    family.architecture = subject.architecture
    return family


def make_batch(subject: Subject, case: Case, seed: int) -> Batch:
    """One image, as the engine's loader hands it over; a reference of the same size for Kontext."""
    dice = torch.Generator().manual_seed(seed)
    shape = (1, 16, subject.latent_edge, subject.latent_edge)
    prompts = {
        "embeds": torch.randn(1, subject.tokens, subject.architecture["joint_attention_dim"], generator=dice).bfloat16(),
        "pooled": torch.randn(1, subject.architecture["pooled_projection_dim"], generator=dice).bfloat16(),
        "mask": torch.ones(1, subject.tokens, dtype=torch.int64),
    }
    references = (torch.randn(shape, generator=dice),) if case.flavour == "kontext" else ()
    latents, noise, sigmas = torch.randn(shape, generator=dice), torch.randn(shape, generator=dice), torch.rand(1, generator=dice)
    batch = Batch(latents=latents, noise=noise, timesteps=sigmas, prompts=prompts, files=("random",), references=references)
    return batch.pinned() if subject.device.type == "cuda" else batch


def engine_steps(subject: Subject, case: Case) -> tuple[Work, nn.Module]:
    """The engine's own step, and the network with its adapter."""
    family = make_family(subject, case)
    trainable = make_trainable(family, None)
    options = family.options
    step = Step(
        family=family,
        objective=make_objective("flow_matching", SCHEDULER, options.objective),
        devices=family.devices,
        processes=Processes(read_environment()),
        network=torch.compile(trainable.network, backend="inductor") if case.compiled else trainable.network,
        update=make_update(options.optimizer, [trainable.parameters], family.devices.device),
        schedules=(Schedule(options.schedule, options.optimizer.learning_rate, options.run.max_train_steps),),
        seed=options.run.seed,
        scaler=torch.amp.GradScaler(subject.device.type, enabled=False),
    )
    batches = [make_batch(subject, case, seed) for seed in range(2)]
    numbers = count()

    def steps(how_many: int) -> None:
        for _ in range(how_many):
            number = next(numbers)
            step.take(StepBatches(number, 0, (batches[number % 2],), 1))

    return steps, trainable.network


def forward_over(network: nn.Module, batch: Batch, call: Callable[..., Any]) -> Callable[[], Tensor]:
    """The loss of a batch that lies on the device, by the network alone."""
    device, dtype = batch.latents.device, torch.bfloat16
    height, width = batch.latents.shape[-2:]
    own = height * width // 4
    images = [batch.latents, *batch.references]
    places = torch.cat([positions(*image.shape[-2:], index) for index, image in enumerate(images)]).to(device, dtype)
    references = [pack(image).to(dtype) for image in batch.references]
    text = torch.zeros(batch.prompts["embeds"].shape[1], 3, device=device, dtype=dtype)

    def forward() -> Tensor:
        sigma = batch.timesteps.view(-1, 1, 1, 1)
        noisy = pack((1 - sigma) * batch.latents + sigma * batch.noise).to(dtype)
        with torch.autocast(device.type, dtype):
            output = call(
                hidden_states=torch.cat([noisy, *references], dim=1),
                timestep=batch.timesteps,
                guidance=torch.ones(1, device=device),
                pooled_projections=batch.prompts["pooled"].to(dtype),
                encoder_hidden_states=batch.prompts["embeds"].to(dtype),
                txt_ids=text,
                img_ids=places,
                return_dict=False,
            )[0]
        return (output[:, :own].float() - pack(batch.noise - batch.latents)).square().mean()

    return forward


CLIPS: Mapping[str, Callable[[list[nn.Parameter], float], object]] = MappingProxyType(
    {"value": torch.nn.utils.clip_grad_value_, "norm": torch.nn.utils.clip_grad_norm_}
)


def bare_steps(subject: Subject, case: Case, network: nn.Module) -> Work:
    """Forward, backward, clip, optimizer over the same modules: nothing is loaded, seeded, checked or reported."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(options_for(case).optimizer, parameters)
    call = torch.compile(network, backend="inductor") if case.compiled else network
    forward = forward_over(network, make_batch(subject, case, 0).to(subject.device), call)

    def steps(how_many: int) -> None:
        for _ in range(how_many):
            forward().backward()
            CLIPS[case.clip](parameters, 2.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


def flops_of_a_step(subject: Subject, case: Case) -> int:
    """Multiplications and additions of one forward and backward pass, without recomputation, counted on the meta device.

    The base learns nothing, so its weights need no gradients: forward and the gradient of the activations.
    """
    with torch.device("meta"):
        network = FluxTransformer2DModel(**subject.architecture).requires_grad_(False)
        batch = make_batch(
            Subject(
                device=torch.device("cpu"),
                architecture=subject.architecture,
                latent_edge=subject.latent_edge,
                tokens=subject.tokens,
                steps=1,
                rounds=1,
            ),
            case,
            0,
        )
    batch = batch.to(torch.device("meta"))
    own = subject.latent_edge**2 // 4 * (1 + len(batch.references))
    tokens = torch.empty(1, own, subject.architecture["in_channels"], device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        network(
            hidden_states=tokens,
            timestep=batch.timesteps,
            guidance=torch.ones(1, device="meta"),
            pooled_projections=batch.prompts["pooled"].float(),
            encoder_hidden_states=batch.prompts["embeds"].float(),
            txt_ids=torch.empty(subject.tokens, 3, device="meta"),
            img_ids=torch.empty(own, 3, device="meta"),
            return_dict=False,
        )[0].sum().backward()
    return int(counter.get_total_flops())


def compare(table: Table, subject: Subject, case: Case, peak: float) -> None:
    """One row: the engine's step, then the bare loop over the very same modules, in turn."""
    subject.reset_peak()
    engine, network = engine_steps(subject, case)
    within = case.flavour == "kontext" and case.precision == "int8-quanto"
    add_row(
        table,
        SECTION,
        case.words,
        subject,
        engine=engine,
        make_bare=lambda: bare_steps(subject, case, network),
        flops=flops_of_a_step(subject, case),
        peak=peak,
        aim=f"within {KONTEXT_LIMIT_GIB} GiB" if within else "",
    )


def measure(table: Table, subject: Subject, cases: Sequence[Case]) -> None:
    """What is measured, then a row a case."""
    architecture = subject.architecture
    blocks = f"{architecture['num_layers']} double and {architecture['num_single_layers']} single blocks"
    table.add(SECTION, "network", f"{parameters_of(architecture) / 1e9:.2f} billion parameters, {blocks}")
    peak = matmul_peak(subject)
    for case in cases:
        attempt(table, SECTION, case.words, partial(compare, table, subject, case, peak))


def run(table: Table) -> None:
    """Rows for both bases, eager and compiled, and Kontext; one row that says so where there is no GPU."""
    if not torch.cuda.is_available():
        table.add(SECTION, "needs a GPU", NOT_MEASURED)
        return
    spec = find_spec("flux")
    assert spec is not None
    subject = Subject(
        device=torch.device("cuda"),
        architecture=that_fits(FLUX, torch.cuda.mem_get_info()[0]),
        latent_edge=128,
        tokens=spec.prompts.token_limit,
        steps=4,
        rounds=5,
    )
    measure(table, subject, CASES)


if __name__ == "__main__":
    run(Table())
