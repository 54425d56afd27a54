"""Reads ``conditioning`` of image sets, and makes the conditioning sets that will be generated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, cast

from trainer_engine.config.controlnet import CONTROL
from trainer_engine.config.dataset_tables import fields_of, generator_specs
from trainer_engine.config.datasets.entry import EntryDraft, fill
from trainer_engine.config.datasets.fields import option_name
from trainer_engine.config.datasets.generated import GeneratedFields, GeneratedReference, generated_id
from trainer_engine.config.datasets.image_set import ImageSet
from trainer_engine.config.datasets.reference_set import ReferenceSet
from trainer_engine.config.json_fields import WrongValue
from trainer_engine.config.option import OptionSpec, spec_of
from trainer_engine.config.options.values import parse_text, parse_value
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.generators.base import Generator

FIELD = "conditioning"
FOLDER = "conditioning_data"
REFERENCES = ("reference_strict", "reference_loose")
MOST = 20
"""Limit of generated sets of one image set."""
FROM_IMAGES = ("type", "own_fields", "crop", "crop_style", "resolution", "resolution_type", "vae_batch_size", "write_batch_size")
"""Fields of an image set that a set generated from it shares."""


@cache
def common_fields() -> Mapping[str, OptionSpec]:
    """Returns the fields that every entry of ``conditioning`` may have, but for ``captions``."""
    found = {name: spec_of(name, FIELD, info) for name, info in GeneratedFields.model_fields.items()}
    return MappingProxyType(found)


def read_conditioning(draft: EntryDraft, cache_root: str, *, steers: bool = False) -> None:
    """Reads ``conditioning``: an object, or a list of objects.

    ``steers``: the run looks at what is generated as at control images.
    """
    given = draft.raw.get(FIELD)
    draft.values[FIELD] = ()
    if given in (None, "", [], {}, False):
        return
    listed = given if isinstance(given, list) else [given]
    expected = 'an object such as {"type": "canny"}, or a list of them'
    if not all(isinstance(item, Mapping) for item in listed) or len(listed) > MOST:
        draft.error(FIELD, "not_a_list", f"conditioning is not a list of at most {MOST} objects.", got=given, expected=expected)
        return
    found = [_Reader(draft, item, number, cache_root, steers=steers).read() for number, item in enumerate(listed)]
    made = [one for one in found if one is not None]
    draft.values[FIELD] = tuple(made)
    ids = [one.id_of(draft.id) for one in made]
    for twice in sorted({id for id in ids if ids.count(id) > 1}):
        what = f"two of its generated sets would have the id {twice}."
        draft.error(FIELD, "duplicate_id", what, got=twice, expected="each type once")


class _Reader:
    """Reads one entry of ``conditioning``, and reports its problems."""

    def __init__(self, draft: EntryDraft, item: Mapping[str, Any], number: int, cache_root: str, *, steers: bool) -> None:
        self.draft, self.number, self.cache_root, self.steers = draft, number, cache_root, steers
        nested = item.get("params")
        self.raw = {**(nested if isinstance(nested, Mapping) else {}), **{key: item[key] for key in item if key != "params"}}

    def read(self) -> GeneratedReference | None:
        """The entry, or None if it has an error."""
        before = len(self.draft.reported)
        common = {name: self._value(spec) for name, spec in common_fields().items()}
        captions = self._captions()
        if common["type"] is None:
            return None
        generator = cast(Generator, generator_specs()[common["type"]])
        own = fields_of(generator)
        settings = {name: self._value(spec) for name, spec in own.items()}
        self._refuse_unknown((*common_fields(), "captions", *own))
        if len(self.draft.reported) > before:
            return None
        assert generator.fields is not None
        for field, message, expected in generator.contradictions(generator.fields.model_validate(settings)):
            self._error(field, "out_of_range", f"{field} {message}.", got=settings[field], expected=expected)
        word = str(self.raw["type"]).strip().lower()
        folder = common["instance_data_dir"] or str(PurePath(self.cache_root, FOLDER, generated_id(self.draft.id, word)))
        return GeneratedReference(
            number=self.number,
            type=word,
            generator=generator.name,
            conditioning_type=CONTROL if self.steers and common["conditioning_type"] in REFERENCES else common["conditioning_type"],
            instance_data_dir=folder,
            captions=captions,
            settings=settings,
        )

    def _name(self, field: str) -> str:
        return f"{FIELD}[{self.number}].{field}"

    def _error(self, field: str, code: str, what: str, *, got: object = None, expected: str = "", hint: str = "") -> None:
        self.draft.error(self._name(field), code, what, got=got, expected=expected, hint=hint)

    def _value(self, spec: OptionSpec) -> Any:
        """The value of a field, its default if it is missing, or None after an error."""
        given = self.raw.get(spec.name)
        if isinstance(given, list) and spec.kind == "str" and not spec.choices:
            given = ",".join(str(part) for part in given)
        if spec.required and given in (None, ""):
            self._error(spec.name, "missing", f"{spec.name} is missing.", got=given, expected=spec.expected)
            return None
        try:
            value = parse_value(spec, given)
        except WrongValue as wrong:
            reason = str(wrong) if str(wrong).startswith("is ") else f"cannot be used: {wrong}"
            self._error(spec.name, wrong.code, f"{spec.name} {reason}.", got=given, expected=spec.expected, hint=wrong.hint)
            return None
        return self._located(value) if spec.name == "instance_data_dir" and value else value

    def _located(self, path: str) -> str | None:
        filled = fill(self.draft, self._name("instance_data_dir"), path)
        if filled is None or self.draft.locate is None:
            return filled
        option = option_name(self.draft.position, self._name("instance_data_dir"))
        found = self.draft.locate(filled, option, "cache_dir")  # like every folder that a run writes to
        if isinstance(found, Problem):
            self.draft.reported.add(self._name("instance_data_dir"))
            self.draft.problems.append(found)
            return None
        return found

    def _captions(self) -> tuple[str, ...]:
        given = self.raw.get("captions")
        listed = given if isinstance(given, list) else [] if given in (None, False, "") else [given]
        try:
            found = [parse_text(item).strip() for item in listed]
        except WrongValue as wrong:
            self._error("captions", wrong.code, f"captions {wrong}.", got=given, expected="false, text, or a list of texts")
            return ()
        if not all(found):
            self._error("captions", "missing", "captions contains a blank text.", got=given, expected="false, text, or a list of texts")
        return tuple(found)

    def _refuse_unknown(self, known: Sequence[str]) -> None:
        for name in (str(key) for key in self.raw if key not in known):
            hint = self.draft.suggestions.nearest(name, sorted(known), otherwise="docs/datasets.md lists every field")
            self._error(
                name[:100],
                "unknown_field",
                f"type={self.raw['type']} has no field {name[:100]!r}.",
                expected="the name of a field",
                hint=hint,
            )


def ids_are_free(images: Iterable[EntryDraft], others: Sequence[EntryDraft]) -> None:
    """Checks that no entry has the id of a generated set."""
    taken = {draft.id for draft in others}
    for draft in images:
        for one in draft.values.get(FIELD, ()):
            if one.id_of(draft.id) in taken:
                what = f"its generated set would have the id {one.id_of(draft.id)}, which another entry has."
                draft.error(FIELD, "duplicate_id", what, got=one.id_of(draft.id), expected="an id that no other dataset has")


def captions_are_of_one_reference(images: Iterable[EntryDraft], sampling: str) -> None:
    """Checks that captions belong to one reference: with all references of an image at once, they would contradict each other."""
    for draft in images:
        made = draft.values.get(FIELD, ())
        several = len({*draft.values.get("conditioning_data", ()), *(one.id_of(draft.id) for one in made)}) > 1
        for one in made:
            if one.captions and several and sampling == "combined":
                what = "captions belong to one reference, but with conditioning_multidataset_sampling=combined an image has all of its own."
                expected = "conditioning_multidataset_sampling=random, or no captions"
                draft.error(f"{FIELD}[{one.number}].captions", "combined_captions", what, got=list(one.captions), expected=expected)


def generated_sets(images: Iterable[ImageSet], latents_folder: Any) -> Iterator[ReferenceSet]:
    """Yields the conditioning sets that are generated from image sets. ``latents_folder``: id -> folder of cached latents."""
    for entry in images:
        shared = {name: getattr(entry, name) for name in FROM_IMAGES}
        aspect = entry.crop_aspect if entry.crop_aspect in ("square", "preserve") else "preserve"
        for one in entry.conditioning:
            id = one.id_of(entry.id)
            yield ReferenceSet(
                position=entry.position,
                id=id,
                instance_data_dir=one.instance_data_dir,
                conditioning_type=one.conditioning_type,
                source_dataset_id=entry.id,
                crop_aspect=aspect,
                cache_dir_vae=latents_folder(id),
                generated=one,
                **shared,
            )
