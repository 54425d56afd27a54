"""Parses the configuration file of LyCORIS, ``lycoris_config.json``, and reports every problem with one at once.

The library ignores keywords that it does not know. This parser refuses them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.lycoris.algorithms import ALGORITHMS, MAPS, OPTION, WITHOUT_RANK, contradictions
from trainer_engine.config.lycoris.module_patterns import pattern_problems
from trainer_engine.contract.errors import Problem, errors_in
from trainer_engine.contract.messages import Suggestions

WHOLE_MATRIX_RANK = 10_000
"""Value of ``linear_dim`` if ``full_matrix`` is set and ``linear_dim`` is not."""

LARGEST = 10**18
"""Limit of numbers in a file. NaN and infinity are refused."""

Check = tuple[Callable[[Any], bool], str]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def _whole(value: Any) -> bool:
    return _number(value) and value == int(value)


FLAG: Check = (lambda value: isinstance(value, bool), "true or false")
SHARE: Check = (lambda value: _number(value) and 0 <= value < 1, "a number from 0 to below 1")
POSITIVE: Check = (lambda value: _number(value) and value > 0, "a number above 0")
COUNT: Check = (lambda value: _whole(value) and value > 0, "a whole number above 0")
FACTOR: Check = (lambda value: _whole(value) and (value > 0 or value == -1), "a whole number above 0, or -1 to let the library choose")
LIMIT: Check = (lambda value: value is False or (_number(value) and value >= 0), "false, or a number that is not negative")

ARGUMENTS: Mapping[str, Check] = MappingProxyType(
    {
        "factor": FACTOR,
        "full_matrix": FLAG,
        "bypass_mode": FLAG,
        "dropout": SHARE,
        "rank_dropout": SHARE,
        "module_dropout": SHARE,
        "use_tucker": FLAG,
        "use_scalar": FLAG,
        "weight_decompose": FLAG,
        "dora_wd": FLAG,
        "wd_on_output": FLAG,
        "decompose_both": FLAG,
        "unbalanced_factorization": FLAG,
        "rescaled": FLAG,
        "constraint": LIMIT,
        "block_size": COUNT,
        "conv_dim": COUNT,
        "conv_alpha": POSITIVE,
        "train_norm": FLAG,
    }
)
SCHEDULED: Mapping[str, Check] = MappingProxyType({"tlora_min_rank": COUNT, "tlora_alpha": POSITIVE})
"""Keys of tlora, which set how the number of active ranks grows as the noise falls."""
NOT_AN_ADAPTER = "not_an_adapter"
OWN_KEYS = ("algo", "multiplier", "linear_dim", "linear_alpha", "apply_preset")
LISTS = ("target_module", "target_name", "exclude_name", "unet_target_module", "unet_target_name")
WITHOUT_EFFECT = ("text_encoder_target_module", "text_encoder_target_name")
FLAGS = ("enable_conv", "use_fnmatch")
IN_MAPS: Mapping[str, Check] = MappingProxyType(
    {"dim": COUNT, "linear_dim": COUNT, "alpha": POSITIVE, "linear_alpha": POSITIVE, **ARGUMENTS}
)
LIBRARY_NAMES = {"weight_decompose": "dora_wd"}
"""Name in files -> keyword of ``create_lycoris``."""
LIBRARY_NAMES_IN_MAPS = {"linear_dim": "dim", "linear_alpha": "alpha", "dora_wd": "weight_decompose", "wd_on_output": "wd_on_out"}


@dataclass(frozen=True)
class LycorisConfig:
    """The contents of a valid LyCORIS file."""

    algo: str
    multiplier: float
    linear_dim: int
    linear_alpha: float
    arguments: Mapping[str, Any]
    """Additional keywords of ``create_lycoris``."""
    preset: Mapping[str, Any]
    """Every key of the library's preset, since the library keeps presets from one call to the next."""
    min_rank: int
    """tlora: active ranks at the highest noise."""
    rank_power: float
    """tlora: exponent with which active ranks grow; 1 is linear."""
    document: Mapping[str, Any]
    """The unchanged document."""


