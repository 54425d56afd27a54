"""The datasets of sd-scripts: a file with ``[[datasets]]`` and their subsets, or the folders among the arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from environments.imports.ai_toolkit_datasets import use_dropout
from environments.imports.draft import FOLDER_REASON, Draft, check_caption_file, cropping, repeats_of, shuffling, square_edge
from environments.imports.source import Source

REASONS: Mapping[str, str] = {
    **dict.fromkeys(("flip_aug", "color_aug", "face_crop_aug_range", "random_crop"), "images are not changed at random"),
    **dict.fromkeys(("min_bucket_reso", "max_bucket_reso"), "see minimum_aspect_ratio and maximum_aspect_ratio of the set"),
    **dict.fromkeys(("metadata_file", "in_json"), "captions are read from .txt files or from a table; see parquet in docs/datasets.md"),
    "bucket_no_upscale": "small images are enlarged; max_upscale_threshold leaves them out",
    "class_tokens": "it stands in for captions that are missing; see caption_strategy=instanceprompt with instance_prompt",
    "caption_suffix": "captions can be changed by caption_filter_list",
    "caption_tag_dropout_rate": "captions are dropped as a whole; see caption_dropout_probability",
    "caption_dropout_every_n_epochs": "see caption_dropout_probability",
    "keep_tokens_separator": "see caption_shuffle.position_start",
}
COUNTED = "folders within it are searched; the number in front of their names is not read: set repeats"


def translate_sets(draft: Draft, values: list[Any], arguments: Source) -> None:
    """Adds the sets of every file of datasets, else those of the folders among the arguments, and the set of texts."""
    rates: dict[str, float] = {}
    sizes: list[int] = []
    general = arguments.whole("train_batch_size")
    for document in values:
        if "datasets" not in document:
            continue
        file = Source(document, "", draft.ledger)
        shared = file.section("general")
        for dataset in file.sections("datasets", parents=(shared, arguments)):
            sizes.append(dataset.whole("batch_size") or general or 1)
            _subsets(draft, dataset, sizes, rates)
            dataset.finish(REASONS)
        shared.finish(REASONS)
    if not draft.datasets:
        _folders(draft, arguments, rates)
    size = sizes[0] if sizes else general or 1
    draft.put("train_batch_size", size, arguments.name("train_batch_size"))
    use_dropout(draft, rates)
    draft.add_texts()
    for key, reason in REASONS.items():
        arguments.leave(key, reason)


def _subsets(draft: Draft, dataset: Source, sizes: list[int], rates: dict[str, float]) -> None:
    own = {"train_batch_size": sizes[-1]} if sizes[-1] != sizes[0] else {}
    fields = {**_sized(draft, dataset), **own}
    for subset in dataset.sections("subsets", parents=(dataset, *dataset.parents)):
        folder = subset.text("image_dir")
        if folder is None:
            draft.ledger.leave(subset.path, subset.values, FOLDER_REASON)
            continue
        _add(draft, subset, folder, fields, rates)
        subset.finish(REASONS)


def _sized(draft: Draft, source: Source) -> dict[str, Any]:
    """The fields of size and cropping of a dataset."""
    given = source.take("resolution")
    edge = square_edge(given) if given is not None else 512
    if edge is None:
        draft.ledger.wrong(source.origin("resolution"), given, "a size in pixels, or a width and a height")
    steps = source.whole("bucket_reso_steps")
    draft.put("aspect_bucket_alignment", steps, source.origin("bucket_reso_steps"))
    return {"resolution": edge, "resolution_type": "pixel_area", **cropping(bool(source.flag("enable_bucket")))}


def _add(draft: Draft, source: Source, folder: str, fields: Mapping[str, Any], rates: dict[str, float]) -> dict[str, Any]:
    """One image set: its captions, repeats and masks."""
    check_caption_file(source, "caption_extension")
    is_prior, prefix, masks = source.flag("is_reg"), source.text("caption_prefix"), source.text("conditioning_data_dir")
    rate = source.number("caption_dropout_rate")
    if rate is not None and not is_prior:
        rates[source.origin("caption_dropout_rate")] = rate
    images = draft.add_set(
        folder,
        repeats=repeats_of(source.number("num_repeats")),
        is_regularisation_data=True if is_prior else None,
        **fields,
        **shuffling(source.flag("shuffle_caption"), source.whole("keep_tokens")),
        **({"instance_prompt": prefix, "prepend_instance_prompt": True} if prefix else {}),
    )
    if masks is not None:
        draft.add_partner(images, masks, "mask")
    return images


def _folders(draft: Draft, arguments: Source, rates: dict[str, float]) -> None:
    fields = _sized(draft, arguments)
    for key, is_prior in (("train_data_dir", False), ("reg_data_dir", True)):
        folder = arguments.text(key)
        if folder is None:
            continue
        images = _add(draft, arguments, folder, fields, rates)
        if is_prior:
            images["is_regularisation_data"] = True
        if arguments.values.get("num_repeats") is None:
            draft.ledger.leave(arguments.name(key), folder, COUNTED)
    arguments.take("masked_loss")
