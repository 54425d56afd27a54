"""Adapters on an 8-bit base: steps a second and peak memory of the engine beside a bare loop with the same modules; saving and loading."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from lycoris import LycorisNetwork, create_lycoris
from optimum.quanto import freeze, qint8, quantize
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from tests.bench.table import Table, milliseconds, ratio_of
from tests.bench.training import Loop, TakingTurns, without_result
from tests.helpers.pictures import generate_images
from trainer_engine.adapters.build import make_trainable
from trainer_engine.batches.batch import Batch
from trainer_engine.config.datasets import Dataloader, parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.run import RunFolder
from trainer_engine.families.common.latent_squares import pack, positions
from trainer_engine.families.flux.tiny import make_tiny
from trainer_engine.families.load import load_family
from trainer_engine.loop.assemble import assemble
from trainer_engine.loop.callbacks.base import Callbacks
from trainer_engine.loop.context import RunContext
from trainer_engine.loop.trainer import Trainer
from trainer_engine.optim.optimizers import build_optimizer
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.devices import resolve_devices
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.environment import read_environment
from trainer_engine.runtime.events import Journal
from trainer_engine.runtime.stages import Stages

SECTION = "adapters"
KINDS = ("LoKr", "LoRA")
ROUNDS, STEPS = 8, 10
EDGE = 128
TARGETS = ["FluxAttention", "FeedForward"]
TIMES = 10
LARGE = 8
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Blocks above 64 KiB are mapped one by one (glibc)."""


def adapter_file(place: Path) -> Path:
    spec = find_spec("flux")
    assert spec is not None
    path = place / "lycoris_config.json"
    path.write_text(json.dumps({"algo": "lokr", "multiplier": 1.0, "full_matrix": True, "linear_alpha": 1, "factor": 8, **_preset()}))
    return path


def _preset() -> dict[str, Any]:
    return {"apply_preset": {"target_module": TARGETS}}


def options_of(place: Path, kind: str, batch: int = 1) -> TrainingOptions:
    how = {"lora_type": "lycoris", "lycoris_config": str(adapter_file(place))} if kind == "LoKr" else {"lora_rank": 16, "lora_dropout": 0}
    return parse_options(
        {
            "model_family": "flux",
            "model_flavour": "dev",
            "model_type": "lora",
            "pretrained_model_name_or_path": str(place / "model"),
            "data_backend_config": "none.json",
            "output_dir": str(place / f"output-{kind}-{batch}"),
            "cache_dir": str(place / "cache"),
            "resume_from_checkpoint": "",
            "max_train_steps": STEPS * (ROUNDS + 1),
            "train_batch_size": batch,
            "optimizer": "torch-adamw",
            "mixed_precision": "no",
            "base_model_precision": "int8-quanto",
            "gradient_checkpointing": False,
            "dataloader_prefetch": True,
            "learning_rate": 1e-4,
            "resolution": EDGE,
            "validation_disable": True,
            "checkpoint_step_interval": 100_000,
            **how,
        }
    )


def prepare(place: Path) -> None:
    make_tiny(place / "model", size="demo")
    generate_images(place / "images", count=16, size=(EDGE, EDGE))


def datasets(place: Path, options: TrainingOptions) -> Dataloader:
    edges = {"conditioning": {"type": "canny"}} if options.model.sees_control else {}
    found, _ = parse_dataloader([{"id": "pictures", "type": "local", "instance_data_dir": str(place / "images"), **edges}], options)
    return found


def assembled(place: Path, options: TrainingOptions) -> Trainer:
    """A real run, ready to train; only the end of it (saving) is left out."""
    folder = RunFolder(place / "run").create()
    sink = Journal(folder.journal)
    context = RunContext(
        options=options,
        dataloader=datasets(place, options),
        processes=Processes(read_environment()),
        stages=Stages(sink),
        requests=ControlRequests(folder),
        media=folder.media,
    )
    trainer = assemble(context)
    trainer.callbacks = Callbacks(without_result(trainer))
    return trainer


def bare_network(place: Path, kind: str) -> tuple[nn.Module, list[nn.Parameter]]:
    """The libraries alone: load, quantise, adapt."""
    network = FluxTransformer2DModel.from_pretrained(place / "model", subfolder="transformer").requires_grad_(False).train()
    quantize(network, weights=qint8)
    freeze(network)
    network.requires_grad_(False)
    if kind == "LoKr":
        LycorisNetwork.apply_preset({"target_module": TARGETS, "target_name": [], "module_algo_map": {}, "name_algo_map": {}})
        adapter = create_lycoris(network, 1.0, linear_dim=10000, linear_alpha=1, algo="lokr", factor=8, full_matrix=True)
        adapter.apply_to()
        return network, list(adapter.parameters())
    spec = find_spec("flux")
    assert spec is not None
    inject_adapter_in_model(LoraConfig(r=16, lora_alpha=16, target_modules=list(spec.adapters.lora_targets["all"])), network)
    return network, [parameter for name, parameter in network.named_parameters() if "lora_" in name]


