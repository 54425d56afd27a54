"""Words that configurations of several trainers share, and the options that they mean."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from environments.imports.draft import Draft
from environments.imports.source import Source
from trainer_engine.config.families import specs

OPTIMIZERS: Mapping[str, str] = {
    **dict.fromkeys(("adamw", "adamwfused"), "torch-adamw"),
    "adam": "torch-adam",
    "sgd": "torch-sgd",
    "radam": "torch-radam",
    "nadam": "torch-nadam",
    "rmsprop": "torch-rmsprop",
    "adagrad": "torch-adagrad",
    "adadelta": "torch-adadelta",
    "adafactor": "torch-adafactor",
    "adamax": "torch-adamax",
    "adam8bit": "bnb-adam8bit",
    "adamw8bit": "bnb-adamw8bit",
    "adagrad8bit": "bnb-adagrad8bit",
    "pagedadamw": "bnb-adamw-paged",
    "pagedadamw32bit": "bnb-adamw-paged",
    "pagedadamw8bit": "bnb-adamw8bit-paged",
    "lion": "optimi-lion",
    "lion8bit": "bnb-lion8bit",
    "pagedlion": "bnb-lion-paged",
    "pagedlion8bit": "bnb-lion8bit-paged",
    "ademamix": "bnb-ademamix",
    "ademamix8bit": "bnb-ademamix8bit",
    "stableadamw": "optimi-stableadamw",
    "adan": "optimi-adan",
    **dict.fromkeys(("adamwschedulefree", "schedulefreeadamw"), "adamw_schedulefree"),
    **dict.fromkeys(("prodigy", "prodigyopt"), "prodigy"),
}
"""Name of an optimizer, in lower case without separators -> ours."""
SUBSTITUTE = "torch-adamw"
SCHEDULERS: Mapping[str, str] = {
    **{name: name for name in ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")},
    "cosine_with_hard_restarts": "cosine_with_restarts",
    "cosine_annealing": "cosine",
}
ARGUMENTS: Mapping[str, str] = {"weight_decay": "adam_weight_decay", "eps": "adam_epsilon"}
PRECISIONS: Mapping[str, str] = {
    **dict.fromkeys(("bf16", "bfloat16", "bfloat_16"), "bf16"),
    **dict.fromkeys(("fp16", "float16", "float_16"), "fp16"),
    **dict.fromkeys(("no", "fp32", "float32", "float_32", "float"), "no"),
}
"""Name of a number format -> ``mixed_precision``."""
BRACKETS = frozenset("()[]")


def plain(word: str) -> str:
    """A word in lower case, with underscores; parts of a name in camel case are separated."""
    separated = re.sub(r"(?<=[a-z0-9])(?=[A-Z][A-Za-z])", "_", word)
    return re.sub(r"[^a-z0-9]+", "_", separated.lower()).strip("_")


def find_model(words: list[str], weights: str | None) -> tuple[str, str] | None:
    """(family, flavour) of a repository, of architecture words, and of a name of a weight file, in this order; None if none is known."""
    for spec in specs().values():
        for flavour, repository in spec.flavours.items():
            if weights is not None and weights.strip("/").lower() == repository.lower():
                return spec.name, flavour
    known = {word: (spec.name, flavour or spec.default_flavour) for spec in specs().values() for word, flavour in spec.known_as.items()}
    for word in words:
        if plain(word) in known or word.lower() in known:
            return known.get(plain(word)) or known[word.lower()]
    stem = plain(re.sub(r"\.(safetensors|ckpt|pth?)$", "", re.split(r"[/\\]", (weights or "").rstrip("/\\"))[-1]))
    found = [word for word in known if re.search(rf"(?:^|_){re.escape(word)}(?:_|$)", stem)]
    return known[max(found, key=len)] if found else None


def use_model(draft: Draft, words: list[str], weights: str | None, origin: str) -> None:
    """Sets family, flavour and weights; a model that is not recognised is a problem of the import."""
    by_weights, by_words = find_model([], weights), find_model(words, None)
    same = by_weights is not None and (by_words is None or by_words[0] == by_weights[0])
    found = by_weights if same else by_words  # the name of the weights says more: it also names the flavour
    given = str(draft.options.get("model_family", ""))
    if given:
        draft.put("model_flavour", found[1] if found and draft.spec and found[0] == draft.spec.name else None, origin)
    elif found is not None:
        draft.put("model_family", found[0], origin)
        draft.put("model_flavour", found[1], origin)
    elif words:
        draft.put("model_family", words[0], origin)
    draft.put("pretrained_model_name_or_path", weights, origin)


def use_optimizer(draft: Draft, source: Source, key: str, arguments: Mapping[str, Any], origin: str) -> None:
    """Sets the optimizer and its arguments. An unknown one is left out, and AdamW takes its place."""
    name = source.text(key) or "adamw"
    known = OPTIMIZERS.get(re.sub(r"[^a-z0-9]", "", name.rsplit(".", 1)[-1].lower()))
    draft.put("optimizer", known or SUBSTITUTE, source.origin(key))
    if known is None:
        draft.ledger.leave(source.origin(key), name, f"this trainer does not have this optimizer; {SUBSTITUTE} takes its place")
    rest = {}
    for argument, value in arguments.items():
        if argument == "betas" and isinstance(value, (list, tuple)) and len(value) >= 2:
            draft.put("optimizer_beta1", value[0], f"{origin}.betas")
            draft.put("optimizer_beta2", value[1], f"{origin}.betas")
        elif argument in ARGUMENTS:
            draft.put(ARGUMENTS[argument], value, f"{origin}.{argument}")
        elif known is None:
            draft.ledger.leave(f"{origin}.{argument}", value, "it belongs to an optimizer that was left out")
        elif value is not None:
            rest[argument] = value
    if rest:
        text = ",".join(f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in rest.items())
        draft.put("optimizer_config", text, origin)


def use_scheduler(draft: Draft, name: str | None, warmup: float | None, origin: str, warmup_origin: str) -> None:
    """Sets the schedule of the learning rate. A warm-up below 1 is a share of the run, which needs a length in steps."""
    known = SCHEDULERS.get(plain(name or "constant"))
    if known is None:
        draft.ledger.leave(origin, name, "this trainer does not have this schedule; the learning rate stays constant")
    steps = warmup or 0
    if 0 < steps < 1:
        steps = steps * float(draft.options.get("max_train_steps", 0))
    if warmup and steps < 1:
        draft.ledger.leave(warmup_origin, warmup, "a share of the run needs a run with a length in steps; set lr_warmup_steps")
    chosen = known or "constant"
    draft.put("lr_scheduler", "constant_with_warmup" if chosen == "constant" and steps >= 1 else chosen, origin)
    draft.put("lr_warmup_steps", round(steps), warmup_origin)


def use_precision(draft: Draft, name: str | None, origin: str) -> None:
    """Sets ``mixed_precision``."""
    known = PRECISIONS.get((name or "").lower())
    draft.put("mixed_precision", known, origin)
    if name and known is None:
        draft.ledger.leave(origin, name, "the arithmetic is bf16, fp16 or fp32")


def key_values(texts: list[str], source: Source, key: str) -> dict[str, Any]:
    """Arguments in the form ``name=value``, with values as numbers, booleans or text."""
    found: dict[str, Any] = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not mark:
            source.ledger.wrong(source.origin(key), text, "name=value")
            continue
        found[name.strip()] = _value(value.strip().strip("\"'"))
    return found


def _value(text: str) -> Any:
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if re.fullmatch(r"[+-]?\d{1,15}", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,3})?", lowered) and math.isfinite(float(text)):
        return float(text)
    inner = text[1:] if text.startswith(("(", "[")) else text
    inner = inner[:-1] if inner.endswith((")", "]")) else inner
    if "," in inner and not BRACKETS & set(inner):
        return [_value(part.strip()) for part in text.strip("()[] ").split(",") if part.strip()]
    return text


def as_json(value: Any) -> str:
    """Compact JSON, for options that hold a document."""
    return json.dumps(value, ensure_ascii=False)