def parse_lycoris(
    document: object, spec: FamilySpec | None, modules: Collection[str] | None = None
) -> tuple[LycorisConfig | None, list[Problem]]:
    """Returns the adapter that a document describes, or None if it has an error, and all errors, warnings and notes.

    Without ``spec``, checks that depend on the family are skipped. Without ``modules``, the names of the network's modules, checks that
    depend on the network are skipped. Problems are named ``lycoris_config.<key>``.
    """
    if not isinstance(document, Mapping):
        expected = 'an object: {"algo": "lokr", ...}'
        return None, [
            Problem.error(OPTION, "not_an_object", "The LyCORIS file is not a JSON object.", got=type(document).__name__, expected=expected)
        ]
    if document and _known_keys().isdisjoint(document):
        message = "The file has none of the keys of a LyCORIS file."
        return None, [Problem.error(OPTION, NOT_AN_ADAPTER, message, expected='{"algo": "lokr", ...}')]
    suggestions = Suggestions()
    problems = [*_algorithm(document), *_numbers(document), *_arguments(document, suggestions)]
    problems += [*_preset(document, spec, suggestions), *contradictions(document)]
    problems += pattern_problems(document, modules)
    if errors_in(problems):
        return None, problems
    return _build(document, spec), problems


def _known_keys() -> set[str]:
    return {*OWN_KEYS, *ARGUMENTS, *SCHEDULED}


def is_like_an_adapter(document: object) -> bool:
    """Whether a document may be shown as a LyCORIS file, even if invalid: it has an algorithm and another key of such files."""
    return isinstance(document, Mapping) and isinstance(document.get("algo"), str) and len(_known_keys() & document.keys()) > 1


def _problem(key: str, code: str, message: str, *, got: object, expected: str, hint: str = "") -> Problem:
    return Problem.error(f"{OPTION}.{key}", code, message, got=got, expected=expected, hint=hint)


def _algorithm(document: Mapping[str, Any]) -> Iterator[Problem]:
    algo, known = document.get("algo"), f"one of {', '.join(ALGORITHMS)}"
    if algo is None:
        yield _problem("algo", "missing", "algo is missing.", got=None, expected=known)
    elif not isinstance(algo, str) or algo.lower() not in ALGORITHMS:
        yield _problem("algo", "unknown_algorithm", f"LyCORIS has no algorithm {algo!r}.", got=algo, expected=known)


def _numbers(document: Mapping[str, Any]) -> Iterator[Problem]:
    algo = str(document.get("algo", "")).lower()
    has_rank = algo not in WITHOUT_RANK
    is_whole = algo == "lokr" and document.get("full_matrix") is True
    wanted: dict[str, tuple[Check, bool]] = {
        "multiplier": (POSITIVE, True),
        "linear_dim": (COUNT, has_rank and not is_whole),
        "linear_alpha": (POSITIVE, has_rank),
    }
    for key, ((is_right, expected), required) in wanted.items():
        value = document.get(key)
        if value is None and required:
            yield _problem(key, "missing", f"{key} is missing.", got=None, expected=expected)
        elif value is not None and not is_right(value):
            yield _problem(key, "wrong_value", f"{key} is not {expected}.", got=value, expected=expected)


def _arguments(document: Mapping[str, Any], suggestions: Suggestions) -> Iterator[Problem]:
    scheduled = SCHEDULED if str(document.get("algo", "")).lower() == "tlora" else {}
    known = {**ARGUMENTS, **scheduled}
    for key, value in document.items():
        if key in OWN_KEYS or value is None:
            continue
        if key in known:
            yield from _checked(key, value, known[key])
        elif key in SCHEDULED:
            yield _problem(key, "not_for_algorithm", f"{key} belongs to the algorithm tlora.", got=value, expected="nothing")
        else:
            yield _unknown(key, key, [*OWN_KEYS, *known], suggestions)


def _checked(path: str, value: Any, check: Check) -> Iterator[Problem]:
    is_right, expected = check
    if not is_right(value):
        yield _problem(path, "wrong_value", f"{path} is not {expected}.", got=value, expected=expected)


def _unknown(path: str, name: str, known: list[str], suggestions: Suggestions) -> Problem:
    hint = suggestions.nearest(name, known)
    return _problem(path, "unknown_key", f"There is no key {name!r}.", got=name, expected=f"one of {', '.join(sorted(known))}", hint=hint)


def _preset(document: Mapping[str, Any], spec: FamilySpec | None, suggestions: Suggestions) -> Iterator[Problem]:
    preset = document.get("apply_preset")
    if not preset and preset in (None, {}):
        message = "The LyCORIS file has no apply_preset: every linear layer and convolution is adapted."
        yield Problem.note(f"{OPTION}.apply_preset", "everything_adapted", message)
        return
    if not isinstance(preset, Mapping):
        yield _problem("apply_preset", "not_an_object", "apply_preset is not an object.", got=preset, expected="an object")
        return
    for key, value in preset.items():
        path = f"apply_preset.{key}"
        if key in LISTS:
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                yield _problem(path, "not_a_list", f"{path} is not a list of names.", got=value, expected='a list: ["FeedForward"]')
            elif key.endswith("target_module"):
                yield from _classes(path, value, spec)
        elif key in MAPS:
            yield from _overrides(path, value, spec if key == "module_algo_map" else None, suggestions)
        elif key in FLAGS:
            yield from _checked(path, value, FLAG)
        elif key in WITHOUT_EFFECT:
            yield Problem.note(f"{OPTION}.{path}", "no_effect", "Text encoders are not adapted: the key has no effect.", got=value)
        else:
            yield _unknown(path, key, [*LISTS, *MAPS, *FLAGS], suggestions)


