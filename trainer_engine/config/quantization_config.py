"""Quantised types by component (``quantization_config``): settings of diffusers' quantizers that name a type of ``config.precisions``.

Each entry is an option of its own here, so that the object is another way to write these options.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from trainer_engine.config.json_fields import read_json
from trainer_engine.config.option import holds_json
from trainer_engine.config.precisions import SDNQ_BYTES
from trainer_engine.contract.errors import Problem

OPTION = "quantization_config"
NETWORKS = ("transformer", "unet")
COMPONENTS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(NETWORKS, "base_model_precision"),
        **dict.fromkeys(("text_encoder", "text_encoder_1"), "text_encoder_1_precision"),
        "text_encoder_2": "text_encoder_2_precision",
        "text_encoder_3": "text_encoder_3_precision",
        "text_encoder_4": "text_encoder_4_precision",
    }
)
"""Component -> the option that names its type."""
TORCHAO: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("int8wo", "int8_weight_only"), "int8-torchao"),
        **dict.fromkeys(("int8dq", "int8_dynamic_activation_int8_weight"), "int8dq-torchao"),
        **dict.fromkeys(("int4wo", "int4_weight_only"), "int4-torchao"),
        **dict.fromkeys(("float8wo", "float8_weight_only"), "fp8wo-torchao"),
        **dict.fromkeys(("float8dq", "float8_dynamic_activation_float8_weight"), "fp8-torchao"),
    }
)
"""``quant_type`` of TorchAoConfig -> the type here."""
QUANTO: Mapping[str, str] = MappingProxyType({"int8": "int8-quanto", "int4": "int4-quanto", "int2": "int2-quanto", "float8": "fp8-quanto"})
"""``weights_dtype`` of QuantoConfig -> the type here."""
NF4, COMPUTE = "nf4-bnb", "bnb_4bit_compute_dtype"
EXAMPLE = '{"transformer": {"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}}'


def quantised_components(text: str | None) -> tuple[dict[str, str], list[Problem]]:
    """Returns the type that each option gets, and every problem. Components with a problem have no type.

    A text that is the path of a file names none: what starts a run puts the content in its place.
    """
    if not text:
        return {}, []
    if not holds_json(text):
        message = f"{OPTION} is the path of a file, which is read when a run starts."
        return {}, [Problem.note(OPTION, "read_at_start", message, got=text[:100])]
    document, problems = read_json(text, OPTION)
    if not problems and not isinstance(document, Mapping):
        hint = "a type for the network alone is base_model_precision"
        problems = [Problem.error(OPTION, "not_an_object", f"{OPTION} is no JSON object.", expected=EXAMPLE, hint=hint)]
    types: dict[str, str] = {}
    for name, settings in document.items() if isinstance(document, Mapping) else ():
        place = f"{OPTION}.{name[:100]}"
        found, wrong = _type_of(name, settings, place)
        problems += wrong
        if found and types.setdefault(COMPONENTS[name], found) != found:
            problems.append(Problem.error(place, "conflicting_values", f"{COMPONENTS[name]} gets two types.", got=found))
    return types, problems


def _type_of(name: str, settings: object, place: str) -> tuple[str, list[Problem]]:
    """The type of one component, or an empty text and the problem."""
    if name not in COMPONENTS:
        message = f"{name[:100]} is no component that can be quantised."
        return "", [Problem.error(place, "unknown_component", message, got=name[:100], expected=f"one of {', '.join(COMPONENTS)}")]
    if not isinstance(settings, Mapping):
        return "", [Problem.error(place, "not_an_object", "The settings of a component are an object.", expected=EXAMPLE)]
    asked = dict(settings)
    arithmetic = asked.pop(COMPUTE, None)
    kind, leftover = _known_type(asked)
    if kind and not leftover:
        message = f"Weights are multiplied in the type of mixed_precision: {COMPUTE} has no effect."
        return kind, [] if arithmetic is None else [Problem.note(place, "no_effect", message, got=str(arithmetic)[:100])]
    if leftover:
        names = ", ".join(sorted(map(str, leftover)))[:200]
        message = f"{names}: this trainer quantises without {'these settings' if len(leftover) > 1 else 'this setting'}."
        return "", [Problem.error(place, "unknown_setting", message, got=names, expected=EXAMPLE, hint=f"leave out {names}")]
    known = f"bitsandbytes NF4, torchao {', '.join(TORCHAO)}, quanto {', '.join(QUANTO)}, sdnq {', '.join(SDNQ_BYTES)}"
    hint = f"{COMPONENTS[name]} lists every type"
    return "", [Problem.error(place, "unknown_type", "These settings name no type that is available.", expected=known, hint=hint)]


def _known_type(settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(the type that the settings name or an empty text, the settings that say something else)."""
    method = str(settings.pop("quant_method", "")).lower()
    if "quant_type" in settings:
        return TORCHAO.get(str(settings.pop("quant_type")).lower(), ""), settings
    if "weights_dtype" in settings:
        word = str(settings.pop("weights_dtype")).lower()
        if method == "sdnq":
            return (f"{word}-sdnq" if word in SDNQ_BYTES else ""), settings
        return QUANTO.get(word, ""), settings
    if settings.pop("load_in_4bit", False) is True and str(settings.pop("bnb_4bit_quant_type", "fp4")).lower() == "nf4":
        if not settings.get("bnb_4bit_use_double_quant", False):
            settings.pop("bnb_4bit_use_double_quant", None)
        return NF4, settings
    return "", {}


def foreign_components(text: str | None, known: frozenset[str], title: str) -> Iterator[Problem]:
    """Yields an error for each component that the pipelines of a family do not have. ``known``: those that they have."""
    document = read_json(text, OPTION)[0] if text and holds_json(text) else None
    for name in document if isinstance(document, Mapping) else ():
        if name in COMPONENTS and name.replace("_1", "") not in known:
            message = f"{title} has no {name}."
            expected = ", ".join(sorted(known.intersection(COMPONENTS)))
            yield Problem.error(f"{OPTION}.{name}", "not_for_family", message, got=name, expected=expected)
