"""The settings of a dataset of rows, from its own fields and from the object ``huggingface`` in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from trainer_engine.config.hub import is_repository
from trainer_engine.config.json_fields import WrongValue, parse_bool
from trainer_engine.config.option import OptionGroup, option
from trainer_engine.contract.files import read_document
from trainer_engine.datasets.sources.hub.filters import RowFilter, read_filter, text_of, whole_number

if TYPE_CHECKING:
    from trainer_engine.config.datasets import ImageSet, ReferenceSet

OBJECT = "huggingface"
IMAGE_COLUMN, CLIP_COLUMN = "image", "video"
"""Columns of sets that name none."""
DEFAULT_CAPTIONS = ("caption", "text")
"""Columns of captions that are tried if ``caption_column`` names none."""
MOST_TILES = 64
MOST_COLUMNS = 32
LONGEST_NAME = 250
FALLBACKS = ("fallback_caption_column", "description_column")
"""Columns of the caption of a row that has none in ``caption_column``, in the order in which they are tried."""
SIZES = ("width_column", "height_column")
STREAMING = {
    "streaming": "files are downloaded once, into the hub's cache, and their rows are read from there",
    "num_proc": "rows are filtered while they are listed, without further processes",
}
"""Hints of the format whose purpose is fulfilled anyway. They stand in the object, or outside of it."""
IDLE = {
    **STREAMING,
    "file_extension": "rows are opened by what their content is",
    **dict.fromkeys(("num_frames_column", "fps_column"), "lengths and frame rates are those in the headers of the clips"),
}
"""Hints that the object may hold."""


class HubFields(OptionGroup):
    """Fields of datasets of rows."""

    dataset_name: str = option(
        ..., "Repository id of a dataset of the hub, owner/name; or a folder that is laid out like one, or a parquet file."
    )
    split: str = option("train", "Split of the dataset.")
    revision: str | None = option(None, "Branch, tag or commit of the repository. Empty: main.")
    image_column: str = option(IMAGE_COLUMN, "Column of the images.")
    video_column: str | None = option(
        None, "Column of clips, which are then read instead of images. Empty: images; in a set of dataset_type video, the column video."
    )
    caption_column: str | None = option(
        None,
        "Column of the captions for caption_strategy=huggingface, or a list of columns: each one with a text is an alternative caption. A "
        "dot leads into a column of objects: captions.short. Empty: caption, or else text.",
        json=True,
        shape="the name of a column, or a list of names",
    )
    fallback_caption_column: str | None = option(None, "Column of the caption of a row that has none in caption_column.")
    huggingface: str | None = option(
        None,
        "Object of further settings: the fields of this list, but for itself; config_name, a configuration of the dataset; "
        "description_column, which is tried after fallback_caption_column; width_column and height_column, the columns of the sizes for "
        "metadata_backend=huggingface (width and height unless they are given); filter_func, conditions for rows (quality_thresholds with "
        "quality_column, collection, min_width, min_height); composite_image_config, to take one of several images that stand side by side "
        "(enabled, image_count, select_index, counted from 0).",
        json=True,
        shape="an object",
    )


@dataclass(frozen=True)
class Tile:
    """One of several images of the same width that stand side by side in one image."""

    count: int
    index: int


@dataclass(frozen=True)
class RowOptions:
    """The settings of a dataset of rows."""

    split: str = "train"
    revision: str | None = None
    config_name: str = ""
    """The configuration of the dataset; empty: its default."""
    column: str = "image"
    """Column of the images or clips."""
    has_clips: bool = False
    caption_columns: tuple[str, ...] = ()
    fallback_columns: tuple[str, ...] = ()
    """Columns of the caption of a row without one in ``caption_columns``, in the order in which they are tried."""
    size_columns: tuple[str, str] = ("width", "height")
    filter: RowFilter = RowFilter()
    tile: Tile | None = None
    trusts_sizes: bool = False
    """Whether ``size_columns`` give the sizes of the images."""


@dataclass(frozen=True)
class Refusal:
    """Why a field has a wrong value."""

    field: str
    code: str
    what: str
    got: object = None
    expected: str = ""


@dataclass
class OptionReader:
    """Reads the settings of one dataset, and collects every refusal."""

    given: Mapping[str, Any]
    """The values of ``HubFields``."""
    refusals: list[Refusal] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    """Field -> why it has no effect."""

    def read(self, *, trusts_sizes: bool) -> RowOptions:
        """Returns the settings; those with a refusal have their defaults."""
        inner = self._object(self.given.get(OBJECT), OBJECT)
        known = {name: self._either(name, inner) for name in ("split", "revision", "image_column", "video_column")}
        columns = self._columns(inner)
        first, second = self._either(FALLBACKS[0], inner), self._name(inner.pop(FALLBACKS[1], None), f"{OBJECT}.{FALLBACKS[1]}")
        width, height = (self._name(inner.pop(name, None), f"{OBJECT}.{name}") for name in SIZES)
        repeated = self._name(inner.pop("dataset_name", None), f"{OBJECT}.dataset_name")
        config_name = self._name(inner.pop("config_name", None), f"{OBJECT}.config_name") or ""
        chosen = self._part(inner, "filter_func", read_filter) or RowFilter()
        tile = self._part(inner, "composite_image_config", _read_tile)
        for name, reason in IDLE.items():
            if inner.pop(name, None) not in (None, False):
                self.notes[f"{OBJECT}.{name}"] = reason
        for name in inner:
            self.refuse(OBJECT, "unknown_field", f"huggingface has no field {name[:100]!r}", name[:100])
        if tile and known["video_column"]:
            self.refuse(OBJECT, "conflicting_values", "composite_image_config takes images apart, and video_column reads clips")
        self._names_a_dataset(self.given.get("dataset_name"), repeated)
        return RowOptions(
            split=known["split"] or "train",
            revision=known["revision"],
            config_name=config_name,
            column=known["video_column"] or known["image_column"] or IMAGE_COLUMN,
            has_clips=bool(known["video_column"]),
            caption_columns=columns,
            fallback_columns=tuple(name for name in (first, second) if name),
            size_columns=(width or "width", height or "height"),
            filter=chosen,
            tile=tile,
            trusts_sizes=trusts_sizes,
        )

    def refuse(self, field: str, code: str, what: str, got: object = None, expected: str = "") -> None:
        self.refusals.append(Refusal(field, code, what, got, expected))

    def _object(self, text: str | None, name: str) -> dict[str, Any]:
        if not text:
            return {}
        try:
            document = read_document(text)
        except ValueError:
            document = None
        if isinstance(document, dict):
            return document
        self.refuse(name, "not_an_object", f"{name} is not an object", text, "an object")
        return {}

    def _either(self, name: str, inner: dict[str, Any]) -> str | None:
        """Returns a field that may be given outside or inside the object."""
        default = HubFields.model_fields[name].default
        outside, inside = self._name(self.given.get(name), name), self._name(inner.pop(name, None), f"{OBJECT}.{name}")
        if inside and outside not in (None, default, inside):
            self.refuse(name, "conflicting_values", f"{name} and huggingface.{name} differ", outside, "one of them")
        return inside or outside or default

    def _name(self, value: object, where: str) -> str | None:
        """Returns the name of a column, split or revision; None if there is none."""
        if value in (None, ""):
            return None
        try:
            text = text_of(value)
        except WrongValue as wrong:
            self.refuse(where.partition(".")[0], wrong.code, f"{where} {wrong}", value, "a name")
            return None
        if not text.isprintable() or len(text) > LONGEST_NAME or ".." in text or text.startswith(("/", "-")):
            self.refuse(where.partition(".")[0], "not_a_name", f"{where} is not a name", text, "a name")
            return None
        return text or None

    def _columns(self, inner: dict[str, Any]) -> tuple[str, ...]:
        outside, inside = _listed(self.given.get("caption_column")), _listed(inner.pop("caption_column", None))
        if outside and inside and outside != inside:
            what = "caption_column and huggingface.caption_column differ"
            self.refuse("caption_column", "conflicting_values", what, self.given["caption_column"], "one of them")
        given = (inside or outside)[:MOST_COLUMNS]
        return tuple(name for name in (self._name(one, "caption_column") for one in given) if name)

    def _part(self, inner: dict[str, Any], name: str, read: Callable[[Mapping[str, Any]], Any]) -> Any:
        """Returns what a function makes of an object in the object; None if it is missing or wrong."""
        given = inner.pop(name, None)
        if given in (None, {}, ""):
            return None
        try:
            if not isinstance(given, Mapping):
                raise WrongValue("is not an object", code="not_an_object")
            return read(given)
        except WrongValue as wrong:
            self.refuse(OBJECT, wrong.code, f"huggingface.{name} {wrong}", given, wrong.hint)
            return None

    def _names_a_dataset(self, name: object, repeated: str | None) -> None:
        """``repeated``: the name in the object, which may only repeat the other one."""
        if repeated and isinstance(name, str) and name != repeated and not name.endswith(f"/{repeated}"):
            self.refuse("dataset_name", "conflicting_values", "dataset_name and huggingface.dataset_name differ", name, "one of them")
        if isinstance(name, str) and name and not is_repository(name) and not name.startswith("/"):
            expected = "owner/name, or the path of a folder or of a parquet file"
            self.refuse("dataset_name", "not_a_dataset", f"{name!r} is neither a repository id nor a path", name, expected)


def _listed(value: object) -> list[object]:
    """Returns the items of a list, which may be JSON text, or a list of one."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = read_document(value)
        except ValueError:
            return [value]
    return list(value) if isinstance(value, list) else [] if value in (None, "") else [value]


