"""Parses the dataloader file into typed datasets, and reports every problem with it at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import trainer_engine.config.datasets.clips as clips
import trainer_engine.config.datasets.conditioning as conditioning
import trainer_engine.config.datasets.controls as controls
import trainer_engine.config.datasets.entry as reading
import trainer_engine.config.datasets.eval_sets as eval_sets
import trainer_engine.config.datasets.latent_sets as latent_sets
import trainer_engine.config.datasets.lists as lists
import trainer_engine.config.datasets.masks as masks
import trainer_engine.config.datasets.objects as objects
import trainer_engine.config.datasets.rules as rules
from trainer_engine.config.control import sees_control_images
from trainer_engine.config.controlnet import CONTROL
from trainer_engine.config.datasets.entry import EntryDraft, Locate
from trainer_engine.config.datasets.fields import TextSet
from trainer_engine.config.datasets.hints import OF_FRAMES
from trainer_engine.config.datasets.image_set import ImageSet
from trainer_engine.config.datasets.names import OF_IMAGES, TRAINED_ON, is_like_a_dataset
from trainer_engine.config.datasets.object_fields import CaptionShuffle
from trainer_engine.config.datasets.reference_set import ReferenceSet
from trainer_engine.config.options import REGISTRY, TrainingOptions
from trainer_engine.contract.errors import Problem, errors_in
from trainer_engine.contract.messages import Suggestions

OPTION = "dataloader"
SIZED = ("resolution", "resolution_type", "minimum_image_size", "maximum_image_size", "target_downsample_size")
CACHED = ("write_batch_size", "vae_batch_size", "max_workers", "aws_max_pool_connections")
OF_TEXTS = ("write_batch_size", "text_encoder_batch_size")
INHERITED = (*SIZED, "caption_strategy", "prepend_instance_prompt", "only_instance_prompt", *CACHED)
MOST_ENTRIES = 1_000
"""Limit of entries in a file; each is compared with the others."""
AUTOMATIC_TEXT_SET = "text-embeds"


@dataclass(frozen=True)
class Dataloader:
    """The datasets of a run."""

    image_sets: tuple[ImageSet, ...]
    """Sets to train on."""
    text_sets: tuple[TextSet, ...]
    reference_sets: tuple[ReferenceSet, ...] = ()
    eval_sets: tuple[ImageSet, ...] = ()
    """Sets to evaluate on."""

    @property
    def sets_of_images(self) -> tuple[ImageSet, ...]:
        """All image sets, trained on or evaluated on."""
        return (*self.image_sets, *self.eval_sets)

    @property
    def default_text_set(self) -> TextSet:
        """Caches the embeddings of validation prompts, of the empty prompt, and of captions of sets that name no text_embeds set."""
        return next(text for text in self.text_sets if text.default)

    def text_set_of(self, images: ImageSet) -> TextSet:
        """Returns the set that caches the embeddings of an image set's captions."""
        named = (text for text in self.text_sets if text.id == images.text_embeds)
        return next(named, self.default_text_set)

    def references_of(self, images: ImageSet) -> tuple[ReferenceSet, ...]:
        """Returns the sets whose files the network looks at with those of an image set, in the order in which it names them."""
        return tuple(found for found in self.partners_of(images) if not found.is_mask)

    def mask_of(self, images: ImageSet) -> ReferenceSet | None:
        """Returns the set of masks that weight the loss on an image set, or None."""
        return next((found for found in self.partners_of(images) if found.is_mask), None)

    def partners_of(self, images: ImageSet) -> tuple[ReferenceSet, ...]:
        """Returns the conditioning sets of an image set, references and masks, in the order in which it names them; generated ones last."""
        by_id = {found.id: found for found in self.reference_sets}
        ids = dict.fromkeys((*images.conditioning_data, *(one.id_of(images.id) for one in images.conditioning)))
        return tuple(by_id[id] for id in ids if id in by_id)

    @property
    def repositories(self) -> Mapping[str, str]:
        """Field -> the repository of the hub that it names: of datasets, and of models that generate references."""
        found: dict[str, str] = {}
        for images in (*self.sets_of_images, *self.reference_sets):
            named = ((field, str(images.own_fields.get(field))) for field, kind in images.source.paths.items() if kind == "repository")
            found |= {images.option(field): name for field, name in named if not PurePath(name).is_absolute()}
        return {**found, **self.generating_models}

    @property
    def generating_models(self) -> Mapping[str, str]:
        """Field -> the repository of a model that generates references."""
        made = ((images, images.generated) for images in self.reference_sets if images.generated)
        return {images.option(field): str(one.settings[field]) for images, one in made for field in one.spec.models}

    def as_document(self) -> list[dict[str, Any]]:
        """Returns the file with every default and placeholder filled in. Parsing it gives the same datasets in the same order."""
        written = (one for one in self.reference_sets if one.generated is None)
        entries = sorted((*self.sets_of_images, *self.text_sets, *written), key=lambda entry: entry.position)
        return [entry.as_entry() for entry in entries]


