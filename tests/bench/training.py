"""Training: steps a second of the engine, with everything around them, beside bare loops in the same process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, PixArtTransformer2DModel, UNet2DConditionModel
from torch import nn

from tests.bench.table import Table, ratio_of
from tests.helpers.pictures import generate_images
from tests.trainer_engine.families.sdxl.network import NETWORK as SDXL
from trainer_engine.batches.batch import Batch
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.run import RunFolder
from trainer_engine.families.pixart_sigma import tiny as tiny_pixart
from trainer_engine.families.sdxl import tiny as tiny_sdxl
from trainer_engine.loop.assemble import assemble
from trainer_engine.loop.callbacks.base import Callback, Callbacks
from trainer_engine.loop.callbacks.results import ResultsCallback
from trainer_engine.loop.context import RunContext
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.loop.trainer import Trainer
from trainer_engine.optim.optimizers import build_optimizer
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.environment import read_environment
from trainer_engine.runtime.events import Journal
from trainer_engine.runtime.stages import Stages

SECTION = "training"
STEPS_A_ROUND, ROUNDS = 10, 8
IMAGE_EDGE = 256

Loop = Callable[[int], None]


def without_result(trainer: Trainer) -> list[Callback]:
    """A run without the writing of its result."""
    assert isinstance(trainer.callbacks, Callbacks)
    return [callback for callback in trainer.callbacks.callbacks if not isinstance(callback, ResultsCallback)]


class TakingTurns(Callback):
    """After every ``STEPS_A_ROUND`` steps of the engine the other loops take as many, so that all see the same machine."""

    def __init__(self, loops: dict[str, Loop]) -> None:
        self.loops = loops
        self.seconds: dict[str, list[float]] = {name: [] for name in ("engine", *loops)}
        self._began = 0.0

    def before_training(self, state: TrainState) -> None:
        self._began = time.perf_counter()

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        if state.step % STEPS_A_ROUND:
            return
        self.seconds["engine"].append(time.perf_counter() - self._began)
        for name, loop in self.loops.items():
            began = time.perf_counter()
            loop(STEPS_A_ROUND)
            self.seconds[name].append(time.perf_counter() - began)
        self._began = time.perf_counter()


def bench_options(place: Path, family: str = "pixart_sigma") -> TrainingOptions:
    return parse_options(
        {
            "model_family": family,
            "model_type": "full",
            "pretrained_model_name_or_path": str(place / "model"),
            "data_backend_config": "none.json",
            "output_dir": str(place / "output"),
            "max_train_steps": STEPS_A_ROUND * (ROUNDS + 1),
            "train_batch_size": 4,
            "optimizer": "torch-adamw",
            "mixed_precision": "no",
            "gradient_checkpointing": False,
            "dataloader_prefetch": True,
            "learning_rate": 1e-4,
            "resolution": IMAGE_EDGE,
            "validation_disable": True,
            "checkpoint_step_interval": 100_000,
        }
    )


def assembled(place: Path, case: Case) -> tuple[Trainer, TrainingOptions]:
    """A real run, ready to train: caches made, prefetch and journal as in production; only the end of it (saving) is left out."""
    case.make_model(place / "model")
    generate_images(place / "images", count=32, size=(IMAGE_EDGE, IMAGE_EDGE))
    options = bench_options(place, case.family)
    datasets = [{"id": "pictures", "type": "local", "instance_data_dir": str(place / "images")}]
    dataloader, _ = parse_dataloader(datasets, options)
    folder = RunFolder(place / "run").create()
    run_context = RunContext(
        options=options,
        dataloader=dataloader,
        processes=Processes(read_environment()),
        stages=Stages(Journal(folder.journal)),
        requests=ControlRequests(folder),
        media=folder.media,
    )
    return assemble(run_context), options


def call_pixart(network: Callable[..., Any], noisy: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The prediction of the noise, as diffusers alone makes it."""
    prediction: torch.Tensor = network(
        noisy,
        encoder_hidden_states=batch.prompts["embeds"],
        encoder_attention_mask=batch.prompts["mask"],
        timestep=batch.timesteps,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0].chunk(2, dim=1)[0]
    return prediction


