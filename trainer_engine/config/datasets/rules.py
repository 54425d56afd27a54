"""Rules that the fields of an entry must satisfy together, and the entries of a file among each other."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer_engine.config.dataset_tables import caption_specs, source_specs
from trainer_engine.config.datasets.entry import EntryDraft
from trainer_engine.config.families import find_spec
from trainer_engine.config.rules.data import SMALLEST_PIXEL_EDGE
from trainer_engine.config.rules.timesteps import DISTRIBUTIONS

SIZES = ("resolution", "minimum_image_size", "maximum_image_size", "target_downsample_size")
LARGEST_MEGAPIXELS: Mapping[str, float] = {
    "resolution": 20,
    "minimum_image_size": 5,
    "maximum_image_size": 20,
    "target_downsample_size": 20,
}


def in_unit(value: float | None, unit: str, wanted: str) -> float | None:
    """Converts a size of the options to the unit of an entry."""
    if not value or unit == wanted or "area" not in (unit, wanted):
        return value
    return float(round(math.sqrt(value * 1e6))) if unit == "area" else value * value / 1e6


def sizes_are_in_their_unit(draft: EntryDraft) -> None:
    unit = draft.values["resolution_type"]
    if "resolution_type" in draft.reported:
        return
    for name in SIZES:
        value = draft.values[name]
        if not value:
            continue
        if unit == "area" and value >= LARGEST_MEGAPIXELS[name]:
            what = f"{name}={value:g} with resolution_type=area is {value:g} megapixels; it looks like pixels."
            hint = "use resolution_type=pixel_area, or write megapixels: 1.0 for 1024x1024"
            draft.error(name, "looks_like_pixels", what, got=value, expected="megapixels", hint=hint)
        elif unit != "area" and value < SMALLEST_PIXEL_EDGE:
            what = f"{name}={value:g} with resolution_type={unit} is {value:g} pixels; it looks like megapixels."
            draft.error(name, "looks_like_megapixels", what, got=value, expected="pixels", hint="use resolution_type=area, or write pixels")
        elif unit != "area" and name == "resolution" and value != int(value):
            what = f"resolution_type={unit} needs a whole number of pixels."
            draft.error(name, "not_a_whole_number", what, got=value, expected="a whole number of pixels")


def limits_come_together(draft: EntryDraft) -> None:
    maximum, target = draft.values["maximum_image_size"], draft.values["target_downsample_size"]
    if bool(maximum) != bool(target) and not {"maximum_image_size", "target_downsample_size"} & draft.reported:
        missing = "maximum_image_size" if target else "target_downsample_size"
        what = f"{missing} is missing: maximum_image_size and target_downsample_size need each other."
        draft.error(missing, "incomplete", what, expected="maximum_image_size and target_downsample_size, or neither")
    if maximum and target and not draft.values["crop"] and "maximum_image_size" in draft.raw:
        draft.note("maximum_image_size", "no_effect", "it has no effect without crop: every image is scaled to its target.", got=maximum)


def aspects_leave_a_range(draft: EntryDraft) -> None:
    low, high = draft.values["minimum_aspect_ratio"], draft.values["maximum_aspect_ratio"]
    if low and high and low > high:
        what = f"minimum_aspect_ratio={low:g} is above maximum_aspect_ratio={high:g}: no image fits."
        draft.error("minimum_aspect_ratio", "empty_range", what, got=low, expected=f"at most {high:g}")


def aspect_choices_are_given(draft: EntryDraft) -> None:
    how = draft.values["crop_aspect"]
    if how in ("random", "closest") and not draft.values["crop_aspect_buckets"]:
        what = f"crop_aspect={how} chooses from crop_aspect_buckets, which is missing."
        draft.error("crop_aspect_buckets", "missing", what, expected="a list of aspects: [0.75, 1.0, 1.5]")


def instance_prompt_is_given(draft: EntryDraft) -> None:
    values = draft.values
    wanted_by = [name for name in ("prepend_instance_prompt", "only_instance_prompt") if values[name]]
    if values["caption_strategy"] == "instanceprompt":
        wanted_by.append("caption_strategy=instanceprompt")
    if wanted_by and not values["instance_prompt"]:
        what = f"{' and '.join(wanted_by)} needs instance_prompt."
        draft.error("instance_prompt", "missing", what, expected="text, or a list of texts")


def schedule_has_room(draft: EntryDraft) -> None:
    """Checks that a set ends no sooner than it begins."""
    for unit in ("epoch", "step"):
        start, end = draft.values[f"start_{unit}"], draft.values[f"end_{unit}"]
        if end and end < start and not {f"start_{unit}", f"end_{unit}"} & draft.reported:
            what = f"end_{unit}={end} is before start_{unit}={start}, so it would never be trained on."
            draft.error(f"end_{unit}", "empty_range", what, got=end, expected=f"at least {start}, or empty for no end")


def upscaling_is_of_random_aspects(draft: EntryDraft) -> None:
    limit = draft.values["max_upscale_threshold"]
    if limit is not None and not (draft.values["crop"] and draft.values["crop_aspect"] == "random"):
        draft.note("max_upscale_threshold", "no_effect", "max_upscale_threshold has no effect without crop_aspect=random.", got=limit)


def new_crops_are_random(draft: EntryDraft) -> None:
    """Notes that nothing changes from epoch to epoch if crops are not random."""
    values, name = draft.values, "vae_cache_clear_each_epoch"
    if not values[name]:
        return
    if draft.kind == "eval":
        draft.note(name, "no_effect", "its images are evaluated with the same crops in every epoch.", got=True)
    elif not values["crop"] or ("random" not in (values["crop_style"], values["crop_aspect"])):
        what = f"{name} has no effect: only crops with crop_style=random or crop_aspect=random differ from epoch to epoch."
        draft.note(name, "no_effect", what, got=True)


def table_is_given(draft: EntryDraft) -> None:
    """Checks that the table of captions or sizes is there, with the columns that are read."""
    values, table = draft.values, draft.values["parquet"]
    needed: dict[str, tuple[str, ...]] = {}
    if values.get("caption_strategy") == "parquet":
        needed["caption_strategy=parquet"] = ("caption_column",)
    if values["metadata_backend"] == "parquet":
        needed["metadata_backend=parquet"] = ("width_column", "height_column")
    if any(field.startswith("parquet") for field in draft.reported):
        return
    if table is None:
        if needed:
            expected = 'an object: {"path": ..., "filename_column": ...}'
            draft.error("parquet", "missing", f"{' and '.join(needed)} needs parquet.", expected=expected)
        return
    if not needed:
        what = "its table is not read: neither caption_strategy nor metadata_backend is parquet."
        draft.note("parquet", "no_effect", what, got=table.path)
    for by, columns in needed.items():
        for name in columns:
            if not getattr(table, name):
                draft.error(f"parquet.{name}", "missing", f"{by} needs parquet.{name}.", expected="the name of a column")


def captions_suit_the_source(draft: EntryDraft) -> None:
    """Refuses a caption strategy that can give no captions to files of this source."""
    values = draft.values
    name, source = values["caption_strategy"], source_specs().get(values["type"])
    strategy = caption_specs().get(name)
    if source is None or strategy is None or values["only_instance_prompt"]:
        return
    if (source.captions and name not in source.captions) or (strategy.sources and source.name not in strategy.sources):
        fitting = [one.name for one in caption_specs().values() if not one.sources or source.name in one.sources]
        fitting = [one for one in fitting if not source.captions or one in source.captions]
        what = f"caption_strategy={name} gives no captions to files of type={source.name}."
        hint = f"set caption_strategy to {' or '.join(fitting)}"
        draft.error("caption_strategy", "not_for_source", what, got=name, expected=f"one of {', '.join(fitting)}", hint=hint)


def sizes_suit_the_source(draft: EntryDraft) -> None:
    """Refuses a ``metadata_backend`` that is named after a source, for sets of another source."""
    backend, source = draft.values["metadata_backend"], draft.values["type"]
    if backend in source_specs() and backend != source:
        what = f"metadata_backend={backend} reads the sizes of sets with type={backend}; this one has type={source}."
        draft.error("metadata_backend", "not_for_source", what, got=backend, expected="discovery", hint="leave metadata_backend out")


IMAGE_RULES: tuple[Callable[[EntryDraft], None], ...] = (
    sizes_are_in_their_unit,
    limits_come_together,
    aspects_leave_a_range,
    aspect_choices_are_given,
    instance_prompt_is_given,
    schedule_has_room,
    upscaling_is_of_random_aspects,
    new_crops_are_random,
    table_is_given,
    captions_suit_the_source,
    sizes_suit_the_source,
)


def ids_are_unique(drafts: Sequence[EntryDraft]) -> None:
    first: dict[str, int] = {}
    for draft in drafts:
        if draft.id and draft.id in first:
            what = f"entry {first[draft.id]} of the dataloader file has the same id."
            draft.error("id", "duplicate_id", what, got=draft.id, expected="an id that no other dataset has")
        elif draft.id:
            first[draft.id] = draft.position


def one_default(texts: Sequence[EntryDraft]) -> None:
    """Allows at most one default among the text_embeds sets, and makes the first one the default if none is."""
    chosen = [draft for draft in texts if draft.values.get("default")]
    for draft in chosen[1:]:
        what = f"{chosen[0].title} is already the default."
        draft.error("default", "second_default", what, got=True, expected="one default among the text_embeds sets")
    if texts and not chosen:
        texts[0].values["default"] = True
        if len(texts) > 1:
            texts[0].note("default", "promoted", "no text_embeds set is the default; this one, the first, is used.")


def text_sets_exist(images: Sequence[EntryDraft], texts: Sequence[EntryDraft]) -> None:
    known = {draft.id for draft in texts}
    for draft in images:
        wanted = draft.values.get("text_embeds")
        if wanted and wanted not in known:
            expected = f"one of {', '.join(sorted(known))}" if known else "the id of a text_embeds set; the file has none"
            draft.error("text_embeds", "unknown_reference", f"there is no text_embeds set {wanted!r}.", got=wanted, expected=expected)


def references_have_partners(images: Sequence[EntryDraft], references: Sequence[EntryDraft]) -> None:
    """Checks that every id in conditioning_data is a conditioning set, and that every conditioning set is used."""
    known = {draft.id: draft for draft in references}
    named: set[str] = set()
    for draft in images:
        generated = {one.id_of(draft.id) for one in draft.values.get("conditioning", ())}
        for wanted in draft.values.get("conditioning_data", ()):
            named.add(wanted)
            if wanted in generated:
                continue
            if wanted not in known:
                what = f"there is no conditioning set {wanted!r}."
                expected = f"one of {', '.join(sorted(known))}" if known else "the id of a conditioning set; the file has none"
                draft.error("conditioning_data", "unknown_reference", what, got=wanted, expected=expected)
            else:
                _sizes_follow(known[wanted], draft)
    for draft in references:
        source = draft.values.get("source_dataset_id")
        if source and source not in {image.id for image in images if draft.id in image.values.get("conditioning_data", ())}:
            what = f"no image set {source!r} names it in conditioning_data."
            draft.error("source_dataset_id", "unknown_reference", what, got=source, expected="the id of the set that names it")
        elif draft.id not in named:
            what = "no image set names it in conditioning_data: it is not used."
            draft.warning("id", "not_linked", what, got=draft.id)


def _sizes_follow(reference: EntryDraft, partner: EntryDraft) -> None:
    for name in (*SIZES, "resolution_type"):
        given = reference.raw.get(name)
        if given not in (None, "") and name not in reference.reported and reference.values[name] != partner.values.get(name):
            what = f"{name} is taken from {partner.title}: {partner.values.get(name)}."
            reference.note(name, "follows_partner", what, got=given)


def caches_are_apart(images: Sequence[EntryDraft], texts: Sequence[EntryDraft]) -> None:
    """Checks that every image set has its own folder for latents, which no text_embeds set uses either."""
    owners: dict[str, EntryDraft] = {}
    for draft in texts:
        owners.setdefault(_folder(draft.values.get("cache_dir")), draft)
    for draft in images:
        folder = _folder(draft.values.get("cache_dir_vae"))
        owner = owners.setdefault(folder, draft)
        if folder and owner is not draft:
            what = f"its cache_dir_vae is also the cache of {owner.title}."
            hint = "leave cache_dir_vae out, or end it with /{id}"
            draft.error("cache_dir_vae", "shared_cache", what, got=folder, expected="a folder of its own", hint=hint)


def _folder(path: Any) -> str:
    return os.path.normpath(path) if isinstance(path, str) and path else ""


def regularisation_has_an_effect(images: Sequence[EntryDraft], model_type: str) -> None:
    """Notes sets for prior preservation in a full fine-tune, and warns if an adapter has nothing else to learn from."""
    chosen = [draft for draft in images if draft.values.get("is_regularisation_data")]
    name = "is_regularisation_data"
    if model_type == "full":
        what = "a full fine-tune has no frozen base model beside it: it trains on the images of this set like on any other."
        for draft in chosen:
            draft.note(name, "trained_as_images", what, got=True)
    elif chosen and len(chosen) == len(images):
        what = "every image set is regularisation data: the adapter only learns to change nothing."
        chosen[0].warning(name, "nothing_to_learn", what, got=True)


def sliders_have_two_sides(images: Sequence[EntryDraft], model_type: str) -> None:
    """Refuses sides of a slider that no adapter can learn, and warns about a slider with one side."""
    name = "slider_strength"
    sides = [draft for draft in images if draft.values.get(name) and draft.values.get("probability")]
    for draft in sides:
        got = draft.values[name]
        if model_type == "full":
            what = "a full fine-tune has no strength that could be positive or negative."
            draft.error(name, "needs_adapter", what, got=got, expected="0, or model_type=lora")
        elif draft.values.get("is_regularisation_data"):
            what = "the adapter cannot learn its images as a side of a slider, and to change nothing on them."
            draft.error(name, "conflict", what, got=got, expected="0, or is_regularisation_data=false")
    if sides and len({draft.values[name] > 0 for draft in sides}) == 1:
        missing = "negative" if sides[0].values[name] > 0 else "positive"
        what = f"no image set has a {missing} {name}: the slider learns from one side alone."
        sides[0].warning(name, "one_side", what, got=sides[0].values[name])


def offsets_have_an_effect(images: Sequence[EntryDraft], values: Mapping[str, Any]) -> None:
    """Refuses offsets of timesteps that no sigmoid gives."""
    name = "timestep_sampling_offset"
    spec = find_spec(str(values["model_family"]))
    other = [f"{option}=true" if values[option] is True else option for option in DISTRIBUTIONS if values[option]]
    if spec is not None and spec.objective != "flow_matching":
        other = [f"the objective of {spec.title}"]
    for draft in images:
        if other and draft.values.get(name):
            what = f"{other[0]} samples timesteps without a sigmoid: {name} would have no effect."
            draft.error(name, "no_effect", what, got=draft.values[name], expected="0", hint="remove it")


def something_is_trained(images: Sequence[EntryDraft]) -> None:
    if images and all(draft.values.get("probability") == 0 for draft in images):
        what = "every image set has probability 0, so there is nothing to train on."
        images[0].error("probability", "nothing_to_train", what, got=0, expected="one set with a probability above 0")


def something_begins_at_once(images: Sequence[EntryDraft]) -> None:
    """Checks that at least one set is trained on from the first step."""
    trained = [draft for draft in images if draft.values.get("probability") != 0]
    late = [draft for draft in trained if draft.values.get("start_epoch", 1) > 1 or draft.values.get("start_step", 0) > 1]
    if trained and len(late) == len(trained):
        name = "start_epoch" if trained[0].values.get("start_epoch", 1) > 1 else "start_step"
        what = "no image set is trained on from the first step of the first epoch."
        trained[0].error(name, "nothing_begins", what, got=trained[0].values[name], expected="one set without start_epoch and start_step")