@dataclass(frozen=True)
class EntryContext:
    """The options that give entries their defaults."""

    values: Mapping[str, Any]

    @classmethod
    def of(cls, options: TrainingOptions | Mapping[str, Any]) -> EntryContext:
        given = options.as_values() if isinstance(options, TrainingOptions) else options
        defaults = {name: spec.default for name, spec in REGISTRY.items()}
        return cls({**defaults, **given})

    @property
    def output_dir(self) -> str:
        return str(self.values["output_dir"] or "")

    @property
    def family(self) -> str:
        return str(self.values["model_family"] or "")

    @property
    def table_columns(self) -> Mapping[str, Any]:
        """The options that name columns of tables, by their keys in ``parquet``."""
        return {"caption_column": self.values["parquet_caption_column"], "filename_column": self.values["parquet_filename_column"]}

    @property
    def cache_root(self) -> str:
        return self.values["cache_dir"] or str(PurePath(self.output_dir, "cache"))

    def latents_folder(self, id: str) -> str:
        root = self.values["cache_dir_vae"] or PurePath(self.cache_root, "vae", self.family)
        return str(PurePath(root, id))

    def text_folder(self) -> str:
        return self.values["cache_dir_text"] or str(PurePath(self.cache_root, "text", self.family))


def parse_dataloader(
    document: object, options: TrainingOptions | Mapping[str, Any], *, locate: Locate | None = None
) -> tuple[Dataloader, list[Problem]]:
    """Returns the datasets in a file, and its problems.

    ``options`` are the options of the run, or their values by name if the options are not valid. ``locate`` makes paths in the file
    absolute. Datasets with an error are left out, so that the others can still be examined. A run must not start if there are errors.
    """
    if not isinstance(document, list) or not document or len(document) > MOST_ENTRIES:
        return Dataloader((), ()), [_wrong_document(document)]

    objects = [entry for entry in document if isinstance(entry, Mapping) and entry]
    if objects and not any(is_like_a_dataset(entry) for entry in objects):
        return Dataloader((), ()), [_other_document()]
    context = EntryContext.of(options)
    drafts, problems = _drafts(document, context, locate)
    disabled = [draft for draft in drafts if reading.is_disabled(draft)]
    active = [draft for draft in drafts if draft not in disabled]
    rules.ids_are_unique(drafts)
    for draft in active:
        _read(draft, context)
    images = [draft for draft in active if draft.kind in TRAINED_ON]
    texts = [draft for draft in active if draft.kind == "text_embeds"]
    rules.one_default(texts)
    references = [draft for draft in active if draft.kind == "conditioning"]
    evals = [draft for draft in active if draft.kind == "eval"]
    rules.text_sets_exist([*images, *evals], texts)
    latent_sets.resolve([*images, *evals], [draft for draft in active if draft.kind == "image_embeds"])
    rules.references_have_partners([*images, *evals], references)
    conditioning.ids_are_free([*images, *evals], active)
    conditioning.captions_are_of_one_reference([*images, *evals], context.values["conditioning_multidataset_sampling"])
    rules.caches_are_apart([*images, *evals, *references], texts)
    rules.something_is_trained(images)
    rules.something_begins_at_once(images)
    rules.regularisation_has_an_effect(images, context.values["model_type"])
    rules.sliders_have_two_sides(images, context.values["model_type"])
    rules.offsets_have_an_effect(images, context.values)
    problems += [problem for draft in drafts for problem in draft.problems]
    problems += eval_sets.problems(context.values, images, evals, references)
    problems += masks.problems(context.values, [*images, *evals], references)
    problems += controls.problems(context.values, [*images, *evals], references)
    if not images and not any({"type", "dataset_type"} & draft.reported for draft in active):
        problems.append(_no_images(len(disabled)))
    found = Dataloader(
        tuple(ImageSet.model_validate({"position": draft.position, **draft.values}) for draft in images if not draft.reported),
        tuple(TextSet.model_validate({"position": draft.position, **draft.values}) for draft in texts if not draft.reported),
        tuple(ReferenceSet.model_validate({"position": draft.position, **draft.values}) for draft in references if not draft.reported),
        tuple(ImageSet.model_validate({"position": draft.position, **draft.values}) for draft in evals if not draft.reported),
    )
    made = tuple(conditioning.generated_sets(found.sets_of_images, context.latents_folder))
    found = replace(found, reference_sets=(*found.reference_sets, *made))
    return _with_default(found, context, len(document), problems, texts)


