"""How much a run will still write to its caches. Entries that exist are not written again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from trainer_engine.config.datasets import Dataloader, ReferenceSet
from trainer_engine.config.datasets.sizes import FLOAT32_BYTES, SHORT_BYTES, bytes_with_frame, caption_bytes, latent_bytes, stores_padding
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.report import DatasetReport, SetReport
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.shards import older
from trainer_engine.datasets.shards.folder import SHARDS, ShardFolder
from training.preflight.disk import DiskUse
from training.preflight.estimates import size as size_text

HEADER_BYTES = 512
"""Upper bound for the header of an entry."""
MOST_TOKENS = 300
"""Upper bound for the tokens of a caption whose padding is not stored."""
BYTES_OF_TOKEN_ID = 2 * 8
"""Of a prompt that is encoded in every step: its number and its mask."""
LATENTS, EMBEDDINGS, GENERATED = CACHED = ("latents", "text embeddings", "generated images")
LARGE_EMBEDDINGS_BYTES = 10_000_000_000
"""From here on ``validate`` names the options that store less."""
BYTES_OF_PIXEL = 3
"""Upper bound for a pixel of a PNG in colour."""


def cache_uses(
    options: TrainingOptions, spec: FamilySpec, dataloader: Dataloader, report: DatasetReport, *, on_cpu: bool
) -> Iterator[DiskUse]:
    """One use for each folder of latents or text embeddings that the run writes to."""
    data = options.data
    number = FLOAT32_BYTES if on_cpu or options.precision.vae_dtype in ("fp32", "default") else SHORT_BYTES
    latents: dict[tuple[str, Path], list[int]] = defaultdict(list)
    prompts: dict[tuple[str, Path], set[str]] = defaultdict(set)
    for found in (*report.sets, *report.eval_sets):
        entry = found.entry
        if not (entry.vae_cache_disable or data.vae_cache_disable):
            sizes = list(_latent_sizes(found.samples, spec, number))
            if spec.animates(options.model.model_flavour):
                seen = FLOAT32_BYTES if on_cpu or options.precision.mixed_precision == "no" else SHORT_BYTES
                sizes = [bytes_with_frame(spec, size, number=seen) for size in sizes]
            latents[entry.option("cache_dir_vae"), Path(entry.vae_cache)] += sizes
        yield from _generated_uses(found, dataloader.partners_of(entry))
        for place, one in enumerate(dataloader.references_of(entry)):
            if not (one.vae_cache_disable or data.vae_cache_disable or spec.sees_control_pixels):
                references = (sample.references[place].sample for sample in found.samples if len(sample.references) > place)
                sizes = list(_latent_sizes(references, spec, number))
                latents[one.option("cache_dir_vae"), Path(one.vae_cache)] += sizes
        masks = dataloader.mask_of(entry)
        if masks is not None:
            shown = [sample.mask.sample for sample in found.samples if sample.mask]
            sizes = [size // spec.latents.channels for size in _latent_sizes(shown, spec, FLOAT32_BYTES)]
            latents[masks.option("cache_dir_vae"), Path(masks.vae_cache)] += sizes
        text = dataloader.text_set_of(entry)
        if text.text_cache_disable or data.text_cache_disable:
            continue
        captions = (caption for sample in found.samples for caption in sample.captions)
        prompts[text.option("cache_dir"), Path(text.text_cache)].update(captions)
    for (option, folder), sizes in latents.items():
        missing = _missing_latents(sizes, folder)
        yield DiskUse(option, folder, LATENTS, missing, missing)
    flavour, encoders = options.model.model_flavour, len(spec.trained_text_encoders)
    unpadded = not stores_padding(spec, options.as_values())
    limit = options.model.tokenizer_max_length
    is_short = spec.prompts.stores_short or spec.prompts.stacked_layers > 1 or not on_cpu
    number = SHORT_BYTES if is_short else FLOAT32_BYTES
    each = caption_bytes(spec, MOST_TOKENS, flavour=flavour, limit=limit, unpadded=unpadded, number=number)
    each = spec.tokens_of(flavour, limit) * BYTES_OF_TOKEN_ID * encoders if encoders else each
    for (option, folder), texts in prompts.items():
        yield DiskUse(option, folder, EMBEDDINGS, max(0, len(texts) - len(_entry_sizes(folder))) * each)


def embedding_notes(uses: Iterable[DiskUse], options: TrainingOptions, spec: FamilySpec) -> Iterator[Problem]:
    """Notes what embeddings take where most of it is padding, or where many states are stored for each token, and what stores less."""
    data, values, stacked = options.data, options.as_values(), spec.prompts.stacked_layers
    if spec.prompts.stores_short:
        stacked = max(len(one.layers) for one in spec.prompts.states)
    pads = stores_padding(spec, values)
    if (pads and data.compress_disk_cache) or (not pads and stacked == 1):
        return
    if pads:
        shrinking, size, why = ["compress_disk_cache=true keeps the same values in a tenth to a third"], "about", "most of it for padding"
        shrinking += ["t5_padding=zero trains without the states of padding"] if spec.prompts.leaves_out_padding else []
        shrinking += [f"{spec.prompts.unpadded_option}=true hides the padding from the network"] if spec.prompts.unpadded_option else []
    else:
        shrinking, size, why = ["short captions take less"], "at most", f"with {stacked} states for each token"
    for use in uses:
        if use.what == EMBEDDINGS and use.bytes >= LARGE_EMBEDDINGS_BYTES:
            message = f"The embeddings of the captions take {size} {size_text(use.bytes)} in {use.folder}, {why}."
            hint = "; ".join([*shrinking, "text_cache_disable=true stores none"])
            yield Problem.note(use.option, "large_embeddings", message, got=use.bytes, hint=hint)


def _generated_uses(found: SetReport, partners: Sequence[ReferenceSet]) -> Iterator[DiskUse]:
    """One use for each folder of generated images, with the files that it lacks at the size of an image without compression."""
    pixels = sum(sample.width * sample.height for sample in found.samples)
    for one in (one for one in partners if one.generated):
        there = sum(1 for _ in Path(one.instance_data_dir).rglob("*.png"))
        share = max(0, len(found.samples) - there) / max(1, len(found.samples))
        missing = int(pixels * BYTES_OF_PIXEL * share)
        yield DiskUse(one.option("instance_data_dir"), Path(one.instance_data_dir), GENERATED, missing)


def _latent_sizes(samples: Iterable[Sample], spec: FamilySpec, number: int) -> Iterator[int]:
    """Bytes of the latents of each sample, with ``number`` bytes each."""

    @cache
    def size(target: Size, frames: int) -> int:
        return latent_bytes(spec, *target, frames=frames, number=number)

    return (size(sample.target, sample.frames) for sample in samples)


def _missing_latents(sizes: list[int], folder: Path) -> int:
    """Bytes of the missing entries. Entries are matched by size, so that latents of another resolution do not count.

    NOTE: exact addresses need the hash of every image and of the autoencoder, which would take minutes to compute.
    """
    there = sorted(_entry_sizes(folder))
    missing = 0
    place = 0
    for size, count in sorted(Counter(sizes).items()):
        while place < len(there) and there[place] < size:
            place += 1
        end = place
        while end < len(there) and there[end] <= size + HEADER_BYTES:
            end += 1
        missing += max(0, count - (end - place)) * size
        place = end
    return missing


def _entry_sizes(folder: Path) -> list[int]:
    """Bytes of each entry of a cache; empty without a folder. Compressed entries count with the size that they have."""
    shards = [place.row.length for place in ShardFolder(folder / SHARDS).places()]
    return shards + [entry.stat().st_size for entry in older.entries_of(folder)]
