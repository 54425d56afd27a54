"""Adapters of every algorithm of LyCORIS (Yeh et al., 2024)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lycoris import LycorisNetwork, create_lycoris
from lycoris.modules.dylora import DyLoraModule
from lycoris.modules.full import FullModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.tlora import TLoraModule
from torch import Tensor, nn

from trainer_engine.adapters.adapter import AddedAdapter, refuse_large_ranks
from trainer_engine.adapters.base import LYCORIS_FILE
from trainer_engine.adapters.fused_lokr import fuse
from trainer_engine.adapters.varying_rank import fewer_ranks_in_noise, one_rank_a_pass
from trainer_engine.config.adapters.fit import CANONICAL, FittingAdapter, WantedAdapter, WantedModule
from trainer_engine.config.lycoris.algorithms import OPTION
from trainer_engine.config.lycoris.config_file import LycorisConfig
from trainer_engine.config.lycoris.fit import wanted_lycoris
from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.errors import InvalidOptions, Problem
from trainer_engine.export.adapter_file import read_tensors
from trainer_engine.weights.quantised.layer import QuantisedLinear

CHILD = "lycoris"
"""Name of the adapter as a child of the network, so that its parameters are the network's."""
QUANTISED_CLASSES = {"Linear": ("QLinear", "BnbLinear", "Float8Linear", "SdnqLinear", "TorchaoLinear")}
"""What layers are called once they have been quantised; an adapter file means them too."""
LINEAR_PARTS = ("lokr_w1", "lokr_w1_a", "hada_w1_a", "diff", "diff_b")
"""Tensors into which files with ComfyUI's keys have the multiplier worked; of a LoRA it is in the alpha."""
LIMITED_BY_LAYER = ("LoConModule", "DyLoraModule", "GLoRAModule", "TLoraModule")
"""Modules whose rank cannot be above that of their layer."""

logging.getLogger("LyCORIS").setLevel(logging.WARNING)


