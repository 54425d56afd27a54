"""Under which names the images of a validation lie: no two in the same file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, count
from pathlib import PurePath

from trainer_engine.config.prompt_library import LONGEST_SHORTNAME_BYTES, file_name
from trainer_engine.datasets.sources.base import printable


def name_after(file: str) -> str:
    """A shortname for what a file of a dataset lends: its name without folders and ending, as long as a library's may be."""
    name = re.sub(r"[^\w.-]+", "_", printable(PurePath(file).stem))
    return name.encode("utf-8")[:LONGEST_SHORTNAME_BYTES].decode("utf-8", "ignore")


def apart(shortnames: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The names, with a number where the images of one would take the files of an earlier one, also where a disk ignores case.

    ``labels`` stand behind the names of some of the images.
    """
    taken: set[str] = set()
    found = []
    for shortname in shortnames:
        numbered = chain([shortname], (f"{shortname}-{number}" for number in count(2)))
        found.append(next(name for name in numbered if not taken & _files(name, labels)))
        taken |= _files(found[-1], labels)
    return found


def _files(shortname: str, labels: Sequence[str]) -> set[str]:
    return {file_name(name).casefold() for name in (shortname, *(f"{shortname}_{label}" for label in labels))}