def _read_tile(given: Mapping[str, Any]) -> Tile | None:
    """Reads ``composite_image_config``. Raises WrongValue."""
    unknown = given.keys() - {"enabled", "image_count", "select_index"}
    if unknown:
        raise WrongValue(f"has no field {min(unknown)!r}", code="unknown_field")
    if not parse_bool(given.get("enabled", True)):
        return None
    if "image_count" not in given:
        raise WrongValue("needs image_count", code="missing")
    count, index = whole_number(given["image_count"]), whole_number(given.get("select_index", 0))
    if not 1 <= count <= MOST_TILES or not 0 <= index < count:
        raise WrongValue("names no image", code="out_of_range", hint=f"image_count of 1 to {MOST_TILES}, select_index below it, from 0")
    return Tile(count, index)


def row_options(entry: ImageSet | ReferenceSet) -> RowOptions:
    """Returns the settings of a dataset whose entry was parsed. Raises ValueError for a wrong one.

    A set of clips reads ``CLIP_COLUMN`` if it names no column.
    """
    reader = OptionReader(entry.own(HubFields).model_dump())
    options = reader.read(trusts_sizes=entry.metadata_backend == OBJECT)
    if reader.refusals:
        raise ValueError(reader.refusals[0].what)
    if entry.dataset_type == "video" and not options.has_clips:
        return replace(options, has_clips=True, column=CLIP_COLUMN if options.column == IMAGE_COLUMN else options.column)
    return options