def _wrong_document(document: object) -> Problem:
    expected = "a JSON list with at least one image dataset"
    if document == []:
        return Problem.error(OPTION, "empty_list", "The dataloader file lists no dataset.", got="[]", expected=expected)
    if isinstance(document, list):
        message = f"The dataloader file lists {len(document)} datasets."
        return Problem.error(OPTION, "too_many", message, got=len(document), expected=f"at most {MOST_ENTRIES}")
    message = "The dataloader file is not a list of datasets."
    hint = "put the dataset into square brackets: [{...}]" if isinstance(document, Mapping) else ""
    return Problem.error(OPTION, "not_a_list", message, got=type(document).__name__, expected=expected, hint=hint)


def _other_document() -> Problem:
    """Returns the problem of a document that is another file of the user's. It repeats nothing of the document."""
    message = "The file is not a datasets file: no entry has a field that only datasets have."
    expected = 'a list of datasets: [{"id": ..., "instance_data_dir": ..., "caption_strategy": ...}]'
    return Problem.error(OPTION, "not_datasets", message, expected=expected, hint="docs/datasets.md lists every field")


def _no_images(disabled: int) -> Problem:
    message = "The dataloader file has no image dataset to train on."
    hint = f"{disabled} of its entries are disabled" if disabled else "add one with dataset_type image or video"
    return Problem.error(OPTION, "no_images", message, expected="at least one dataset of type image or video", hint=hint)


def _drafts(document: list[Any], context: EntryContext, locate: Locate | None) -> tuple[list[EntryDraft], list[Problem]]:
    drafts, problems, suggestions = [], [], Suggestions()
    for position, raw in enumerate(document):
        if not isinstance(raw, Mapping):
            message = f"Entry {position} of the dataloader file is not an object."
            expected = 'an object: {"id": ..., "instance_data_dir": ...}'
            problems.append(Problem.error(f"{OPTION}[{position}]", "not_an_object", message, got=type(raw).__name__, expected=expected))
            continue
        draft = EntryDraft(
            position, raw, {"model_family": context.family, "output_dir": context.output_dir}, locate, suggestions=suggestions
        )
        reading.read_id(draft)
        draft.placeholders = {**draft.placeholders, "id": draft.id}
        drafts.append(draft)
    return drafts, problems


