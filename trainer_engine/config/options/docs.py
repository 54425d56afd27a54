"""Generates ``docs/options.md`` from the registry: ``python -m trainer_engine.config.options.docs > docs/options.md``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

from trainer_engine.config.families import specs
from trainer_engine.config.option import OptionSpec
from trainer_engine.config.options.gone import RENAMED
from trainer_engine.config.options.hints import HINTS
from trainer_engine.config.options.refused import HEADINGS, Reason, refusal_of
from trainer_engine.config.options.registry import GROUPS, REGISTRY, not_available

HEAD = """# Options

This page is generated from the option registry by `python -m trainer_engine.config.options.docs`; a test checks that it is up to date.

You can write an option with or without leading dashes, and its value as text or as a JSON type. `null` means the default; so does an empty
string, unless the option takes text. Values override each other in this order: the default on this page, the default of the model family,
the value in your environment, the value in your request.
"""

HINTS_HEAD = """
## Not needed

These options of the configuration format ask how to do something that this trainer does without being asked. They are accepted, with a
note that says why they have no effect.
"""

RENAMED_HEAD = """
## Former names

Options that older configurations call by another name. The former name goes on working.
"""

LATER_HEAD = """
## Known, refused

The configuration format also has these options. A value is refused instead of being ignored; only the default of the format is accepted.
`simpletuner check --config FILE` names all that stand in the way of a configuration.
"""


def as_text(value: object) -> str:
    """Formats a default as a person would type it."""
    if value is None or value == {} or value == "":
        return "empty"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


def describe(spec: OptionSpec) -> Iterator[str]:
    """Yields the lines of one option's section."""
    yield f"### `{spec.name}`"
    yield ""
    yield spec.help
    yield ""
    facts = ["must be given" if spec.required else f"default {as_text(spec.default)}"]
    facts.append(spec.expected if not spec.choices else "one of " + ", ".join(f"`{choice}`" for choice in spec.choices))
    if spec.aliases:
        facts.append("also called " + ", ".join(f"`{alias}`" for alias in spec.aliases))
    if spec.synonyms:
        facts.append("also accepted: " + ", ".join(f"`{word or 'empty'}` for `{choice}`" for word, choice in spec.synonyms.items()))
    yield "; ".join(facts) + "."
    if spec.later:
        yield ""
        yield "Known, not available yet: " + ", ".join(f"`{choice}`" for choice in spec.later) + "."
    for choice, reason in spec.refused.items():
        yield ""
        yield f"Refused: `{choice}`: {reason}."
    yield ""


def family_defaults() -> Iterator[str]:
    """Yields the lines of the section with the defaults that each family changes."""
    yield "## Defaults of the families"
    yield ""
    for family in specs().values():
        changed = ", ".join(f"`{name}={value}`" for name, value in family.defaults.items()) or "none"
        aliases = f" (also {', '.join(family.aliases)})" if family.aliases else ""
        flavours = ", ".join(f"`{name}`" for name in family.flavours)
        yield f"- **{family.title}**, `{family.name}`{aliases}: {changed}. Flavours: {flavours}."
        for flavour, defaults in family.flavour_defaults.items():
            yield f"  - `{flavour}`: " + ", ".join(f"`{name}={value}`" for name, value in defaults.items()) + "."
    yield ""
    yield "## Families that can train their text encoders"
    yield ""
    able = [f"**{family.title}**, `{family.name}`" for family in specs().values() if family.trainable_text_encoders]
    yield f"With `train_text_encoder`: {'; '.join(able)}."
    yield ""
    yield "## Families that follow control images"
    yield ""
    for option in ("controlnet", "control"):
        able = [f"**{family.title}**, `{family.name}`" for family in specs().values() if getattr(family, option) is not None]
        yield f"With `{option}`: {'; '.join(able)}."
        yield ""


def refused() -> Iterator[str]:
    """Yields the lines of the options that are refused, by the reason of the refusal and by what they are for."""
    found: dict[Reason, dict[str, list[str]]] = {reason: {} for reason in Reason}
    for name in not_available():
        if name not in HINTS:
            refusal = refusal_of(name)
            found[refusal.reason].setdefault(refusal.about, []).append(f"`{name}`")
    for reason, options in found.items():
        if options:
            yield f"### {HEADINGS[reason]}"
            yield ""
            yield from (f"- {', '.join(names)}: {about}." for about, names in sorted(options.items()))
            yield ""


def page() -> str:
    """Returns the complete page."""
    lines = [HEAD]
    for group, cls in GROUPS.items():
        lines += [f"## {group.capitalize()}", "", inspect.cleandoc(cls.__doc__ or ""), ""]
        for spec in REGISTRY.values():
            if spec.group == group:
                lines += describe(spec)
    lines += family_defaults()
    lines += [HINTS_HEAD, *(f"- `{name}`: {why}." for name, why in HINTS.items())]
    lines += [RENAMED_HEAD, *(f"- `{former}`: `{name}`." for former, name in RENAMED.items())]
    return "\n".join([*lines, LATER_HEAD, *refused()]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
