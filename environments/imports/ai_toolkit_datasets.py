"""The datasets of a job of ai-toolkit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from environments.imports.draft import FOLDER_REASON, Draft, check_caption_file, cropping, repeats_of, shuffling, square_edge
from environments.imports.source import Source

CONTROLS = ("control_path", "control_path_1", "control_path_2", "control_path_3")
REASONS: Mapping[str, str] = {
    "cache_latents": "latents are always cached",
    "cache_latents_to_disk": "latents are always cached on disk",
    "flip_x": "images are never flipped",
    "flip_y": "images are never flipped",
    "default_caption": "every image needs a caption; see instance_prompt",
    "alpha_mask": "masks are files of a set of their own; see docs/datasets.md",
    "shrink_video_to_frames": "a clip is cut to the number of frames",
    "augmentations": "images are not changed at random",
    "network_weight": "the adapter trains with its full strength",
}


def translate_sets(draft: Draft, process: Source, trigger: str | None) -> None:
    """Adds an image set for each dataset and resolution, its references and masks, and the set of texts."""
    rates: dict[str, float] = {}
    for number, dataset in enumerate(process.sections("datasets")):
        rate = dataset.number("caption_dropout_rate")
        if rate is not None and not dataset.flag("is_reg"):
            rates[dataset.name("caption_dropout_rate")] = rate
        _add(draft, dataset, number)
        dataset.finish(REASONS)
    use_dropout(draft, rates)
    draft.add_texts()
    if trigger is not None:
        use_trigger(draft, trigger, process.name("trigger_word"))


def use_dropout(draft: Draft, rates: Mapping[str, float]) -> None:
    """One probability holds for the whole run: that of the first dataset. Others that differ are left out."""
    first = next(iter(rates), "")
    draft.put("caption_dropout_probability", rates.get(first, 0.0), first)
    for name, rate in rates.items():
        if rate != rates[first]:
            draft.ledger.leave(name, rate, f"caption_dropout_probability holds for all datasets; it is {rates[first]}")


def use_trigger(draft: Draft, word: str, origin: str) -> None:
    """Replaces the placeholder in captions by a filter of the text set."""
    escaped = re.sub(r"([\\/])", r"\\\1", word)
    draft.datasets[-1]["caption_filter_list"] = [rf"s/\[trigger\]/{escaped}/"]
    draft.ledger.leave(origin, word, "it replaces [trigger] in captions and prompts; captions without that mark do not get it")


def _add(draft: Draft, dataset: Source, number: int) -> None:
    folder = dataset.text("folder_path") or dataset.text("dataset_path")
    controls, mask = _controls(dataset), dataset.text("mask_path")
    if folder is None:
        draft.ledger.leave(f"config.process[0].datasets[{number}]", dataset.values, FOLDER_REASON)
        dataset.values = {}
        return
    check_caption_file(dataset, "caption_ext")
    given = dataset.take("resolution")
    sizes = [square_edge(one) for one in (given if isinstance(given, list) else [512 if given is None else given])]
    has_buckets, frames = dataset.flag("buckets"), dataset.whole("num_frames")
    fields: dict[str, Any] = {
        "repeats": repeats_of(dataset.number("num_repeats")),
        "is_regularisation_data": True if dataset.flag("is_reg") else None,
        **cropping(True if has_buckets is None else has_buckets, bool(dataset.flag("random_crop"))),
        **shuffling(dataset.flag("shuffle_tokens"), dataset.whole("keep_tokens")),
    }
    if frames is not None and frames > 1:
        fields |= {"dataset_type": "video", "video": {"num_frames": frames, "min_frames": frames}}
    for size in sizes:
        if size is None:
            draft.ledger.wrong(dataset.name("resolution"), given, "a size in pixels, or a list of sizes")
            continue
        images = draft.add_set(folder, resolution=size, resolution_type="pixel_area", **fields)
        for control in controls:
            draft.add_partner(images, control, "reference_strict")
        if mask is not None:
            draft.add_partner(images, mask, "mask")


def _controls(dataset: Source) -> list[str]:
    return [path for key in CONTROLS for path in dataset.texts(key)]
