"""Which files of a repository hold a split, by the conventions of the hub.

The card (README.md) may list them in ``configs``. Otherwise the names of files and folders say it: ``data/train-00000-of-00002.parquet``,
``train/0001.jpg``; without such names, every file belongs to the split train. Source: the hub's documentation of repository structures.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer_engine.config.plain_yaml import UnreadableYaml, parse_yaml
from trainer_engine.datasets.sources.base import WrongField
from trainer_engine.datasets.sources.hub.options import RowOptions

KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHARD = re.compile(r"(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.\w+\Z", re.ASCII)
WORD = re.compile(r"[^A-Za-z0-9]+")
METADATA = ("metadata.csv", "metadata.jsonl")
OTHER_DATA = (".tar", ".arrow", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".xml", ".gz", ".zst", ".lance", ".h5", ".hdf5")
LONGEST_PATTERN, MOST_PATTERNS = 250, 200
LARGEST_CARD_BYTES = 1 << 20
MOST_CARD_NODES = 50_000
"""Values in the settings of a card: those of a thousand configurations with their files."""
FENCE = "---"


class OtherFormat(WrongField):
    """The repository has data, but in no format that is read. The hub may hold a copy in parquet."""


@dataclass(frozen=True)
class ChosenFiles:
    """The files of one split, sorted."""

    tables: tuple[str, ...] = ()
    """Parquet files; empty if the rows are media files."""
    media: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    """Tables with a column ``file_name``, beside the media files that they are about."""

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.tables, *self.metadata, *self.media)


def choose_files(files: Collection[str], card: Mapping[str, Any], options: RowOptions, media_suffixes: Collection[str]) -> ChosenFiles:
    """Returns the files of the split that the settings name. Raises WrongField."""
    data = [name for name in sorted(files) if _is_data(name, media_suffixes)]
    configuration = _configuration(card, options.config_name, data)
    splits = _listed_splits(configuration, data) if "data_files" in configuration else _named_splits(data, configuration)
    usable = {split: found for split, names in splits.items() if (found := _by_format(names, media_suffixes)).all}
    if options.split in usable:
        return usable[options.split]
    if usable:
        message = f"there is no split {options.split!r}"
        raise WrongField("split", "split_not_found", message, choices=usable)
    raise _nothing_to_read(files)


def _is_data(name: str, media_suffixes: Collection[str]) -> bool:
    parts = name.split("/")
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - names in a repository are text
    is_hidden = any(part.startswith((".", "__")) for part in parts)
    return not is_hidden and (suffix == ".parquet" or suffix in media_suffixes or parts[-1] in METADATA)


def _by_format(names: Sequence[str], media_suffixes: Collection[str]) -> ChosenFiles:
    tables = tuple(name for name in names if name.endswith(".parquet") and not name.endswith("metadata.parquet"))
    if tables:
        return ChosenFiles(tables=tables)
    metadata = tuple(name for name in names if name.rpartition("/")[2] in METADATA)
    media = tuple(name for name in names if os.path.splitext(name)[1].lower() in media_suffixes)  # noqa: PTH122
    return ChosenFiles(media=media, metadata=metadata) if media else ChosenFiles()


def _nothing_to_read(files: Collection[str]) -> WrongField:
    scripts = [name for name in files if name.endswith(".py") and "/" not in name]
    others = sorted({suffix for name in files for suffix in OTHER_DATA if name.lower().endswith(suffix)})
    if scripts:
        message = f"it is made by the program {scripts[0]}, which is never run"
        return OtherFormat("dataset_name", "loading_script", message)
    if others:
        message = f"its data are {', '.join(others)} files; parquet files and folders of images are read"
        return OtherFormat("dataset_name", "other_format", message)
    return WrongField("dataset_name", "no_data", "it holds no parquet file and no image")


def _configuration(card: Mapping[str, Any], wanted: str, data: Sequence[str]) -> Mapping[str, Any]:
    """Returns the configuration of the card that is wanted, or its default one."""
    listed = card.get("configs")
    configs = [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
    by_name = {str(one.get("config_name", "default")): one for one in configs}
    if wanted and wanted in by_name:
        return by_name[wanted]
    folders = {name.partition("/")[0] for name in data if "/" in name}
    if wanted and not by_name and wanted in folders:
        return {"data_dir": wanted}
    if wanted and wanted != "default":
        raise WrongField(
            "huggingface", "configuration_not_found", f"there is no configuration {wanted!r}", choices=by_name.keys() or folders
        )
    default = next((one for one in configs if one.get("default") is True), None)
    if default is not None or len(by_name) <= 1:
        return default or next(iter(by_name.values()), {})
    if "default" in by_name:
        return by_name["default"]
    message = "it has several configurations, so huggingface.config_name must name one"
    raise WrongField("huggingface", "configuration_needed", message, choices=by_name)


def _listed_splits(configuration: Mapping[str, Any], data: Sequence[str]) -> dict[str, list[str]]:
    """Returns the files of each split by the patterns of the card."""
    given = configuration["data_files"]
    prefix = f"{configuration['data_dir'].strip('/')}/" if isinstance(configuration.get("data_dir"), str) else ""
    patterns: dict[str, list[str]] = defaultdict(list)
    if isinstance(given, Mapping):
        given = [{"split": split, "path": path} for split, path in given.items()]
    for one in given if isinstance(given, list) else [given]:
        split, path = (one.get("split", "train"), one.get("path")) if isinstance(one, Mapping) else ("train", one)
        patterns[str(split)] += [f"{prefix}{text}" for text in (path if isinstance(path, list) else [path]) if isinstance(text, str)]
    return {split: matching(data, texts[:MOST_PATTERNS]) for split, texts in patterns.items()}


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Returns the names that fit one of the patterns, in which ``**`` stands for any number of folders."""
    split = [pattern.removeprefix("./").split("/") for pattern in patterns if len(pattern) <= LONGEST_PATTERN]
    return [name for name in names if any(_fits(name.split("/"), pattern) for pattern in split)]


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Compares folder by folder: ``reached`` holds the numbers of leading parts that the pattern so far can stand for."""
    reached = {0}
    for step in pattern:
        if step == "**":
            reached = {end for start in reached for end in range(start, len(parts) + 1)}
        else:
            reached = {start + 1 for start in reached if start < len(parts) and fnmatch.fnmatchcase(parts[start], step)}
    return len(parts) in reached or (pattern[-1:] == ["**"] and bool(reached))


def _named_splits(data: Sequence[str], configuration: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the files of each split by the names of files and folders."""
    folder = configuration.get("data_dir")
    prefix = f"{folder.strip('/')}/" if isinstance(folder, str) and folder.strip("/. ") else ""
    inside = [name for name in data if name.startswith(prefix)]
    found: dict[str, list[str]] = defaultdict(list)
    shards = [(name, match["split"]) for name in inside if (match := SHARD.match(name.rpartition("/")[2]))]
    if shards:
        for name, split in shards:
            found[split].append(name)
        return found
    for by_file in (False, True):
        for name in inside:
            split = _keyword(name.removeprefix(prefix), by_file=by_file)
            if split:
                found[split].append(name)
        if found:
            return found
    return {"train": inside}


def _keyword(name: str, *, by_file: bool) -> str:
    """Returns the split that a word of the name of a table, or of the nearest folder, stands for; empty if there is none."""
    folders, _, file = name.rpartition("/")
    looked_at = [os.path.splitext(file)[0]] if by_file and file.endswith(".parquet") else folders.split("/")  # noqa: PTH122
    for part in reversed(looked_at):
        words = set(WORD.split(part.lower()))
        for split, keywords in KEYWORDS.items():
            if words & set(keywords):
                return split
    return ""


def read_card(content: bytes) -> Mapping[str, Any]:
    """Returns the settings in a card; none if it has none, or if they cannot be read."""
    text = content[:LARGEST_CARD_BYTES].decode("utf-8-sig", "replace").replace("\r\n", "\n")
    lines = text.split("\n")
    if lines[0].strip() != FENCE or FENCE not in (line.rstrip() for line in lines[1:]):
        return {}
    end = next(number for number, line in enumerate(lines[1:], 1) if line.rstrip() == FENCE)
    try:
        document = parse_yaml("\n".join(lines[1:end]), MOST_CARD_NODES)
    except UnreadableYaml:
        return {}
    return document if isinstance(document, Mapping) else {}