def bare_loop(place: Path, kind: str, options: TrainingOptions, batch: Batch) -> Loop:
    network, parameters = bare_network(place, kind)
    optimizer = build_optimizer(options.optimizer, parameters)
    height, width = batch.latents.shape[-2:]
    ids, text_ids = positions(height, width), torch.zeros(batch.prompts["embeds"].shape[1], 3)

    def steps(count: int) -> None:
        for _ in range(count):
            noise, sigma = torch.randn_like(batch.latents), torch.sigmoid(torch.randn(len(batch.latents)))
            noisy = (1 - sigma.view(-1, 1, 1, 1)) * batch.latents + sigma.view(-1, 1, 1, 1) * noise
            output = network(
                hidden_states=pack(noisy),
                timestep=sigma,
                guidance=torch.ones(len(sigma)),
                pooled_projections=batch.prompts["pooled"],
                encoder_hidden_states=batch.prompts["embeds"],
                txt_ids=text_ids,
                img_ids=ids,
                return_dict=False,
            )[0]
            (output - pack(noise - batch.latents)).square().mean().backward()
            torch.nn.utils.clip_grad_value_(parameters, options.optimizer.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


def speed(table: Table, place: Path, kind: str) -> None:
    options = options_of(place, kind)
    trainer = assembled(place, options)
    loop = bare_loop(place, kind, options, trainer.loader.load(0).passes[0])
    loop(2)
    turns = TakingTurns({"bare": loop})
    assert isinstance(trainer.callbacks, Callbacks)
    trainer.callbacks = Callbacks([*trainer.callbacks.callbacks, turns])
    trainer.fit()
    engine = turns.seconds["engine"][1:]
    middle = statistics.median(engine) / STEPS
    table.add(SECTION, f"a step of Flux {kind} on int8 (small Flux, {EDGE} px, float32)", f"{1000 * middle:.0f} ms")
    ratio = ratio_of(turns.seconds["bare"][1:], engine)
    table.add(SECTION, f"steps a second of Flux {kind} on int8 beside a bare loop", ratio, aim="97 % or better")


def saving(table: Table, place: Path, kind: str) -> None:
    options = options_of(place, kind)
    trainable = make_trainable(load_family(options, resolve_devices(options, torch.device("cpu"))), None)
    saved, loaded = [], []
    for _ in range(TIMES):
        began = time.perf_counter()
        trainable.save(place / f"saved-{kind}")
        saved.append(time.perf_counter() - began)
        began = time.perf_counter()
        trainable.restore(place / f"saved-{kind}")
        loaded.append(time.perf_counter() - began)
    size = (place / f"saved-{kind}" / "pytorch_lora_weights.safetensors").stat().st_size / 1e6
    value = f"{milliseconds(statistics.median(saved))}, {milliseconds(statistics.median(loaded))}"
    table.add(SECTION, f"a {kind} adapter of {size:.1f} MB: saving (synced), loading", value)


def peak(place: Path, kind: str, who: str, batch: int) -> Mapping[str, int]:
    """Peak memory of a process of its own that takes a few steps, over what it held before it loaded anything.

    The C library is told to give freed blocks back at once, as the allocator of a GPU counts them: what it holds otherwise is up to
    as much again, and another number in each run.
    """
    command = [sys.executable, "-m", "tests.bench.adapter_peak", str(place), kind, who, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **GIVE_BACK})
    found: Mapping[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(table: Table) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-adapters-") as folder:
        place = Path(folder)
        prepare(place)
        for kind in KINDS:
            speed(table, place, kind)
            saving(table, place, kind)
            memory(table, place, kind)


def memory(table: Table, place: Path, kind: str) -> None:
    """Libraries take hundreds of megabytes at any size, so that what a larger batch adds says more than the whole."""
    ours, bare, small = (peak(place, kind, who, batch) for who, batch in (("engine", LARGE), ("bare", LARGE), ("engine", 1)))
    value = f"{ours['peak'] / 1e6:.0f} and {bare['peak'] / 1e6:.0f} MB ({ours['peak'] / bare['peak']:.2f} x)"
    table.add(SECTION, f"peak memory of Flux {kind} on int8, batch {LARGE}: engine, bare loop", value)
    grown, expected = ours["peak"] - small["peak"], ours["estimate"] - small["estimate"]
    value = f"{expected / 1e6:.0f} and {grown / 1e6:.0f} MB ({100 * expected / grown:.0f} %)"
    table.add(SECTION, f"what {LARGE - 1} more images in a batch add ({kind}): estimated, measured", value, aim="90 to 110 %")
