"""Parses the ``sdnq_*`` options into the settings of each layer, without the library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.sdnq import SdnqOptions
from trainer_engine.config.precisions import PRECISIONS, SDNQ_BYTES, activated
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import read_document

OF_EACH_LAYER: Mapping[str, type] = MappingProxyType(
    {
        "sdnq_weights_dtype": str,
        "sdnq_group_size": int,
        "sdnq_use_hadamard": bool,
        "sdnq_hadamard_group_size": int,
        "sdnq_use_svd": bool,
        "sdnq_svd_rank": int,
        "sdnq_svd_steps": int,
        "sdnq_use_stochastic_rounding": bool,
        "sdnq_dequantize_fp32": bool,
        "sdnq_use_quantized_matmul": bool,
        "sdnq_quantized_matmul_dtype": str,
    }
)
"""Option -> the type of its value."""
SETTINGS: Mapping[str, type] = MappingProxyType({option.removeprefix("sdnq_"): kind for option, kind in OF_EACH_LAYER.items()})
"""The same by the names of the library's arguments."""
BOUNDS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"group_size": (-2, 65536), "hadamard_group_size": (2, 65536), "svd_rank": (1, 4096), "svd_steps": (1, 1000)}
)
MATMUL_TYPES = ("int8", "uint8", "fp8", "fp16")
MOST_NAMES = 1000