class LycorisAdapter(AddedAdapter):
    """The file has the library's own keys, ``lycoris_<module with underscores>.<part>``, and its configuration in the header."""

    def __init__(self, network: nn.Module, config: LycorisConfig, facts: dict[str, str], *, last_timestep: float) -> None:
        """Put the adapter on the modules that the preset names. ``last_timestep``: what the network calls pure noise.

        Raises InvalidOptions where it names none.
        """
        self.config = config
        # The library keeps a preset for every later call in the process, and adds one for "full".
        with torch.random.fork_rng(devices=[]):
            preset, wanted = LycorisNetwork.apply_preset, _preset_for(network, config)
            try:
                LycorisNetwork.apply_preset = classmethod(lambda cls, _preset: preset(wanted))
                self.net = _create(network, config)
            finally:
                LycorisNetwork.apply_preset = preset
        if not any(True for lora in self.net.loras for _ in lora.parameters()):
            raise InvalidOptions([_nothing_matched(network, config)])
        names = {module: name for name, module in network.named_modules()}
        limited = [lora for lora in self.net.loras if type(lora).__name__ in LIMITED_BY_LAYER]
        refuse_large_ranks(
            f"{OPTION}.linear_dim", [(names[lora.org_module[0]], lora.org_module[0], int(lora.lora_dim)) for lora in limited]
        )
        for lora in self.net.loras:
            if isinstance(lora.org_module[0], QuantisedLinear):  # or a step would dequantise all weights and keep the sums
                lora.bypass_mode = lora.is_quant = True
            if isinstance(lora, LokrModule):
                fuse(lora)
        self.net.apply_to()
        network.add_module(CHILD, self.net)
        fewer_ranks_in_noise(network, [lora for lora in self.net.loras if isinstance(lora, TLoraModule)], config, last_timestep)
        one_rank_a_pass(network, [lora for lora in self.net.loras if isinstance(lora, DyLoraModule)])
        super().__init__(network, facts)
        self.may_skip = any(isinstance(lora, DyLoraModule) or lora.module_dropout for lora in self.net.loras)

    @property
    def multiplier(self) -> float:
        return self.config.multiplier

    def tensors(self) -> dict[str, Tensor]:
        return {key: tensor.detach() for key, tensor in self.net.state_dict().items()}

    def holds_parameters(self, tensors: Mapping[str, Tensor]) -> bool:
        """Not where the library writes differences from the base, products with a scalar, or blocks put together."""
        mine = {name.removeprefix(f"{CHILD}."): parameter for name, parameter in self.named_parameters}
        return all(name in tensors and torch.equal(parameter, tensors[name]) for name, parameter in mine.items())

    def metadata(self) -> dict[str, str]:
        return {"lycoris_config": json.dumps(dict(self.config.document), sort_keys=True)}

    def wanted(self) -> WantedAdapter:
        names = {module: name for name, module in self.network.named_modules()}
        mine = self.tensors()
        wanted = {}
        for lora in self.net.loras:
            prefix = f"{lora.lora_name}."
            own = {key.removeprefix(prefix): tensor for key, tensor in mine.items() if key.startswith(prefix)}
            parts = {CANONICAL.get(part, part): tuple(tensor.shape) for part, tensor in own.items()}
            alpha = float(own["alpha"]) if "alpha" in own else None
            wanted[names[lora.org_module[0]]] = WantedModule(parts, alpha)
        return wanted_lycoris(wanted, self.config)

    def load(self, found: FittingAdapter) -> None:
        tensors, mine = read_tensors(found.header), self.tensors()
        names = {module: name for name, module in self.network.named_modules()}
        taken = {}
        for lora in self.net.loras:
            keys, prefix = found.keys[names[lora.org_module[0]]], f"{lora.lora_name}."
            for key in (key for key in mine if key.startswith(prefix)):
                part = CANONICAL.get(key.removeprefix(prefix), key.removeprefix(prefix))
                if part in keys and part != "alpha":
                    scale = found.divided_by if part in LINEAR_PARTS else 1.0
                    tensor = tensors[keys[part]]
                    taken[key] = (tensor / scale if scale != 1 else tensor).reshape(mine[key].shape)
        self.net.load_state_dict(self._in_blocks(taken), strict=False)

    def _in_blocks(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The library writes the blocks of dylora as one LoRA, and cannot read that."""
        found = dict(tensors)
        for lora in (lora for lora in self.net.loras if isinstance(lora, DyLoraModule)):
            downs = found.pop(f"{lora.lora_name}.lora_down.weight").split(lora.block_size)
            ups = found.pop(f"{lora.lora_name}.lora_up.weight").split(lora.block_size, dim=1)
            for index, (down, up) in enumerate(zip(downs, ups, strict=True)):
                found |= {f"{lora.lora_name}.down_list.{index}": down, f"{lora.lora_name}.up_list.{index}": up}
        return found

    def _write(self, folder: Path, tensors: dict[str, Tensor], more: dict[str, str], *, states_scale: bool = True) -> None:
        super()._write(folder, tensors, more, states_scale=states_scale)
        write_atomically(folder / LYCORIS_FILE, (json.dumps(dict(self.config.document), indent=2) + "\n").encode())

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        # NOTE: decomposed and rescaled weights are not the base's at a multiplier of 0; without the adapter they are.
        unhooked = [] if strength else [lora for lora in self.net.loras if not (lora.not_supported or isinstance(lora, FullModule))]
        try:
            self.net.set_multiplier(self.config.multiplier * strength)
            for lora in unhooked:
                lora.org_module[0].forward = lora.org_forward
            yield
        finally:
            self.net.set_multiplier(self.config.multiplier)
            for lora in unhooked:
                lora.org_module[0].forward = lora.forward

    def perturb(self, scale: float) -> None:
        """Start LoKr away from doing nothing: its zero factor becomes noise of the standard deviation ``scale`` (init_lokr_norm)."""
        for lora in self.net.loras:
            if isinstance(lora, LokrModule):
                factor = lora.lokr_w2 if lora.use_w2 else lora.lokr_w2_b
                nn.init.normal_(factor, std=scale)


def _create(network: nn.Module, config: LycorisConfig) -> LycorisNetwork:
    try:
        return create_lycoris(
            network,
            config.multiplier,
            linear_dim=config.linear_dim,
            linear_alpha=config.linear_alpha,
            algo=config.algo,
            **config.arguments,
        )
    except (ValueError, TypeError, AssertionError) as error:
        message = f"LyCORIS refuses the adapter: {error}"
        raise InvalidOptions([Problem.error(OPTION, "refused", message, hint="look at algo and bypass_mode")]) from error


def _preset_for(network: nn.Module, config: LycorisConfig) -> dict[str, Any]:
    """The preset for the classes that the network's layers have by now, without convolutions that compute their channels in groups.

    The library makes the matrices of those for all channels together.
    """
    there = {type(module).__name__ for module in network.modules()}
    renamed = {old: sorted(there.intersection(names)) for old, names in QUANTISED_CLASSES.items()}
    preset = dict(config.preset)
    grouped = [
        name for name, module in network.named_modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups > 1
    ]
    preset["exclude_name"] = [*preset["exclude_name"], *grouped]
    preset["target_module"] = [*preset["target_module"], *(new for name in preset["target_module"] for new in renamed.get(name, ()))]
    overrides = preset["module_algo_map"]
    preset["module_algo_map"] = {**overrides, **{new: overrides[name] for name in overrides for new in renamed.get(name, ())}}
    return preset


def _nothing_matched(network: nn.Module, config: LycorisConfig) -> Problem:
    classes = sorted({type(module).__name__ for module in network.modules() if any(True for _ in module.parameters(recurse=True))})
    message = "The adapter file names no module of the network: nothing would be trained."
    got = config.preset["target_module"] or config.preset["target_name"]
    return Problem.error(f"{OPTION}.apply_preset", "nothing_matched", message, got=got, expected=f"classes such as {', '.join(classes)}")
