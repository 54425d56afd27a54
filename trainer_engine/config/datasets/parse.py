"""The dataloader file as a whole -> typed datasets, and everything that is wrong with it at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import trainer_engine.config.datasets.entry as reading
import trainer_engine.config.datasets.eval_sets as held_out
import trainer_engine.config.datasets.rules as rules
from trainer_engine.config.datasets.entry import Draft, Locate
from trainer_engine.config.datasets.fields import ImageSet, ReferenceSet, TextSet
from trainer_engine.config.datasets.names import OF_IMAGES, is_like_a_dataset
from trainer_engine.config.options import REGISTRY, TrainingOptions
from trainer_engine.contract.errors import Problem, errors_in
from trainer_engine.contract.messages import Suggestions

OPTION = "dataloader"
SIZED = ("resolution", "resolution_type", "minimum_image_size", "maximum_image_size", "target_downsample_size")
INHERITED = (*SIZED, "caption_strategy", "prepend_instance_prompt", "only_instance_prompt", "write_batch_size", "vae_batch_size")
MOST_ENTRIES = 1_000
"""Entries are compared with one another."""
AUTOMATIC_TEXT_SET = "text-embeds"
MOST_DATASETS = 1000
"""Entries of a file; each is compared with the others."""


@dataclass(frozen=True)
class Dataloader:
    """The datasets of a run."""

    image_sets: tuple[ImageSet, ...]
    """Those that are trained on."""
    text_sets: tuple[TextSet, ...]
    reference_sets: tuple[ReferenceSet, ...] = ()
    eval_sets: tuple[ImageSet, ...] = ()
    """Those that are held out."""

    @property
    def sets_of_images(self) -> tuple[ImageSet, ...]:
        """Trained on or held out."""
        return (*self.image_sets, *self.eval_sets)

    @property
    def default_text_set(self) -> TextSet:
        """Where validation prompts and the empty prompt live, and the captions of sets that name no other."""
        return next(text for text in self.text_sets if text.default)

    def text_set_of(self, images: ImageSet) -> TextSet:
        """Where the embeddings of a set's captions live."""
        named = (text for text in self.text_sets if text.id == images.text_embeds)
        return next(named, self.default_text_set)

    def references_of(self, images: ImageSet) -> tuple[ReferenceSet, ...]:
        """The conditioning sets of a set of images, in its order."""
        by_id = {found.id: found for found in self.reference_sets}
        return tuple(by_id[id] for id in images.conditioning_data if id in by_id)

    def as_document(self) -> list[dict[str, Any]]:
        """The file with nothing left to defaults or placeholders; parsing it gives the same datasets in the same order."""
        entries = sorted((*self.sets_of_images, *self.text_sets, *self.reference_sets), key=lambda entry: entry.position)
        return [entry.as_entry() for entry in entries]


@dataclass(frozen=True)
class EntryContext:
    """What the options say to entries that are silent."""

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
    """The datasets that a file describes, and its problems.

    ``options`` are the run's, or their values by name where the run has no valid options yet. ``locate`` turns the paths
    that the file gives into absolute ones. Datasets with an error are left out of the answer, so that the others can still
    be looked at; where there are errors nothing may be trained.
    """
    if not isinstance(document, list) or not document or len(document) > MOST_ENTRIES:
        return Dataloader((), ()), [_wrong_document(document)]
    if len(document) > MOST_DATASETS:
        message, expected = f"The dataloader file lists {len(document)} datasets.", f"at most {MOST_DATASETS}"
        return Dataloader((), ()), [Problem.error(OPTION, "too_many", message, got=len(document), expected=expected)]
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
    images = [draft for draft in active if draft.kind == "image"]
    texts = [draft for draft in active if draft.kind == "text_embeds"]
    rules.one_default(texts)
    references = [draft for draft in active if draft.kind == "conditioning"]
    evals = [draft for draft in active if draft.kind == "eval"]
    rules.references_lead_somewhere([*images, *evals], texts)
    rules.references_have_partners([*images, *evals], references)
    rules.caches_are_apart([*images, *evals, *references], texts)
    rules.something_is_trained(images)
    problems += [problem for draft in drafts for problem in draft.problems]
    problems += held_out.problems(context.values, images, evals)
    if not images and not any({"type", "dataset_type"} & draft.told for draft in active):
        problems.append(_no_images(len(disabled)))
    found = Dataloader(
        tuple(ImageSet.model_validate({"position": draft.position, **draft.values}) for draft in images if not draft.told),
        tuple(TextSet.model_validate({"position": draft.position, **draft.values}) for draft in texts if not draft.told),
        tuple(ReferenceSet.model_validate({"position": draft.position, **draft.values}) for draft in references if not draft.told),
        tuple(ImageSet.model_validate({"position": draft.position, **draft.values}) for draft in evals if not draft.told),
    )
    return _with_default(found, context, len(document), problems, texts)