def make_pixart(folder: Path) -> None:
    tiny_pixart.make_tiny(folder, size="demo")


def make_sdxl(folder: Path) -> None:
    """The depth of the real network at a small width, with the conditions that the tiny text encoders make."""
    tiny_sdxl.make_tiny(folder)
    inputs = UNet2DConditionModel.load_config(folder / "unet")
    widths = {"block_out_channels": (16, 32, 64), "norm_num_groups": 8, "attention_head_dim": (1, 2, 4)}
    text = {key: inputs[key] for key in ("cross_attention_dim", "addition_time_embed_dim", "projection_class_embeddings_input_dim")}
    torch.manual_seed(0)
    UNet2DConditionModel(**{**SDXL.architecture, **widths, **text}).save_pretrained(folder / "unet")


@dataclass(frozen=True)
class Case:
    """A family whose steps are timed beside bare loops."""

    family: str
    title: str
    make_model: Callable[[Path], None]
    network: type[PixArtTransformer2DModel] | type[UNet2DConditionModel]
    call: Callable[[Callable[..., Any], torch.Tensor, Batch], torch.Tensor]
    words: str = ""
    """What its rows are called, so that those of the first family keep their names."""
    aim: str = "97 % or better"

    def copy_of(self, network: nn.Module) -> nn.Module:
        twin = self.network.from_config(network.config)
        twin.load_state_dict(network.state_dict())
        made: nn.Module = twin.train()
        return made


CASES = (
    Case("pixart_sigma", "PixArt", make_pixart, PixArtTransformer2DModel, call_pixart),
    Case("sdxl", "SDXL", make_sdxl, UNet2DConditionModel, SDXL.call, words=" of SDXL", aim="98 % or better"),
)


def bare_loop(case: Case, network: nn.Module, options: TrainingOptions, batch: Batch, scheduler: DDPMScheduler, *, samples: bool) -> Loop:
    """Forward, loss, backward, clipping, AdamW over one batch in memory.

    ``samples``: whether noise and timesteps are sampled anew, as any trainer must.
    """
    twin = case.copy_of(network)
    optimizer = build_optimizer(options.optimizer, twin.parameters())

    def steps(count: int) -> None:
        now = batch
        for _ in range(count):
            if samples:
                noise, timesteps = torch.randn_like(batch.latents), torch.randint(0, 1000, (len(batch.latents),))
                now = replace(batch, noise=noise, timesteps=timesteps)
            noisy = scheduler.add_noise(now.latents, now.noise, now.timesteps)
            loss = (case.call(twin, noisy, now) - now.noise).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_value_(twin.parameters(), options.optimizer.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()

    return steps


def measure(table: Table, case: Case) -> None:
    """The engine, a bare loop over tensors in memory, and a loop of diffusers alone, in turn."""
    with tempfile.TemporaryDirectory(prefix="bench-training-") as folder:
        place = Path(folder)
        trainer, options = assembled(place, case)
        batch = trainer.loader.load(0).passes[0]
        config = DDPMScheduler.load_config(place / "model" / "scheduler")
        scheduler = DDPMScheduler.from_config(config)
        network = trainer.step.network
        loops = {
            "bare loop": bare_loop(case, network, options, batch, scheduler, samples=False),
            "diffusers-only loop": bare_loop(case, network, options, batch, scheduler, samples=True),
        }
        for loop in loops.values():
            loop(2)
        turns = TakingTurns(loops)
        trainer.callbacks = Callbacks([*without_result(trainer), turns])
        trainer.fit()
    engine = turns.seconds["engine"][1:]
    milliseconds = 1000 * sorted(engine)[len(engine) // 2] / STEPS_A_ROUND
    table.add(SECTION, f"a step of the engine (small {case.title}, batch 4, {IMAGE_EDGE} px, float32)", f"{milliseconds:.0f} ms")
    for name in loops:
        table.add(SECTION, f"steps a second{case.words} beside a {name}", ratio_of(turns.seconds[name][1:], engine), aim=case.aim)


def run(table: Table) -> None:
    for case in CASES:
        measure(table, case)