@dataclass(frozen=True, kw_only=True)
class SdnqSettings:
    """How SDNQ quantises the layers of a run."""

    shared: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the library for every layer; those that are left out have the library's defaults."""
    is_static: bool = True
    """Whether layers keep their quantised weights, or the exact ones and quantise them for each product."""
    compiles: bool = True
    kept: tuple[str, ...] = ()
    """Modules that stay unquantised."""
    plain_products: tuple[str, ...] = ()
    """Modules that multiply as usual."""
    types: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Type -> modules that get it."""
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Module -> arguments of its own."""

    def keeps(self, name: str) -> bool:
        """Whether the module ``name`` stays unquantised."""
        return _matches(name, self.kept)

    def arguments(self, name: str, weights_dtype: str) -> dict[str, Any]:
        """The library's arguments for the module ``name``. ``weights_dtype``: the type that the precision of its network names."""
        found = {"weights_dtype": weights_dtype, **self.shared}
        for dtype, modules in self.types.items():
            if _matches(name, modules):
                found["weights_dtype"] = dtype
        for module, own in self.own.items():
            if _matches(name, (module,)):
                found |= own
        if _matches(name, self.plain_products):
            found["use_quantized_matmul"] = False
        return found


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a module is meant: by its full name, by a part of it between dots, or by a pattern with ``*``."""
    parts = name.split(".")
    return any(name == one or one in parts or ("*" in one and fnmatchcase(name, one)) for one in patterns)


def parse_sdnq(values: Mapping[str, Any]) -> tuple[SdnqSettings, list[Problem]]:
    """Returns the settings that the options ask for, and the problems of the ones that hold JSON. ``values``: every option by name."""
    problems: list[Problem] = []
    shared = {option.removeprefix("sdnq_"): values[option] for option in OF_EACH_LAYER if values[option] is not None}
    if shared["quantized_matmul_dtype"] == "auto":
        del shared["quantized_matmul_dtype"]
    types = _table("sdnq_modules_dtype_dict", values, problems)
    own = _table("sdnq_modules_quant_config", values, problems)
    for dtype in [dtype for dtype in types if dtype not in SDNQ_BYTES]:
        message = f"SDNQ has no type {dtype!r}."
        expected = f"one of {', '.join(SDNQ_BYTES)}"
        problems.append(Problem.error("sdnq_modules_dtype_dict", "unknown_type", message, got=dtype, expected=expected))
    for module, settings in own.items():
        problems += _wrong_settings(module, settings)
    settings = SdnqSettings(
        shared=shared,
        is_static=values["sdnq_use_static_quantization"] is not False,
        compiles=values["sdnq_compile_mode"] == "auto",
        kept=_names("sdnq_modules_to_not_convert", values["sdnq_modules_to_not_convert"], problems),
        plain_products=_names("sdnq_modules_to_not_use_matmul", values["sdnq_modules_to_not_use_matmul"], problems),
        types={dtype: _listed("sdnq_modules_dtype_dict", modules, problems) for dtype, modules in types.items()},
        own={module: settings for module, settings in own.items() if isinstance(settings, Mapping)},
    )
    return settings, problems


def weights_identity(chosen: str, options: TrainingOptions) -> str:
    """Names what weights are quantised to: the type, and every setting that changes them. Caches and checkpoints compare it."""
    name = activated(chosen, quantize_activations=options.precision.quantize_activations)
    if name not in PRECISIONS or PRECISIONS[name].library != "sdnq":
        return name
    changed = {key: value for key, value in options.sdnq.model_dump().items() if value not in (None, "", "auto")}
    changed.pop("sdnq_compile_mode", None)
    if options.sdnq.sdnq_use_svd or options.sdnq.sdnq_use_stochastic_rounding:
        changed["seed"] = options.run.seed
    return " ".join([name, *(f"{key}={value}" for key, value in sorted(changed.items()))])


def settings_of(options: SdnqOptions) -> SdnqSettings:
    """Returns the settings of options that have been checked."""
    return parse_sdnq(options.model_dump())[0]


def _table(option: str, values: Mapping[str, Any], problems: list[Problem]) -> Mapping[str, Any]:
    document = _document(option, values[option], problems)
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        problems.append(Problem.error(option, "not_an_object", f"{option} is not a JSON object.", expected="a JSON object"))
        return {}
    return document


def _names(option: str, text: str, problems: list[Problem]) -> tuple[str, ...]:
    document = _document(option, text, problems)
    return () if document is None else _listed(option, document, problems)


def _listed(option: str, document: object, problems: list[Problem]) -> tuple[str, ...]:
    names = [document] if isinstance(document, str) else document
    if isinstance(names, list) and len(names) <= MOST_NAMES and all(isinstance(name, str) and name for name in names):
        return tuple(names)
    message = f"{option} holds something else than names of modules."
    problems.append(Problem.error(option, "not_names", message, expected=f"a list of at most {MOST_NAMES} names"))
    return ()


def _document(option: str, text: str, problems: list[Problem]) -> object:
    if not text:
        return None
    try:
        return read_document(text)
    except ValueError as error:
        problems.append(Problem.error(option, "not_json", f"{option} is not valid JSON: {error}", expected="JSON"))
        return None


def _wrong_settings(module: str, settings: object) -> Iterable[Problem]:
    option, expected = "sdnq_modules_quant_config", f"settings among {', '.join(SETTINGS)}"
    if not isinstance(settings, Mapping):
        yield Problem.error(option, "not_an_object", f"The settings of {module} are no JSON object.", expected=expected)
        return
    for name, value in settings.items():
        if name not in SETTINGS:
            yield Problem.error(option, "unknown_setting", f"SDNQ has no setting {name!r}.", got=name, expected=expected)
        elif type(value) is not SETTINGS[name] or not _in_bounds(name, value):
            yield Problem.error(option, "wrong_value", f"{value!r} is no value of {name}.", got=value, expected=_expected(name))


def _in_bounds(name: str, value: Any) -> bool:
    if name in BOUNDS:
        return BOUNDS[name][0] <= int(value) <= BOUNDS[name][1]
    choices = {"weights_dtype": tuple(SDNQ_BYTES), "quantized_matmul_dtype": MATMUL_TYPES}
    return name not in choices or value in choices[name]


def _expected(name: str) -> str:
    if name in BOUNDS:
        return f"a whole number from {BOUNDS[name][0]} to {BOUNDS[name][1]}"
    return {"weights_dtype": f"one of {', '.join(SDNQ_BYTES)}", "quantized_matmul_dtype": f"one of {', '.join(MATMUL_TYPES)}"}.get(
        name, "true or false"
    )