def _read(draft: EntryDraft, context: EntryContext) -> None:
    """Reads every field of one entry."""
    reading.read_kind(draft)
    reading.read_names(draft)
    if draft.kind == "text_embeds":
        reading.read_values(draft, {"cache_dir": context.text_folder(), **{name: context.values[name] for name in OF_TEXTS}})
        lists.read_filters(draft)
    elif draft.kind in ("image_embeds", "conditioning_image_embeds"):
        reading.read_values(draft, {})
        if draft.kind == "conditioning_image_embeds":
            draft.note("dataset_type", "not_needed", f"a set of {draft.kind} has no effect: {OF_FRAMES}.", got=draft.kind)
    elif draft.kind in OF_IMAGES:
        inherited = {**{name: context.values[name] for name in INHERITED}, **clips.defaults_of(draft)}
        inherited["caption_strategy"] = reading.usual_captions(draft, inherited["caption_strategy"])
        reading.read_values(draft, {"cache_dir_vae": context.latents_folder(draft.id), **inherited})
        _convert_sizes(draft, context.values["resolution_type"])
        lists.read_prompts(draft, context.values["instance_prompt"])
        lists.read_aspects(draft)
        lists.read_references(draft)
        draft.values["caption_shuffle"] = objects.read_object(draft, "caption_shuffle", CaptionShuffle)
        objects.read_table(draft, context.table_columns)
        clips.read_video(draft, context.values)
        conditioning.read_conditioning(draft, context.cache_root, steers=sees_control_images(context.values))
        for rule in rules.IMAGE_RULES:
            rule(draft)
        reading.check_tables(draft)
        if draft.kind == "eval":
            eval_sets.settle(draft)
    elif draft.kind == "conditioning":
        if sees_control_images(context.values) and draft.raw.get("conditioning_type") in (None, ""):
            draft.raw = {**draft.raw, "conditioning_type": CONTROL}
        inherited = {name: context.values[name] for name in (*SIZED, *CACHED)}
        reading.read_values(draft, {"cache_dir_vae": context.latents_folder(draft.id), **inherited})
        _convert_sizes(draft, context.values["resolution_type"])
        lists.read_reference_captions(draft)
        objects.read_table(draft, context.table_columns)
        rules.table_is_given(draft)
        rules.sizes_suit_the_source(draft)
        reading.check_tables(draft)
    draft.values["dataset_type"] = draft.kind


def _convert_sizes(draft: EntryDraft, unit: str) -> None:
    """Converts sizes that the entry takes from the options to the unit of the entry."""
    for name in rules.SIZES:
        if draft.raw.get(name) in (None, ""):
            draft.values[name] = rules.in_unit(draft.values[name], unit, draft.values["resolution_type"])


def _with_default(
    found: Dataloader, context: EntryContext, count: int, problems: list[Problem], texts: list[EntryDraft]
) -> tuple[Dataloader, list[Problem]]:
    """Adds a default text_embeds set to the datasets if the file has none."""
    if any(text.default for text in found.text_sets):
        return found, problems
    ids = {entry.id for entry in (*found.sets_of_images, *found.reference_sets)}
    name = next(name for name in (AUTOMATIC_TEXT_SET, *(f"{AUTOMATIC_TEXT_SET}-{n}" for n in range(2, count + 3))) if name not in ids)
    made = TextSet(
        position=count, id=name, default=True, cache_dir=context.text_folder(), **{name: context.values[name] for name in OF_TEXTS}
    )
    if not texts and not errors_in(problems):
        message = f"The file has no text_embeds set: embeddings of captions are cached in {made.cache_dir}."
        problems.append(Problem.note(OPTION, "text_set_made", message))
    return replace(found, text_sets=(*found.text_sets, made)), problems
