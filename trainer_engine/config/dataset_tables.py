"""The torch-free facts of each source, caption strategy and generator, as the files in their folders of ``datasets`` declare them.

Names, help and fields of the dataloader file derive from them. The modules are imported for that, also by the web process, so they
import large libraries only inside the functions that need them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType, ModuleType
from typing import Any, Literal, Protocol, TypeVar

from trainer_engine.config.option import OptionGroup, OptionSpec, option, spec_of
from trainer_engine.datasets import captions, generators, sources

Declared = TypeVar("Declared", bound="TableEntry")
PathKind = Literal["file", "folder", "any", "cache", "repository"]
"""What must exist at a path that a run reads. ``cache`` is a folder that it writes, and that need not exist. ``repository`` is a
repository id of the hub, or else the path of a file or folder."""
SOURCES_LATER = ("csv", "aws", "huggingface", "webshart", "memory")
"""Sources of the format that are not implemented yet. One that gets a file leaves this list by itself, as those below do."""
CAPTIONS_LATER = ("parquet", "csv", "huggingface", "webshart")
GENERATORS_LATER = (
    *("depth", "depth_map", "depth_midas", "segmentation", "semantic_segmentation", "optical_flow", "flow"),
    *("sdr", "sdr_downsample", "logc3_sdr", "hdr_to_sdr", "i2v_first_frame"),
)
FOLDER_FIELD = "instance_data_dir"
"""The field of a dataset that names a folder. Sources with other places do not have it."""


class CheckedEntry(Protocol):
    """An entry of the dataloader file whose fields were read one by one."""

    values: dict[str, Any]
    """Its typed values; those of ``TableEntry.fields`` lie in ``own_fields``."""

    def error(self, name: str, code: str, what: str, *, got: object = None, expected: str = "", hint: str = "") -> None:
        """Adds the first error of a field."""

    def note(self, name: str, code: str, what: str, *, got: object = None) -> None:
        """Adds a note about a field."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TableEntry:
    """What sources, caption strategies and generators have in common."""

    name: str
    """The value that chooses it."""
    help: str
    """What it is, for the help of the field: one sentence without the name."""
    fields: type[OptionGroup] | None = None
    """Further fields of a dataset with this value, declared like options; None without any."""
    paths: Mapping[str, PathKind] = field(default_factory=lambda: MappingProxyType({}))
    """Those of ``fields`` that are paths on this machine. They are resolved like all paths, and the server's path rule applies to them."""
    synonyms: tuple[str, ...] = ()
    """Other spellings of the name."""
    check: Callable[[CheckedEntry], None] | None = None
    """Reports problems of its fields with one another and with the dataset's; None if there can be none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceSpec(TableEntry):
    """The facts of a source. ``name`` is the value of ``type``."""

    place_field: str = FOLDER_FIELD
    """The field that says where the files lie. Problems of the place name it."""
    place_noun: str = "folder"
    """What that place is, for messages."""
    secrets: tuple[str, ...] = ()
    """Those of ``fields`` that are hidden wherever a dataset is stored or shown."""
    addresses: tuple[str, ...] = ()
    """Those of ``fields`` that are URLs, in which passwords are hidden."""
    places: tuple[str, ...] = ()
    """Fields that, with the addresses, identify the machine that the secrets are for (``config/secrets.py``)."""
    captions: tuple[str, ...] = ()
    """The caption strategies that suit its files; empty: all."""
    without_effect: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Fields of other sources that configurations also give to this one -> why they are not needed. Each is a note."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionSpec(TableEntry):
    """The facts of a caption strategy. ``name`` is the value of ``caption_strategy``."""

    reads_files: bool = False
    """Whether a caption takes a read of its own, so that several are read at once."""
    takes_no_file: bool = False
    """Whether captions come from names or fields alone."""
    takes_prompt_in_front: bool = True
    """Whether ``prepend_instance_prompt`` puts the instance prompt in front of its captions."""
    sources: tuple[str, ...] = ()
    """The sources whose files it has captions for; empty: all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratorSpec(TableEntry):
    """The facts of a generator of conditioning images. ``name`` is the value of ``type`` in ``conditioning``."""

    models: tuple[str, ...] = ()
    """Those of ``fields`` that name a repository of the hub, whose weights make the files."""


def modules_in(package: ModuleType) -> Iterator[ModuleType]:
    """Imports and yields the modules in the folders of a package, by name."""
    for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        yield importlib.import_module(f"{package.__name__}.{found.name}")


@cache
def source_specs() -> Mapping[str, SourceSpec]:
    """Returns the source that each file in ``datasets/sources`` declares as ``SOURCE``, by name. Raises TypeError for two of one name."""
    return _by_name(source for module in modules_in(sources) if isinstance(source := getattr(module, "SOURCE", None), SourceSpec))


@cache
def caption_specs() -> Mapping[str, CaptionSpec]:
    """Returns the strategies that files in ``datasets/captions`` list as ``STRATEGIES``, by name. Raises TypeError for two of one name."""
    return _by_name(strategy for module in modules_in(captions) for strategy in getattr(module, "STRATEGIES", ()))


@cache
def generator_specs() -> Mapping[str, GeneratorSpec]:
    """Returns the generators that files in ``datasets/generators`` list as ``GENERATORS``. Raises TypeError for two of one name."""
    return _by_name(generator for module in modules_in(generators) for generator in getattr(module, "GENERATORS", ()))


def _by_name(entries: Iterable[Declared]) -> Mapping[str, Declared]:
    found: dict[str, Declared] = {}
    for entry in entries:
        if entry.name in found:
            raise TypeError(f"two files declare {entry.name!r}: a source and a caption strategy have a name of their own")
        found[entry.name] = entry
    return MappingProxyType(found)


@cache
def fields_of(entry: TableEntry) -> Mapping[str, OptionSpec]:
    """Returns the fields that a source or a caption strategy declares, by name."""
    declared = entry.fields.model_fields if entry.fields else {}
    return MappingProxyType({name: spec_of(name, entry.name, info) for name, info in declared.items()})


@cache
def table_paths() -> Mapping[str, PathKind]:
    """Returns the fields of all sources and caption strategies that are paths, each with its kind."""
    entries: Sequence[TableEntry] = (*source_specs().values(), *caption_specs().values())
    return MappingProxyType({name: kind for entry in entries for name, kind in entry.paths.items()})


def source_choice() -> Any:
    """Declares the field ``type``, whose choices are the sources."""
    return _choice(source_specs(), "local", "Storage of the files.", SOURCES_LATER)


def caption_choice() -> Any:
    """Declares the field and option ``caption_strategy``, whose choices are the strategies."""
    return _choice(caption_specs(), "filename", "Source of the captions.", CAPTIONS_LATER)


def generator_choice() -> Any:
    """Declares the field ``type`` of an entry of ``conditioning``, whose choices are the generators."""
    return _choice(generator_specs(), ..., "What is made of each image.", GENERATORS_LATER)


def _choice(entries: Mapping[str, TableEntry], default: Any, help: str, later: Sequence[str]) -> Any:
    ordered = sorted(entries.values(), key=lambda entry: (entry.name != default, entry.name))
    synonyms = {other: entry.name for entry in ordered for other in entry.synonyms}
    return option(
        default,
        " ".join([help, *(f"{entry.name}: {entry.help}" for entry in ordered)]),
        choices=tuple(entry.name for entry in ordered),
        synonyms=synonyms,
        later=tuple(name for name in later if name not in entries and name not in synonyms),
    )
