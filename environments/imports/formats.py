"""The table of formats, and the way from documents to a checked environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from environments.imports import ai_toolkit, kohya, musubi, onetrainer, own
from environments.imports.checking import Imported, check_draft
from environments.imports.documents import MOST_DOCUMENTS, Document, ImportRefused, refused
from environments.imports.draft import Draft
from environments.imports.sd_arguments import flattened
from environments.paths import Home
from trainer_engine.contract.errors import Problem


@dataclass(frozen=True)
class Format:
    """One format of configurations."""

    name: str
    title: str
    recognises: Callable[[Any], bool]
    """Whether a parsed document has this format."""
    translate: Callable[[list[Any], Draft], None]
    """Fills a draft from all documents."""


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        one.name: one
        for one in (
            Format(own.FORMAT, "an exported configuration", own.recognises, own.translate),
            Format(ai_toolkit.FORMAT, "ai-toolkit", ai_toolkit.recognises, ai_toolkit.translate),
            Format(onetrainer.FORMAT, "OneTrainer", onetrainer.recognises, onetrainer.translate),
            Format(musubi.FORMAT, "musubi-tuner", musubi.recognises, musubi.translate),
            Format(kohya.FORMAT, "sd-scripts", kohya.recognises, kohya.translate),
        )
    }
)
"""Format -> its recogniser and translator, in the order in which they are asked."""


def recognise(documents: Sequence[Document]) -> Format:
    """The format that one of the documents has. Raises ImportRefused."""
    for one in FORMATS.values():
        if any(one.recognises(document.value) for document in documents):
            return one
    expected = f"one of {', '.join(FORMATS)}"
    message = "The format is not recognised by its content."
    raise refused("format", "unknown_format", message, got=documents[0].name, expected=expected, hint="name it with --from, or as format")


def translate(
    documents: Sequence[Document], *, name: str, home: Home, format_name: str | None = None, family: str | None = None
) -> Imported:
    """The environment ``name`` that the documents describe, checked, and what was left out. Raises ImportRefused."""
    if not documents:
        raise refused("config", "missing", "Nothing was given to import.")
    if len(documents) > MOST_DOCUMENTS:
        raise refused("config", "too_many", f"More than {MOST_DOCUMENTS} files were given.", got=len(documents))
    if format_name is not None and format_name not in FORMATS:
        message = f"There is no format {format_name[:100]!r}."
        raise refused("format", "unknown_format", message, got=format_name, expected=f"one of {', '.join(FORMATS)}")
    chosen = FORMATS[format_name] if format_name is not None else recognise(documents)
    wrong = [document.name for document in documents if not isinstance(document.value, dict) and not _may_be_list(chosen)]
    if wrong:
        raise refused(wrong[0], "wrong_shape", f"{wrong[0]} holds a list; {chosen.title} has an object of settings.", expected="an object")
    draft = Draft(name)
    if family is not None:
        draft.put("model_family", family, "model_family")
    chosen.translate([document.value for document in documents], draft)
    problems: list[Problem] = draft.ledger.problems
    if problems:
        raise ImportRefused(problems)
    return check_draft(draft, home, chosen.name)


def _may_be_list(chosen: Format) -> bool:
    return chosen.name in (own.FORMAT, onetrainer.FORMAT)


def suggested_name(documents: Sequence[Document]) -> str | None:
    """The name that a configuration gives its result, if any."""
    for document in documents:
        value = document.value if isinstance(document.value, Mapping) else {}
        config = value.get("config")
        for found in (config.get("name") if isinstance(config, Mapping) else None, flattened([value]).get("output_name")):
            if isinstance(found, str) and found.strip():
                return found.strip()
    return None
