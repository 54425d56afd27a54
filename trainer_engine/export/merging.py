"""Merges an adapter into the weights of its network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from lycoris import create_lycoris_from_weights
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.export.adapter_file import AdapterTensors
from trainer_engine.export.conversion import lora_parts

ROWS_AT_ONCE = 1024
TIMESTEP_ALGORITHM = "tlora"


class IncompatibleKeys(Protocol):
    """What PEFT returns after loading tensors; its own annotation names no fields."""

    unexpected_keys: list[str]


@dataclass(frozen=True)
class LinearLayer:
    """What a layer was before an adapter changed it."""

    name: str
    inputs: tuple[int, ...]
    """Shape of one input: (in,), or (C, h, w) of the patch that a convolution without padding turns into one token."""
    has_bias: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, name: str, module: nn.Module) -> LinearLayer:
        """Raises ModelUnavailable for another kind of layer."""
        is_patch = isinstance(module, nn.Conv2d) and not any(module.padding) and module.groups == 1
        if not is_patch and not isinstance(module, nn.Linear):
            raise ModelUnavailable(
                f"{name} is a {type(module).__name__}: only linear layers and embeddings of patches can be merged.",
                hint="load the adapter as it is",
            )
        weight = cast("nn.Linear | nn.Conv2d", module).weight
        return cls(name, tuple(weight.shape[1:]), module.bias is not None, weight.dtype)


def merged_weights(network: nn.Module, adapter: AdapterTensors, strength: float = 1.0) -> dict[str, Tensor]:
    """Parameter name -> what it has to be for the bare network to answer as it does with the adapter, in the network's type.

    The weights are read off the adapted layers' answers to zero and to the unit vectors. LyCORIS' own merge counts alpha / rank of
    LoKr and LoHa twice (4.1.3), and PEFT's leaves rounding in the base. ``network`` is as before afterwards.
    Raises ModelUnavailable where the adapter does not fit.
    """
    if TIMESTEP_ALGORITHM in adapter.algorithms:
        message = f"{adapter.path.name} is a T-LoRA: how much of it counts depends on the timestep, which merged weights do not know."
        raise ModelUnavailable(message, hint="load the adapter as its README says")
    layers = {name: LinearLayer.of(name, network.get_submodule(name)) for name in adapter.modules}
    if adapter.is_lycoris:
        return _of_lycoris(network, adapter, layers, strength)
    return _of_peft(network, adapter, layers, strength)


def _of_lycoris(network: nn.Module, adapter: AdapterTensors, layers: Mapping[str, LinearLayer], strength: float) -> dict[str, Tensor]:
    names = {module: name for name, module in network.named_modules()}
    try:
        with torch.no_grad():
            net, _ = create_lycoris_from_weights(strength * adapter.multiplier, str(adapter.path), network)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelUnavailable(f"LyCORIS cannot make the adapter from {adapter.path.name} again: {error}") from error
    if len(net.loras) != len(layers):
        raise ModelUnavailable(f"Only {len(net.loras)} of the {len(layers)} modules of {adapter.path.name} fit the network.")
    net.apply_to()
    net.to(next(iter(layers.values())).dtype).eval()
    try:
        return _read_off([(layers[names[lora.org_module[0]]], lora.org_module[0]) for lora in net.loras])
    finally:
        net.restore()


def _of_peft(network: nn.Module, adapter: AdapterTensors, layers: Mapping[str, LinearLayer], strength: float) -> dict[str, Tensor]:
    config, tensors = _peft_form(adapter, strength)
    inject_adapter_in_model(config, network)
    unexpected = cast("IncompatibleKeys", set_peft_model_state_dict(network, tensors)).unexpected_keys
    adapted: dict[str, Any] = {name: layer for name, layer in network.named_modules() if isinstance(layer, BaseTunerLayer)}
    try:
        if unexpected:
            raise ModelUnavailable(f"{adapter.path.name} does not fit the network: {', '.join(unexpected[:3])}.")
        return _read_off([(layers[name], layer.eval()) for name, layer in adapted.items()])
    finally:
        for name, layer in adapted.items():
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, layer.get_base_layer())


def _read_off(adapted: Sequence[tuple[LinearLayer, nn.Module]]) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for layer, module in adapted:
        weight, bias = answers_of(layer, module)
        merged[f"{layer.name}.weight"] = weight
        if layer.has_bias:
            merged[f"{layer.name}.bias"] = bias
        elif bool(bias.any()):
            raise ModelUnavailable(f"The adapter gives {layer.name} a bias, and the network has none there to carry it.")
    return merged


@torch.no_grad()
def answers_of(layer: LinearLayer, module: nn.Module) -> tuple[Tensor, Tensor]:
    """(weight (out, *inputs), bias (out,)) of a layer: whatever is done to it, as long as it stays linear, is in its answers."""
    size = math.prod(layer.inputs)
    offset = module(torch.zeros(1, *layer.inputs, dtype=layer.dtype)).flatten()
    units = torch.eye(size, dtype=layer.dtype).view(size, *layer.inputs).split(ROWS_AT_ONCE)
    answers = torch.cat([module(rows).flatten(1) - offset for rows in units])
    return answers.T.reshape(-1, *layer.inputs).contiguous(), offset.clone()


def _peft_form(adapter: AdapterTensors, strength: float) -> tuple[LoraConfig, Mapping[str, Tensor]]:
    """A configuration with each module's own rank and scale, and the tensors under PEFT's keys."""
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    tensors: dict[str, Tensor] = {}
    for name, parts in adapter.modules.items():
        down, up, alpha = lora_parts(adapter, name, parts)
        ranks[name], alphas[name] = len(down), alpha * strength
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items() if part == "lora_magnitude_vector"}
    stated, _ = adapter.peft_config(next(iter(adapter.modules)))
    config = LoraConfig(
        target_modules=list(adapter.modules),
        rank_pattern=ranks,
        alpha_pattern=alphas,
        use_dora=any(key.endswith("lora_magnitude_vector") for key in tensors),
        use_rslora=bool(stated.get("use_rslora", False)),
    )
    return config, tensors
