"""Translates the TOML files of musubi-tuner: the arguments of a training script, and the file of its datasets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from environments.imports import vocabulary
from environments.imports.draft import FOLDER_REASON, Draft, check_caption_file, cropping, repeats_of, square_edge
from environments.imports.sd_arguments import REASONS, flattened, translate_run, translate_timesteps
from environments.imports.sd_network import translate_network
from environments.imports.source import Source

FORMAT = "musubi"
FOLDERS = ("image_directory", "video_directory")
TABLES = ("image_jsonl_file", "video_jsonl_file")
OWN_ARGUMENTS = frozenset(["dit", "fp8_scaled", "fp8_t5", "fp8_llm", "vae_cache_cpu", "num_timestep_buckets", "dit_high_noise"])
TEXT_ENCODERS = ("t5", "clip", "text_encoder1", "text_encoder2", "text_encoder", "image_encoder")
PARTS = {
    **dict.fromkeys(TEXT_ENCODERS, "text encoders are those of the repository"),
    **dict.fromkeys(("fp8_t5", "fp8_llm", "fp8_vl"), "see text_encoder_1_precision"),
    **dict.fromkeys(("vae_dtype", "vae_cache_cpu", "vae_chunk_size", "vae_tiling"), "see the options of the autoencoder, vae_enable_*"),
    "source_fps": "clips are read at their own rate",
    "frame_stride": "a clip gives one sample",
    "frame_sample": "a clip gives one sample",
    "cache_directory": "each set has its cache below cache/",
    "bucket_no_upscale": "small images are enlarged; max_upscale_threshold leaves them out",
    "num_timestep_buckets": "timesteps of a batch are independent",
    "img_in_txt_in_offloading": "see the options of memory",
}
HEAD, FULL = "head", "full"


def recognises(value: Any) -> bool:
    """Whether a parsed document holds arguments or datasets of musubi-tuner."""
    if not isinstance(value, Mapping):
        return False
    datasets = value.get("datasets")
    entries = [one for one in datasets if isinstance(one, Mapping)] if isinstance(datasets, list) else []
    if any(key in one for one in entries for key in (*FOLDERS, *TABLES)):
        return True
    return not OWN_ARGUMENTS.isdisjoint(flattened([value]))


def translate(values: list[Any], draft: Draft) -> None:
    """Fills the draft from a file of arguments, a file of datasets, or both."""
    source = Source(flattened(values), "", draft.ledger)
    _model(draft, source)
    translate_run(draft, source)
    translate_network(draft, source, full=False)
    translate_timesteps(draft, source, 1.0)
    _datasets(draft, values)
    if draft.has_images:
        source.take("dataset_config")
    source.finish({**REASONS, **PARTS})


def _model(draft: Draft, source: Source) -> None:
    module, task, weights = source.text("network_module") or "", source.text("task"), source.text("dit")
    words = [word for word in (task, module.rsplit(".", 1)[-1].partition("_")[2]) if word]
    known = [word for word in words if vocabulary.find_model([word], None)]
    vocabulary.use_model(draft, known or words, weights, source.name("dit"))
    draft.options.pop("pretrained_model_name_or_path", None)
    draft.put("pretrained_transformer_model_name_or_path", weights, source.name("dit"))
    draft.copy(source, {"vae": ("pretrained_vae_model_name_or_path", "text")})
    is_small = source.flag("fp8_base") or source.flag("fp8_scaled")
    draft.put("base_model_precision", "fp8-native" if is_small else None, source.name("fp8_base"))
    source.take("fp8_scaled")


def _datasets(draft: Draft, values: list[Any]) -> None:
    sizes: list[int] = []
    for document in values:
        if "datasets" not in document:
            continue
        file = Source(document, "", draft.ledger)
        general = file.section("general")
        for dataset in file.sections("datasets", parents=(general,)):
            sizes.append(dataset.whole("batch_size") or 1)
            _add(draft, dataset, {"train_batch_size": sizes[-1]} if sizes[-1] != sizes[0] else {})
            dataset.finish(PARTS)
        general.finish(PARTS)
    draft.put("train_batch_size", sizes[0] if sizes else 1, "datasets[0].batch_size")
    draft.put("caption_dropout_probability", 0.0, "")
    draft.add_texts()


def _add(draft: Draft, dataset: Source, fields: dict[str, Any]) -> None:
    kind = next((key for key in FOLDERS if dataset.values.get(key)), None)
    if kind is None:
        table = next((key for key in TABLES if dataset.values.get(key)), None)
        reason = "captions of a table need the folder of its files; see parquet in docs/datasets.md" if table else FOLDER_REASON
        draft.ledger.leave(dataset.path, dataset.values, reason)
        dataset.values = {}
        return
    check_caption_file(dataset, "caption_extension")
    folder, given = dataset.text(kind) or "", dataset.take("resolution")
    edge = square_edge(given) if given is not None else 960
    if edge is None:
        draft.ledger.wrong(dataset.origin("resolution"), given, "a width and a height in pixels")
    fields |= {"resolution": edge, "resolution_type": "pixel_area", "repeats": repeats_of(dataset.number("num_repeats"))}
    fields |= cropping(bool(dataset.flag("enable_bucket")))
    control = dataset.text("control_directory")
    for more in _clips(draft, dataset) if kind == "video_directory" else [{}]:
        images = draft.add_set(folder, **fields, **more)
        if control is not None:
            draft.add_partner(images, control, "reference_strict")


def _clips(draft: Draft, dataset: Source) -> list[dict[str, Any]]:
    """The fields of the sets of clips, one for each number of frames. A clip gives each set one sample."""
    frames, way = dataset.take("target_frames"), (dataset.text("frame_extraction") or HEAD).lower()
    longest = dataset.whole("max_frames")
    counts = [one for one in (frames if isinstance(frames, list) else [frames]) if isinstance(one, int) and not isinstance(one, bool)]
    if way == FULL:
        counts = [longest] if longest else []
    if 1 in counts:
        draft.ledger.leave(dataset.name("target_frames"), 1, "clips are trained as clips; a set of stills trains on single frames")
    if way not in (HEAD, FULL):
        draft.ledger.leave(dataset.name("frame_extraction"), way, "a clip gives one sample, from its start")
    clips = [{"num_frames": count, "min_frames": count} for count in counts if count > 1]
    return [{"dataset_type": "video", "video": clip} for clip in clips] or [{"dataset_type": "video"}]
