"""The concepts and samples of OneTrainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from environments.imports.draft import FOLDER_REASON, Draft, cropping, repeats_of, shuffling, square_edge
from environments.imports.source import Source

IMAGE_REASON = "images are not changed at random"
TEXT_REASONS = {
    "prompt_path": "captions are read from .txt files beside the images",
    "tag_dropout_enable": "captions are dropped as a whole; see caption_dropout_probability",
    "tag_delimiter": "see caption_shuffle.split_on",
}
REASONS: Mapping[str, str] = {
    "seed": "the seed of the run decides the order of samples",
    "loss_weight": "see probability and repeats of the set",
    "image_variations": "an image has one entry in the cache",
    "text_variations": "see caption_shuffle.count",
}
DEFAULTS: Mapping[str, Any] = {
    "image_variations": 1,
    "text_variations": 1,
    "loss_weight": 1.0,
    "balancing_strategy": "REPEATS",
    "include_subdirectories": True,
    "tag_delimiter": ",",
    "tag_dropout_mode": "FULL",
    "tag_dropout_special_tags_mode": "NONE",
    "resolution_override": "512",
    "caps_randomize_mode": "capslock, title, first, random",
    "keep_tags_count": 1,
    "enable_crop_jitter": True,
}
EVALUATED = ("VALIDATION", "eval")


def translate_concepts(draft: Draft, source: Source, files: list[list[Any]]) -> None:
    """Adds an image set for each concept and resolution, and the set of texts."""
    if files:
        source.take("concept_file_name")
    found = source.sections("concepts")
    for number, file in enumerate(files):
        found += Source({f"concepts file {number + 1}": file}, "", draft.ledger).sections(f"concepts file {number + 1}")
    given, has_buckets = source.text("resolution") or "512", source.flag("aspect_ratio_bucketing")
    for concept in found:
        _add(draft, concept, given, True if has_buckets is None else has_buckets)
    draft.put("caption_dropout_probability", 0.0, "concepts")
    draft.add_texts()


def _add(draft: Draft, concept: Source, resolution: str, has_buckets: bool) -> None:
    folder, image, text = concept.text("path"), concept.section("image"), concept.section("text")
    concept.take("name")
    concept.take("__version")
    if concept.flag("enabled") is False or folder is None:
        reason = FOLDER_REASON if folder is None else "the concept is switched off"
        draft.ledger.leave(concept.path, {"name": concept.values.get("name"), "path": folder}, reason)
        return
    if image.flag("enable_resolution_override"):
        resolution = image.text("resolution_override") or resolution
    kind = (concept.text("type") or "").upper()
    is_evaluated = kind == EVALUATED[0] or bool(concept.flag("validation_concept"))
    source_of_captions = text.text("prompt_source") or "sample"
    fields: dict[str, Any] = {
        "dataset_type": EVALUATED[1] if is_evaluated else None,
        "caption_strategy": "filename" if source_of_captions == "filename" else None,
        "is_regularisation_data": True if kind == "PRIOR_PREDICTION" else None,
        **cropping(has_buckets),
        **shuffling(text.flag("enable_tag_shuffling"), text.whole("keep_tags_count")),
    }
    if source_of_captions == "concept":
        draft.ledger.leave(text.name("prompt_source"), source_of_captions, "captions are read from .txt files beside the images")
    fields |= _amount(draft, concept)
    for part in resolution.split(","):
        edge = square_edge(part.strip())
        if edge is None:
            draft.ledger.wrong("resolution", resolution, "a size in pixels, WIDTHxHEIGHT, or several separated by commas")
            continue
        draft.add_set(folder, resolution=edge, resolution_type="pixel_area", **fields)
    for part_of, reasons in ((image, dict.fromkeys(image.values, IMAGE_REASON)), (text, TEXT_REASONS), (concept, REASONS)):
        part_of.finish(reasons, DEFAULTS)


def _amount(draft: Draft, concept: Source) -> dict[str, Any]:
    """How often a concept is seen: repeats, or a number of samples an epoch."""
    key = "balancing" if "balancing" in concept.values else "repeats"
    amount, strategy = concept.number(key), (concept.text("balancing_strategy") or "REPEATS").upper()
    if strategy == "SAMPLES":
        draft.ledger.leave(concept.name(key), amount, "a set is seen completely; see probability and repeats")
        return {"repeats": 0}
    if amount is not None and amount != round(amount):
        draft.ledger.leave(concept.name(key), amount, f"sets repeat in whole numbers: {repeats_of(amount) + 1} times")
    return {"repeats": repeats_of(amount)}


def translate_samples(draft: Draft, source: Source, files: list[list[Any]]) -> None:
    """The prompts of samples, and the settings of the first of them."""
    if files:
        source.take("sample_definition_file_name")
    every, unit = source.whole("sample_after"), (source.text("sample_after_unit") or "MINUTE").upper()
    option = {"STEP": "validation_step_interval", "EPOCH": "validation_epoch_interval"}.get(unit)
    if unit != "STEP":
        draft.put("validation_step_interval", 0, source.name("sample_after_unit"))
    if option is not None:
        draft.put(option, every, source.name("sample_after"))
    elif unit != "NEVER" and every:
        draft.ledger.leave(source.name("sample_after"), f"{every} {unit}", "images are validated every so many steps or epochs")
    samples = source.sections("samples")
    for number, file in enumerate(files):
        samples += Source({f"samples file {number + 1}": file}, "", draft.ledger).sections(f"samples file {number + 1}")
    used = [sample for sample in samples if sample.flag("enabled") is not False and sample.text("prompt")]
    draft.use_prompts([sample.text("prompt") or "" for sample in used], "samples")
    if not used:
        return
    first = used[0]
    draft.put("validation_resolution", f"{first.whole('width') or 512}x{first.whole('height') or 512}", first.name("width"))
    kinds = {"cfg_scale": ("validation_guidance", "number"), "diffusion_steps": ("validation_num_inference_steps", "whole")}
    draft.copy(first, {**kinds, "seed": ("validation_seed", "whole"), "negative_prompt": ("validation_negative_prompt", "text")})
    for sample in used[1:]:
        rest = {key: sample.values.get(key) for key in ("width", "height", "seed", "cfg_scale", "diffusion_steps", "negative_prompt")}
        if any(value is not None and value != first.values.get(key) for key, value in rest.items()):
            draft.ledger.leave(sample.path, rest, "all prompts have the settings of the first sample")
