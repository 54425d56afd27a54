"""Makes what a run trains from its options."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer_engine.adapters.adapter import BELOW, AddedAdapter
from trainer_engine.adapters.base import Trainable
from trainer_engine.adapters.full import Full, twin_of
from trainer_engine.adapters.model_card import adapter_card, modelspec
from trainer_engine.config.adapters.file_header import UnusableAdapter, find_adapter
from trainer_engine.config.control import NAME as CONTROL
from trainer_engine.config.controlnet import FOLDER
from trainer_engine.config.lycoris.algorithms import OPTION, unfit
from trainer_engine.config.lycoris.config_file import LycorisConfig, parse_lycoris
from trainer_engine.config.published_quantised import exact_base
from trainer_engine.contract.errors import CheckpointUnusable, InvalidOptions, Problem, errors_in
from trainer_engine.contract.files import read_small_json
from trainer_engine.families.base import Family
from trainer_engine.families.common.controlnet import write_controlnet
from trainer_engine.families.modules import unmap_weights
from trainer_engine.runtime.seeds import derived_seed
from trainer_engine.weights.quantization import is_quantised


def make_trainable(family: Family, checkpoint: Path | None) -> Trainable:
    """The network on its device with its adapter: as the checkpoint's folder has it, or as a run begins.

    Raises ModelUnavailable, InvalidOptions, CheckpointUnusable.
    """
    is_full = family.options.model.model_type == "full"
    trainable = Full(family, _load_network(family, checkpoint)) if is_full else _load_adapter(family, checkpoint)
    for parameter in family.unread_parameters(trainable.network):
        parameter.requires_grad_(False)
    return trainable


def _load_network(family: Family, checkpoint: Path | None = None) -> nn.Module:
    network = family.load_network(checkpoint)
    if family.devices.device.type == "cpu":
        unmap_weights(network)
    return network


def _load_adapter(family: Family, checkpoint: Path | None) -> AddedAdapter:
    """The adapter on the base model, with the weights of the checkpoint, of ``init_lora`` or of a beginning."""
    options, adapter = family.options, _make_adapter(family)
    for parameter in adapter.parameters:
        parameter.data = parameter.data.to(family.devices.weights)
    if checkpoint:
        adapter.restore(checkpoint)
    elif options.adapter.init_lora:
        start_from(adapter, "init_lora", Path(options.adapter.init_lora))
    elif options.adapter.init_lokr_norm:
        adapter.perturb(options.adapter.init_lokr_norm)
    return adapter


def _make_adapter(family: Family) -> AddedAdapter:
    """On the frozen base, which is quantised by now: an adapter under quantised layers would get no gradients."""
    options, device = family.options, family.devices.device
    network = _load_network(family).requires_grad_(False)
    facts = {
        "model_family": family.spec.name,
        "model_flavour": options.model.model_flavour or family.spec.default_flavour,
        "base_model": options.model.pretrained_model_name_or_path or family.spec.repository(options.model.model_flavour),
        "lora_type": options.adapter.lora_type,
        **({FOLDER: options.model.controlnet_model_name_or_path or FOLDER} if family.spec.steers else {}),
        **({CONTROL: "true"} if family.spec.widened else {}),
        **modelspec(family),
    }
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derived_seed(options.run.seed, "adapter"))
        adapter = _attach(family, network, facts)
    if family.spec.steers and family.spec.components[next(iter(family.spec.trained))].is_made:
        adapter.train_below(family.spec.steers.new_layers, lambda folder: write_controlnet(family, folder, without_adapter(network)))
    family.place_network(network)
    if options.adapter.lora_format == "comfyui":
        adapter.comfyui_keys = family.spec.comfyui_keys
    adapter.widened = family.spec.widened.input_layer if family.spec.widened else ""
    adapter.key_prefixes = family.spec.key_prefixes
    adapter.describe = lambda step, folder: adapter_card(family, facts["base_model"], step, folder, adapter.multiplier)
    return adapter


def without_adapter(network: nn.Module) -> nn.Module:
    """A network of diffusers that has the weights of ``network`` without the adapter on it. It shares them."""
    tensors: dict[str, Tensor] = network.state_dict()
    plain = {key.replace(BELOW, "."): tensor for key, tensor in tensors.items()}
    with torch.device("meta"):
        names = cast("Any", type(network)).from_config(cast("Any", network).config).state_dict().keys()
    return twin_of(network, {name: plain[name] for name in names})


def _attach(family: Family, network: nn.Module, facts: dict[str, str]) -> AddedAdapter:
    """NOTE: imported here, because each adapter loads a library that takes up to half a second, and a run needs one or none."""
    options = family.options
    if options.adapter.lora_type == "standard":
        from trainer_engine.adapters.lora import LoraAdapter

        return LoraAdapter(
            network, options.adapter, family.spec, {name: family.adapter_targets(name) for name in family.spec.trained}, facts
        )
    from trainer_engine.adapters.lycoris import LycorisAdapter

    last = 1.0 if family.prediction_type == "flow_matching" else float(family.scheduler_config().get("num_train_timesteps", 1000))
    modules = {name for name, _ in network.named_modules()}
    return LycorisAdapter(network, read_lycoris(family, modules), facts, last_timestep=last)


def read_lycoris(family: Family, modules: Collection[str]) -> LycorisConfig:
    """The adapter file that the options name. ``modules``: full names of the network's modules. Raises InvalidOptions."""
    path = Path(family.options.adapter.lycoris_config)
    try:
        document = read_small_json(path)
    except OSError as error:
        message = f"The adapter file {path} cannot be read: {error}."
        raise InvalidOptions([Problem.error(OPTION, "unreadable_file", message, got=str(path), expected="a JSON file")]) from error
    config, problems = parse_lycoris(document, family.spec, modules)
    if config is not None:
        quantised = is_quantised(family.options.precision.base_model_precision)
        problems += unfit(
            document,
            quantised=quantised,
            comfyui=family.options.adapter.lora_format == "comfyui",
            received=family.options.distributed.reads_weights_once,
            joined=family.spec.joins_for_comfyui,
            exact=exact_base(family.options.as_values()),
        )
    if config is None or errors_in(problems):
        raise InvalidOptions(errors_in(problems))
    return config


def start_from(adapter: AddedAdapter, option: str, path: Path) -> None:
    """Gives the adapter the weights of another one of the same form, which ``option`` names. Raises InvalidOptions."""
    try:
        adapter.start_from(find_adapter(path))
    except UnusableAdapter as error:
        raise InvalidOptions([Problem.error(option, error.code, error.message, got=str(path), hint=error.hint)]) from error
    except CheckpointUnusable as error:
        raise InvalidOptions([Problem.error(option, "does_not_fit", error.message, got=str(path), hint=error.hint)]) from error