def _classes(path: str, names: list[str], spec: FamilySpec | None) -> Iterator[Problem]:
    """Refuses class names that the network does not have. The library would ignore them silently."""
    if spec is None or not spec.adapters.module_classes:
        return
    for name in names:
        if name not in spec.adapters.module_classes and name not in spec.adapters.class_aliases:
            message = f"{spec.title} has no modules of the class {name}."
            yield _problem(path, "unknown_class", message, got=name, expected=f"one of {', '.join(spec.adapters.module_classes)}")


def _overrides(path: str, value: Any, spec: FamilySpec | None, suggestions: Suggestions) -> Iterator[Problem]:
    if not isinstance(value, Mapping):
        yield _problem(path, "not_an_object", f"{path} is not an object.", got=value, expected='an object: {"FeedForward": {"factor": 8}}')
        return
    yield from _classes(path, list(value), spec)
    for name, changes in value.items():
        if not isinstance(changes, Mapping):
            yield _problem(f"{path}.{name}", "not_an_object", f"{path}.{name} is not an object.", got=changes, expected="an object")
            continue
        for key, one in changes.items():
            where = f"{path}.{name}.{key}"
            if key == "algo":
                if not isinstance(one, str) or one.lower() not in ALGORITHMS:
                    expected = f"one of {', '.join(ALGORITHMS)}"
                    yield _problem(where, "unknown_algorithm", f"LyCORIS has no algorithm {one!r}.", got=one, expected=expected)
            elif key in IN_MAPS:
                yield from _checked(where, one, IN_MAPS[key])
            else:
                yield _unknown(where, key, ["algo", *IN_MAPS], suggestions)


def _build(document: Mapping[str, Any], spec: FamilySpec | None) -> LycorisConfig:
    given = {key: value for key, value in document.items() if value is not None}
    arguments = {LIBRARY_NAMES.get(key, key): given[key] for key in ARGUMENTS if key in given}
    return LycorisConfig(
        algo=given["algo"].lower(),
        multiplier=float(given["multiplier"]) if "multiplier" in given else 1.0,
        linear_dim=int(given.get("linear_dim", WHOLE_MATRIX_RANK if given.get("full_matrix") else 1)),
        linear_alpha=float(given.get("linear_alpha", 1)),
        arguments=MappingProxyType(arguments),
        preset=MappingProxyType(_library_preset(given.get("apply_preset") or {}, spec)),
        min_rank=int(given.get("tlora_min_rank", 1)),
        rank_power=float(given.get("tlora_alpha", 1.0)),
        document=MappingProxyType(dict(document)),
    )


def _library_preset(preset: Mapping[str, Any], spec: FamilySpec | None) -> dict[str, Any]:
    """Returns the preset with every key that the library keeps, and with the current names of classes from older libraries."""
    aliases = spec.adapters.class_aliases if spec else {}
    classes = [*preset.get("target_module", []), *preset.get("unet_target_module", [])]
    overrides = preset.get("module_algo_map", {})
    everything = not preset
    return {
        "enable_conv": preset.get("enable_conv", everything),
        "target_module": ["Linear", "Conv1d", "Conv2d", "Conv3d"] if everything else _renamed(classes, aliases),
        "target_name": [*preset.get("target_name", []), *preset.get("unet_target_name", [])],
        "exclude_name": list(preset.get("exclude_name", [])),
        "use_fnmatch": preset.get("use_fnmatch", False),
        "module_algo_map": {new: _for_library(overrides[name]) for name in overrides for new in _renamed([name], aliases)},
        "name_algo_map": {name: _for_library(changes) for name, changes in preset.get("name_algo_map", {}).items()},
    }


def _renamed(classes: list[str], aliases: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Returns the class names with each older name replaced by all the classes that it means, and itself."""
    return list(dict.fromkeys(new for name in classes for new in (*aliases.get(name, ()), name)))


def _for_library(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {LIBRARY_NAMES_IN_MAPS.get(key, key): value.lower() if key == "algo" else value for key, value in changes.items()}
