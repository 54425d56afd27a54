"""Removes texts from captions and replaces others: ``caption_filter_list``.

Entries without special characters are removed here. As soon as one is a regular expression, all are applied by a helper process with limits
of time and memory, since a pattern of a user may never end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer_engine.config.datasets.lists import filters_in
from trainer_engine.config.helper_process import MEMORY_BYTES, lines_of
from trainer_engine.config.json_fields import WrongValue
from trainer_engine.contract.files import read_document, read_small
from trainer_engine.datasets.text import NEWLINE, NotText, decode

REPLACER = Path(__file__).with_name("caption_replacer.py")
REPLACEMENT = re.compile(r"s/((?:[^/\\]|\\.)*)/((?:[^/\\]|\\.)*)/([gi]*)", re.DOTALL)
SPECIAL = re.compile(r"[\\^$.|?*+()\[{]")
"""Characters that mean something else in a regular expression."""
LONGEST_CAPTION = 100_000
LEAST_CPU_SECONDS, MOST_CPU_SECONDS = 2, 60
APPLIED_IN_A_SECOND = 50_000
"""Number of times that an ordinary rule is applied to an ordinary caption in a second, on a slow machine."""
WALL_FACTOR = 10
"""An overloaded machine gives a process this share of its time."""


class FilterFails(ValueError):
    """An entry of a list cannot be applied. The message continues "entry NUMBER"; it does not repeat the entry."""

    def __init__(self, number: int, reason: str, code: str = "bad_pattern") -> None:
        super().__init__(f"entry {number} {reason}")
        self.code = code


@dataclass(frozen=True)
class Rule:
    """One entry of a list, as the helper process applies it."""

    text: str
    """What is removed as it stands; empty for a replacement."""
    find: str
    replace: str = ""
    ignore_case: bool = False
    optional: bool = True
    """Whether ``find`` need not be a regular expression."""


@dataclass(frozen=True)
class CaptionFilter:
    """The rules of a ``text_embeds`` set."""

    rules: tuple[Rule, ...]

    @classmethod
    def of(cls, given: str | tuple[str, ...]) -> CaptionFilter:
        """Reads the rules from a list, or from the file that a path names. Raises OSError, ValueError, FilterFails."""
        entries = _read(Path(given)) if isinstance(given, str) else given
        return cls(tuple(_rule(number, entry) for number, entry in enumerate(entries, 1)))

    def apply(self, captions: Sequence[str]) -> list[str]:
        """Returns the changed captions, in order; some may be empty. Raises FilterFails, OSError if the helper cannot be started."""
        if any(SPECIAL.search(rule.find) or not rule.text for rule in self.rules):
            return [caption.strip() for caption in self._applied_by_helper(captions)]
        changed = list(captions)
        for rule in self.rules:
            changed = [caption.replace(rule.text, "") for caption in changed]
        return [caption.strip() for caption in changed]

    def _applied_by_helper(self, captions: Sequence[str]) -> list[str]:
        seconds = min(LEAST_CPU_SECONDS + len(captions) * len(self.rules) // APPLIED_IN_A_SECOND, MOST_CPU_SECONDS)
        request = {
            "rules": [asdict(rule) for rule in self.rules],
            "captions": list(captions),
            "cpu_seconds": seconds,
            "memory_bytes": MEMORY_BYTES,
            "longest": LONGEST_CAPTION,
        }
        lines = lines_of(REPLACER, json.dumps(request).encode("ascii"), wall_seconds=seconds * WALL_FACTOR)
        for number, line in enumerate(lines[: len(self.rules)], 1):
            trouble = json.loads(line)
            if trouble:
                raise FilterFails(number, f"cannot be applied: {trouble}")
        if len(lines) <= len(self.rules):
            raise FilterFails(len(lines) + 1, f"takes too long: it was stopped after {seconds} s", code="pattern_too_slow")
        changed: list[str] = json.loads(lines[-1])
        return changed


def _read(path: Path) -> tuple[str, ...]:
    """Returns the entries in a file. Raises OSError, ValueError. Messages name lines and never repeat them."""
    try:
        text = decode(read_small(path))
    except NotText as error:
        raise ValueError(f"{path} {error}") from None
    try:
        found = read_document(text) if path.suffix.lower() == ".json" else [line for line in NEWLINE.split(text) if line.strip()]
        return filters_in(found)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except WrongValue as wrong:
        raise ValueError(f"{path} {wrong}") from None


def _rule(number: int, entry: str) -> Rule:
    replacement = REPLACEMENT.fullmatch(entry)
    if replacement:
        find, replace, flags = replacement.groups()
        return Rule("", find, replace.replace("\\/", "/"), "i" in flags, optional=False)
    if entry.startswith("s/") and entry.count("/") > 1:
        raise FilterFails(number, "looks like a replacement, but is not s/find/replace/: write \\/ for a slash inside")
    return Rule(entry, entry)
