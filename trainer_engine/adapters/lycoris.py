"""Adapters of every algorithm of LyCORIS (Yeh et al., 2024)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from lycoris import LycorisNetwork, create_lycoris
from lycoris.modules.dylora import DyLoraModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.tlora import TLoraModule
from safetensors.torch import load_file
from torch import Tensor, nn

from trainer_engine.adapters.base import ADAPTER_FILE, LYCORIS_FILE
from trainer_engine.adapters.beside import AdapterBeside, refuse_large_ranks
from trainer_engine.adapters.varying_rank import fewer_ranks_in_noise, one_rank_a_pass
from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.errors import InvalidOptions, Problem
from trainer_engine.contract.lycoris import OPTION, LycorisConfig

CHILD = "lycoris"
"""Name under which the adapter hangs in the network, so that its parameters are the network's."""
FORCED: Mapping[str, Mapping[str, bool]] = {"tlora": {"bypass_mode": True}}
"""tlora beside the weight: a weight would be the same for every sample of a batch."""
LIMITED_BY_LAYER = ("LoConModule", "DyLoraModule", "GLoRAModule", "TLoraModule")
"""Modules whose rank cannot be above that of their layer."""

logging.getLogger("LyCORIS").setLevel(logging.WARNING)


class LycorisAdapter(AdapterBeside):
    """The file has the library's own keys, ``lycoris_<module with underscores>.<part>``, and its configuration in the header."""

    def __init__(self, network: nn.Module, config: LycorisConfig, facts: dict[str, str], *, last_timestep: float) -> None:
        """Put the adapter on the modules that the preset names. ``last_timestep``: what the network calls pure noise.

        Raises InvalidOptions where it names none.
        """
        self.config = config
        # The library keeps a preset for every later call in the process, and takes one for "full" besides.
        with torch.random.fork_rng(devices=[]):
            preset = LycorisNetwork.apply_preset
            try:
                LycorisNetwork.apply_preset = classmethod(lambda cls, _preset: preset(dict(config.preset)))  # type: ignore[method-assign]
                self.net = _create(network, config)
            finally:
                LycorisNetwork.apply_preset = preset  # type: ignore[method-assign]
        if not self.net.loras:
            raise InvalidOptions([_nothing_matched(network, config)])
        names = {module: name for name, module in network.named_modules()}
        limited = [lora for lora in self.net.loras if type(lora).__name__ in LIMITED_BY_LAYER]
        refuse_large_ranks(
            f"{OPTION}.linear_dim", [(names[lora.org_module[0]], lora.org_module[0], int(lora.lora_dim)) for lora in limited]
        )
        self.net.apply_to()
        network.add_module(CHILD, self.net)
        fewer_ranks_in_noise(network, [lora for lora in self.net.loras if isinstance(lora, TLoraModule)], config, last_timestep)
        one_rank_a_pass(network, [lora for lora in self.net.loras if isinstance(lora, DyLoraModule)])
        super().__init__(network, facts)

    def tensors(self) -> dict[str, Tensor]:
        return {key: tensor.detach() for key, tensor in self.net.state_dict().items()}

    def holds_parameters(self, tensors: Mapping[str, Tensor]) -> bool:
        """Not where the library writes differences from the base, products with a scalar, or blocks put together."""
        mine = {name.removeprefix(f"{CHILD}."): parameter for name, parameter in self.named_parameters}
        return all(name in tensors and torch.equal(parameter, tensors[name]) for name, parameter in mine.items())

    def metadata(self) -> dict[str, str]:
        return {"lycoris_config": json.dumps(dict(self.config.document), sort_keys=True)}

    def load(self, folder: Path) -> None:
        tensors = load_file(folder / ADAPTER_FILE)
        self.refuse_other_keys(folder, set(self.tensors()), set(tensors))
        if self.config.algo == "dylora":
            tensors = self._in_blocks(tensors)
        self.net.load_state_dict(tensors, strict=False)

    def _in_blocks(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The library writes the blocks of dylora as one LoRA, and cannot read that."""
        found: dict[str, Tensor] = {}
        for lora in self.net.loras:
            downs = tensors[f"{lora.lora_name}.lora_down.weight"].split(lora.block_size)
            ups = tensors[f"{lora.lora_name}.lora_up.weight"].split(lora.block_size, dim=1)
            for index, (down, up) in enumerate(zip(downs, ups, strict=True)):
                found |= {f"{lora.lora_name}.down_list.{index}": down, f"{lora.lora_name}.up_list.{index}": up}
        return found

    def _write(self, folder: Path, tensors: dict[str, Tensor], more: dict[str, str]) -> None:
        super()._write(folder, tensors, more)
        write_atomically(folder / LYCORIS_FILE, (json.dumps(dict(self.config.document), indent=2) + "\n").encode())

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        try:
            self.net.set_multiplier(self.config.multiplier * strength)
            yield
        finally:
            self.net.set_multiplier(self.config.multiplier)

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
            **{**config.arguments, **FORCED.get(config.algo, {})},
        )
    except (ValueError, TypeError, AssertionError) as error:
        message = f"LyCORIS refuses the adapter: {error}"
        raise InvalidOptions([Problem.error(OPTION, "refused", message, hint="look at algo and bypass_mode")]) from error


def _nothing_matched(network: nn.Module, config: LycorisConfig) -> Problem:
    classes = sorted({type(module).__name__ for module in network.modules() if any(True for _ in module.parameters(recurse=True))})
    message = "The adapter file names no module of the network: nothing would be trained."
    got = config.preset["target_module"] or config.preset["target_name"]
    return Problem.error(f"{OPTION}.apply_preset", "nothing_matched", message, got=got, expected=f"classes such as {', '.join(classes)}")
