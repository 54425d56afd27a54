"""Two loops over a network of random weights: the engine's step, and torch and diffusers alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.bench.gpu_device import Work
from tests.bench.networks import TIMESTEPS, Architecture, Network, make_network
from trainer_engine.adapters.build import make_trainable
from trainer_engine.batches.batch import Batch
from trainer_engine.batches.loader import StepBatches
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import parse_options
from trainer_engine.families.base import Family
from trainer_engine.families.load import load_family
from trainer_engine.loop.step import Step
from trainer_engine.objectives.build import make_objective
from trainer_engine.optim.lr_schedules import Schedule
from trainer_engine.optim.optimizers import build_optimizer
from trainer_engine.optim.updates import make_update
from trainer_engine.runtime.devices import resolve_devices
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.environment import read_environment

CLIP_AT = 2.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a network is trained."""

    device: torch.device
    model_type: str
    """``full`` or ``lora``."""
    latent_edge: int
    batch_size: int = 1
    precision: str = "no"
    """``mixed_precision``: ``no`` or ``bf16``."""
    checkpointing: bool = False
    compiled: bool = False
    lora_rank: int = 16
    lora_alpha: int | None = None
    """The same as the rank, if it is not given."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def options(self, network: Network) -> TrainingOptions:
        return parse_options(
            {
                "model_family": network.family,
                "model_type": self.model_type,
                "lora_rank": self.lora_rank,
                "lora_alpha": self.lora_alpha,
                "pretrained_model_name_or_path": "random",
                "data_backend_config": "none.json",
                "output_dir": "none",
                "max_train_steps": 1000,
                "train_batch_size": self.batch_size,
                "gradient_checkpointing": self.checkpointing,
                "dynamo_backend": "inductor" if self.compiled else "no",
                "optimizer": "adamw_bf16" if self.precision == "bf16" else "torch-adamw",
                "mixed_precision": self.precision,
                "learning_rate": 1e-5,
                "max_grad_norm": CLIP_AT,
                "grad_clip_method": "norm",
            }
        )


def make_batch(network: Network, architecture: Architecture, setting: Setting, seed: int) -> Batch:
    """One batch, as the engine's loader hands it over."""
    dice = torch.Generator().manual_seed(seed)
    size, shape = setting.batch_size, (setting.batch_size, *network.latent_shape(setting.latent_edge))
    texts = network.text(architecture)
    prompts = {name: torch.randn(size, *each, generator=dice) for name, each in texts.items()}
    prompts |= {name: torch.ones(size, *each, dtype=torch.int64) for name, each in texts.items() if name == "mask"}
    prompts |= {name: torch.zeros(size, *each, dtype=torch.bool) for name, each in texts.items() if name == "slots"}
    if network.is_ragged:
        prompts = {f"{name}.{row}": one for name, rows in prompts.items() for row, one in enumerate(rows)}
    pixels = 8.0 * setting.latent_edge
    time_ids = torch.tensor([[pixels, pixels, 0.0, 0.0, pixels, pixels]] * size)
    latents, noise = torch.randn(shape, generator=dice), torch.randn(shape, generator=dice)
    timesteps = torch.rand(size, generator=dice) if network.is_flow else torch.randint(0, TIMESTEPS, (size,), generator=dice)
    batch = Batch(
        latents=latents,
        noise=noise,
        timesteps=timesteps,
        prompts=prompts,
        conditions={"time_ids": time_ids} if network.has_time_ids else {},
        files=("random",) * size,
    )
    return batch.pinned() if setting.device.type == "cuda" else batch


def make_family(network: Network, architecture: Architecture, setting: Setting) -> Family:
    """The shipped family, with random weights in place of the hub's."""
    options = setting.options(network)
    devices = resolve_devices(options, setting.device)

    def load_component(self: Family, name: str, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        return make_network(network, architecture, devices.device, dtype)

    shipped = type(load_family(options, devices))
    methods = {"load_component": load_component, "scheduler_config": lambda self: network.schedule}
    return cast("Family", type(f"Random{shipped.__name__}", (shipped,), methods)(options, devices))


def engine_steps(network: Network, architecture: Architecture, setting: Setting) -> tuple[Work, nn.Module]:
    """The engine's own step over two batches in turn, and the network that it trains."""
    family = make_family(network, architecture, setting)
    trainable = make_trainable(family, None)
    options = family.options
    step = Step(
        family=family,
        objective=make_objective(family.prediction_type, network.schedule, options.objective),
        devices=family.devices,
        processes=Processes(read_environment()),
        network=torch.compile(trainable.network, backend="inductor") if setting.compiled else trainable.network,
        update=make_update(options.optimizer, [trainable.parameters], family.devices.device),
        schedules=(Schedule(options.schedule, options.optimizer.learning_rate, options.run.max_train_steps),),
        seed=options.run.seed,
        scaler=torch.amp.GradScaler(setting.device.type, enabled=False),
    )
    batches = [make_batch(network, architecture, setting, seed) for seed in range(2)]
    numbers = count()

    def steps(how_many: int) -> None:
        for _ in range(how_many):
            number = next(numbers)
            step.take(StepBatches(number, 0, (batches[number % 2],), setting.batch_size))

    return steps, trainable.network


def bare_loss(network: Network, batch: Batch, call: Callable[..., Any], dtype: torch.dtype) -> Callable[[], Tensor]:
    """The mean squared error of a batch on its device, computed by the network and its published equations alone."""
    alphas = DDPMScheduler(**({} if network.is_flow else network.schedule)).alphas_cumprod.to(batch.latents.device)
    shape = (-1,) + (1,) * (batch.latents.dim() - 1)

    def loss() -> Tensor:
        if network.is_flow:
            sigma = batch.timesteps.view(shape)
            noisy, target = (1 - sigma) * batch.latents + sigma * batch.noise, batch.noise - batch.latents
        else:
            alpha = alphas[batch.timesteps].view(shape)
            noisy, target = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * batch.noise, batch.noise
        return (network.call(call, noisy.to(dtype), batch).float() - target).square().mean()

    return loss


def in_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with its prompts and conditions in the type of the network."""
    prompts, conditions = ({name: one.to(dtype) for name, one in named.items()} for named in (batch.prompts, batch.conditions))
    return replace(batch, prompts=prompts, conditions=conditions)


def bare_steps(network: Network, architecture: Architecture, setting: Setting, module: nn.Module) -> Work:
    """Forward, backward, clipping and the optimizer over the same modules; nothing is loaded, seeded, checked or reported."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(setting.options(network).optimizer, parameters)
    call = torch.compile(module, backend="inductor") if setting.compiled else module
    batch = in_dtype(make_batch(network, architecture, setting, 0).to(setting.device), setting.dtype)
    loss = bare_loss(network, batch, call, setting.dtype)

    def steps(how_many: int) -> None:
        for _ in range(how_many):
            loss().backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP_AT)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


def flops_of_a_step(network: Network, architecture: Architecture, setting: Setting) -> int:
    """Multiplications and additions of one forward and backward pass, without recomputation, counted on the meta device where this can be.

    Frozen weights need no gradients: below an adapter, only those of the activations are computed.
    """
    cpu = torch.device("cpu")
    place = cpu if network.reads_numbers or network.has_autocast else torch.device("meta")
    module = make_network(network, architecture, place, torch.float32).requires_grad_(setting.model_type == "full")
    batch = make_batch(network, architecture, replace(setting, device=cpu), 0).to(place)
    noisy = torch.empty_like(batch.latents, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        network.call(module, noisy, batch).sum().backward()
    return int(counter.get_total_flops())
