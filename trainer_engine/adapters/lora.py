"""Low-rank matrices through PEFT (Hu et al., 2021), with or without the decomposition of weights (DoRA; Liu et al., 2024)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from trainer_engine.adapters.adapter import AddedAdapter, refuse_large_ranks
from trainer_engine.config.adapters.fit import CANONICAL, FittingAdapter, WantedAdapter, WantedModule, standard_adapter
from trainer_engine.config.adapters.keys import METADATA_KEY, split_key
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options.adapter import AdapterOptions
from trainer_engine.contract.errors import InvalidOptions, Problem
from trainer_engine.export.adapter_file import read_tensors
from trainer_engine.families.modules import split

OWN_NAMES = {"dora_scale": "lora_magnitude_vector"}
NAME = "default"
"""PEFT's own name of the one adapter that there is."""


class LoraAdapter(AddedAdapter):
    """The file has the keys of diffusers: ``<component>.<module>.lora_A.weight`` (r, in) and ``lora_B.weight`` (out, r)."""

    def __init__(
        self, network: nn.Module, options: AdapterOptions, spec: FamilySpec, targets: Mapping[str, tuple[str, ...]], facts: dict[str, str]
    ) -> None:
        """Put the adapter on every module of each component whose name ends with one of its ``targets``.

        Raises InvalidOptions if no module of a component does.
        """
        self.spec = spec
        self.modules = split(network, spec)
        self.configs = {name: self._attach(module, options, targets[name]) for name, module in self.modules.items()}
        super().__init__(network, facts)
        self.key_prefixes = spec.key_prefixes
        refuse_large_ranks("lora_rank", [(name, layer.get_base_layer(), options.lora_rank) for name, layer in self.layers.items()])

    @staticmethod
    def _attach(module: nn.Module, options: AdapterOptions, targets: tuple[str, ...]) -> LoraConfig:
        alpha: Any = options.lora_rank if options.lora_alpha is None else options.lora_alpha  # PEFT takes fractions, against its annotation
        config = LoraConfig(
            r=options.lora_rank,
            lora_alpha=alpha,
            lora_dropout=options.lora_dropout,
            target_modules=list(targets),
            use_dora=options.use_dora,
            init_lora_weights="gaussian" if options.lora_init_type == "gaussian" else True,
        )
        try:
            inject_adapter_in_model(config, module, NAME)
        except ValueError as error:
            expected = "endings of the names of linear layers"
            problem = Problem.error("peft_lora_target_modules", "nothing_matched", f"PEFT: {error}", got=list(targets), expected=expected)
            raise InvalidOptions([problem]) from error
        return config

    @property
    def layers(self) -> dict[str, BaseTunerLayer]:
        return {name: module for name, module in self.network.named_modules() if isinstance(module, BaseTunerLayer)}

    def tensors(self) -> dict[str, Tensor]:
        prefixes = self.spec.diffusers_prefixes
        return {
            f"{prefixes[self.spec.module_prefix(name)]}{key}": tensor.detach()
            for name, module in self.modules.items()
            for key, tensor in get_peft_model_state_dict(module, adapter_name=NAME).items()
        }

    def metadata(self) -> dict[str, str]:
        # No dropout: diffusers leaves the layers that it loads in training mode, so it would zero inputs while it generates.
        kept = ("r", "lora_alpha", "use_dora", "use_rslora", "alpha_pattern", "rank_pattern", "bias")
        stated: dict[str, Any] = {}
        for name, peft_config in self.configs.items():
            config: dict[str, Any] = peft_config.to_dict()
            prefix = self.spec.components[name].state_dict_prefix
            stated |= {f"{prefix}{key}": config[key] for key in kept}
            stated[f"{prefix}target_modules"] = sorted(config["target_modules"])
        return {METADATA_KEY: json.dumps(stated, sort_keys=True)}

    def wanted(self) -> WantedAdapter:
        parts: dict[str, dict[str, tuple[int, ...]]] = {}
        for key, tensor in self.tensors().items():
            name, part = split_key(key, self.key_prefixes)
            parts.setdefault(name, {})[CANONICAL.get(part, part)] = tuple(tensor.shape)
        alpha = float(next(iter(self.configs.values())).lora_alpha)  # the options have one for all components
        return standard_adapter({name: WantedModule(shapes, alpha) for name, shapes in parts.items()})

    def load(self, found: FittingAdapter) -> None:
        tensors = read_tensors(found.header)
        for component, module in self.modules.items():
            prefix = self.spec.module_prefix(component)
            mine = get_peft_model_state_dict(module, adapter_name=NAME)
            state = {}
            for layer, keys in ((layer, keys) for layer, keys in found.keys.items() if layer.startswith(prefix)):
                for part, key in keys.items():
                    name = f"{layer.removeprefix(prefix)}.{OWN_NAMES.get(part, part)}"
                    if part != "alpha":
                        state[name] = tensors[key].reshape(mine[name].shape)
            set_peft_model_state_dict(module, state, adapter_name=NAME)

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        layers: list[Any] = list(self.layers.values())
        usual = [layer.scaling[NAME] for layer in layers]
        try:
            for layer, scale in zip(layers, usual, strict=True):
                layer.scaling[NAME] = scale * strength
                if not strength:
                    layer.enable_adapters(False)
            yield
        finally:
            for layer, scale in zip(layers, usual, strict=True):
                layer.scaling[NAME] = scale
                if not strength:
                    layer.enable_adapters(True)
