"""Every way of computing attention that a run may choose, one row each. The option, the rules, validate and the engine read this table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any

from trainer_engine.config.token_splitting import ALL_GATHER, ALL_TO_ALL

DEFAULT = "diffusers"
SAGE = "sageattention"
BOOLEAN, ADDITIVE = "boolean", "additive"
"""Kinds of attention masks: true for keys that count, or numbers that are added to the scores."""
MASKS = frozenset({BOOLEAN, ADDITIVE})
BY_HEADS, BY_TOKENS = frozenset({ALL_TO_ALL}), frozenset({ALL_TO_ALL, ALL_GATHER})
KERNEL_PUBLISHER = "kernels-community"
"""The only publisher on the hub whose kernels a run loads."""


@dataclass(frozen=True, kw_only=True)
class AttentionMechanism:
    """What is true of one value of ``attention_mechanism``."""

    name: str
    backend: str | None
    """Its name in the dispatcher of diffusers; None leaves the networks as they are."""
    package: str = ""
    """Distribution that it needs in addition to PyTorch; empty if it needs none."""
    least: str = "0"
    """Oldest version of the package."""
    install: str = ""
    """How the package is installed."""
    devices: tuple[str, ...] = ("cuda",)
    """Device types of torch that can compute it."""
    capability: tuple[int, int] = (0, 0)
    """Lowest compute capability of a GPU."""
    is_short: bool = False
    """Whether it computes in bfloat16 and float16 only."""
    masks: frozenset[str] = frozenset()
    """Kinds of attention masks that it takes."""
    trains: bool = True
    """Whether it has a backward pass. Without one it only generates validation images."""
    needs_compilation: bool = False
    """Whether it is only of use in a compiled network."""
    splits: frozenset[str] = frozenset()
    """Values of ``context_parallel_comm_strategy`` that it serves, as diffusers implements them with a backward pass."""
    kernel: str = ""
    """Repository on the hub that its kernel is loaded from; empty for kernels of packages."""

    @property
    def is_installed(self) -> bool:
        """Whether its package is installed in a version that is new enough; the package is not imported."""
        if not self.package:
            return True
        try:
            return _numbers(version(self.package)) >= _numbers(self.least)
        except PackageNotFoundError:
            return False


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers of a version up to the first part that is none: 2.8.0.post1 -> (2, 8, 0)."""
    return tuple(int(number) for number in re.match(r"(\d+(?:\.\d+)*)?", text)[0].split(".") if number)  # type: ignore[index]


def _flash(name: str, backend: str, **facts: Any) -> AttentionMechanism:
    """A kernel of FlashAttention. Those for packed sequences take masks of keys."""
    masks = frozenset({BOOLEAN}) if "varlen" in backend else frozenset()
    usual = {"capability": AMPERE, "is_short": True, "masks": masks}
    return AttentionMechanism(name=name, backend=backend, **{**usual, **facts})


def _hub(name: str, backend: str, kernel: str, *, least: str = "0.12", **facts: Any) -> AttentionMechanism:
    install = f"pip install 'kernels>={least}'"
    return _flash(name, backend, package="kernels", install=install, least=least, kernel=f"{KERNEL_PUBLISHER}/{kernel}", **facts)


def _sage(name: str, backend: str, **facts: Any) -> AttentionMechanism:
    install = "pip install 'sageattention>=2.1.1'"
    return _flash(name, backend, package="sageattention", install=install, least="2.1.1", trains=False, **facts)


Row = AttentionMechanism
AMPERE, HOPPER = (8, 0), (9, 0)
FLASH_3 = "build the hopper folder of the flash-attention repository, or use the kernel of the hub: attention_mechanism=flash-attn-3-hub"

ROWS = (
    Row(name=DEFAULT, backend=None, devices=("cpu", "cuda", "mps"), masks=MASKS, splits=BY_HEADS),
    Row(name="native", backend="native", devices=("cpu", "cuda", "mps"), masks=MASKS, splits=BY_HEADS),
    Row(name="native-math", backend="_native_math", devices=("cpu", "cuda", "mps"), masks=MASKS),
    Row(name="native-efficient", backend="_native_efficient", masks=MASKS),
    Row(name="native-flash", backend="_native_flash", devices=("cpu", "cuda"), capability=AMPERE, is_short=True, splits=BY_TOKENS),
    Row(name="cudnn", backend="_native_cudnn", capability=AMPERE, is_short=True, masks=MASKS, splits=BY_TOKENS),
    Row(name="native-npu", backend="_native_npu", package="torch_npu", install="pip install torch_npu", devices=("npu",)),
    Row(name="native-xla", backend="_native_xla", package="torch_xla", install="pip install torch_xla", devices=("xla",)),
    Row(name="flex", backend="flex", masks=MASKS, needs_compilation=True),
    Row(name="xformers", backend="xformers", package="xformers", least="0.0.29", install="pip install 'xformers>=0.0.29'"),
    _flash("flash-attn", "flash", package="flash-attn", install="pip install 'flash-attn>=2.6.3'", least="2.6.3", splits=BY_TOKENS),
    _flash("flash-attn-3", "_flash_3", package="flash-attn-3", install=FLASH_3, capability=HOPPER, trains=False),
    _flash("flash-attn-3-varlen", "_flash_varlen_3", package="flash-attn-3", install=FLASH_3, capability=HOPPER),
    _hub("flash-attn-hub", "flash_hub", "flash-attn2", splits=BY_TOKENS),
    _hub("flash-attn-varlen-hub", "flash_varlen_hub", "flash-attn2", splits=BY_TOKENS),
    _hub("flash-attn-3-hub", "_flash_3_hub", "flash-attn3", capability=HOPPER, splits=BY_TOKENS),
    _hub("flash-attn-3-varlen-hub", "_flash_3_varlen_hub", "flash-attn3", capability=HOPPER, splits=BY_TOKENS),
    _hub("flash-attn-4-hub", "flash_4_hub", "flash-attn4", least="0.12.3", capability=HOPPER),
    _sage(SAGE, "sage"),
    _sage("sageattention-int8-fp16-triton", "_sage_qk_int8_pv_fp16_triton"),
    _sage("sageattention-int8-fp16-cuda", "_sage_qk_int8_pv_fp16_cuda"),
    _sage("sageattention-int8-fp8-cuda", "_sage_qk_int8_pv_fp8_cuda", capability=(8, 9)),
)
MECHANISMS: Mapping[str, AttentionMechanism] = MappingProxyType({row.name: row for row in ROWS})
"""Value of ``attention_mechanism`` -> its row."""
METAL = ("metal-flash-attention", "metal-flash-attention-int8", "metal-flash-attention-int4")
"""Kernels for Apple GPUs that diffusers has no backend for. PyTorch's own attention computes the same there, without rounding."""
SYNONYMS: Mapping[str, str] = MappingProxyType({"flash-attn-2": "flash-attn", **dict.fromkeys(METAL, "native")})
LATER = ("sla",)
"""Values of the format that diffusers has no backend for."""


def is_sage(mechanism: str) -> bool:
    """Whether a value of ``attention_mechanism`` is a variant of SageAttention."""
    return mechanism.startswith(SAGE)