def _wrong_document(document: object) -> Problem:
    expected = "a JSON list with at least one dataset of images"
    if document == []:
        return Problem.error(OPTION, "empty_list", "The dataloader file lists no dataset.", got="[]", expected=expected)
    if isinstance(document, list):
        message = f"The dataloader file lists {len(document)} datasets."
        return Problem.error(OPTION, "too_many", message, got=len(document), expected=f"at most {MOST_ENTRIES}")
    message = "The dataloader file is not a list of datasets."
    hint = "put the dataset into square brackets: [{...}]" if isinstance(document, Mapping) else ""
    return Problem.error(OPTION, "not_a_list", message, got=type(document).__name__, expected=expected, hint=hint)


def _other_document() -> Problem:
    """Nothing of the document is repeated: it is another file of the user's."""
    message = "The dataloader file describes no datasets: no entry has a field that only datasets have."
    expected = 'a list of datasets: [{"id": ..., "instance_data_dir": ..., "caption_strategy": ...}]'
    return Problem.error(OPTION, "not_datasets", message, expected=expected, hint="docs/datasets.md lists every field")


def _no_images(disabled: int) -> Problem:
    message = "The dataloader file has no dataset of images that is trained on."
    hint = f"{disabled} of its entries are disabled" if disabled else "add one with dataset_type image"
    return Problem.error(OPTION, "no_images", message, expected="at least one dataset of type image", hint=hint)


def _drafts(document: list[Any], context: EntryContext, locate: Locate | None) -> tuple[list[Draft], list[Problem]]:
    drafts, problems, suggestions = [], [], Suggestions()
    for position, raw in enumerate(document):
        if not isinstance(raw, Mapping):
            message = f"Entry {position} of the dataloader file is not an object."
            expected = 'an object: {"id": ..., "instance_data_dir": ...}'
            problems.append(Problem.error(f"{OPTION}[{position}]", "not_an_object", message, got=type(raw).__name__, expected=expected))
            continue
        draft = Draft(position, raw, {"model_family": context.family, "output_dir": context.output_dir}, locate, suggestions=suggestions)
        reading.read_id(draft)
        draft.placeholders = {**draft.placeholders, "id": draft.id}
        drafts.append(draft)
    return drafts, problems


def _read(draft: Draft, context: EntryContext) -> None:
    """Everything that one entry says."""
    reading.read_kind(draft)
    reading.read_names(draft)
    if draft.kind == "text_embeds":
        reading.read_values(draft, {"cache_dir": context.text_folder(), "write_batch_size": context.values["write_batch_size"]})
    elif draft.kind in OF_IMAGES:
        inherited = {name: context.values[name] for name in INHERITED}
        reading.read_values(draft, {"cache_dir_vae": context.latents_folder(draft.id), **inherited})
        _convert_sizes(draft, context.values["resolution_type"])
        reading.read_prompts(draft, context.values["instance_prompt"])
        reading.read_aspects(draft)
        reading.read_references(draft)
        for rule in rules.IMAGE_RULES:
            rule(draft)
        if draft.kind == "eval":
            held_out.settle(draft)
    elif draft.kind == "conditioning":
        inherited = {name: context.values[name] for name in (*SIZED, "write_batch_size", "vae_batch_size")}
        reading.read_values(draft, {"cache_dir_vae": context.latents_folder(draft.id), **inherited})
        _convert_sizes(draft, context.values["resolution_type"])
    draft.values["dataset_type"] = draft.kind


def _convert_sizes(draft: Draft, unit: str) -> None:
    """Sizes that the entry leaves to the options are in the options' unit; its own unit may be another."""
    for name in rules.SIZES:
        if draft.raw.get(name) in (None, ""):
            draft.values[name] = rules.in_unit(draft.values[name], unit, draft.values["resolution_type"])


def _with_default(
    found: Dataloader, context: EntryContext, count: int, problems: list[Problem], texts: list[Draft]
) -> tuple[Dataloader, list[Problem]]:
    """The dataloader with a text_embeds set made for it where the file has none."""
    if any(text.default for text in found.text_sets):
        return found, problems
    ids = {entry.id for entry in (*found.sets_of_images, *found.reference_sets)}
    name = next(name for name in (AUTOMATIC_TEXT_SET, *(f"{AUTOMATIC_TEXT_SET}-{n}" for n in range(2, count + 3))) if name not in ids)
    made = TextSet(
        position=count, id=name, default=True, cache_dir=context.text_folder(), write_batch_size=context.values["write_batch_size"]
    )
    if not texts and not errors_in(problems):
        message = f"The file has no text_embeds set: captions are kept in {made.cache_dir}."
        problems.append(Problem.note(OPTION, "text_set_made", message))
    return replace(found, text_sets=(*found.text_sets, made)), problems
