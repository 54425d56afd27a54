"""Generates ``docs/datasets.md`` from the declared fields: ``python -m trainer_engine.config.datasets.docs > docs/datasets.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from trainer_engine.config.dataset_tables import fields_of
from trainer_engine.config.datasets.fields import DATASET_TYPES_LATER
from trainer_engine.config.datasets.names import SETS, later, specs, table_entries
from trainer_engine.config.datasets.parse import INHERITED
from trainer_engine.config.datasets.sizes import TYPICAL_TOKENS, size_rows
from trainer_engine.config.families import specs as specs_of_families
from trainer_engine.config.option import OptionSpec
from trainer_engine.config.options.docs import as_text

HEAD = """# Datasets

This page is generated from the declared fields by `python -m trainer_engine.config.datasets.docs`; a test checks that it is up to date.

The option `data_backend_config` names a JSON file with a list of datasets, each an object. A run needs at least one dataset of
`dataset_type` `image`. If the file has no set of `text_embeds`, one is created; exactly one of them is the default.

```json
[
  {"id": "cats", "type": "local", "dataset_type": "image", "instance_data_dir": "/data/cats", "caption_strategy": "textfile",
   "resolution": 1.0, "resolution_type": "area", "crop": true, "crop_style": "center", "crop_aspect": "square", "repeats": 2},
  {"id": "text", "type": "local", "dataset_type": "text_embeds", "default": true, "cache_dir": "/data/cache/text"}
]
```

Every text may contain `{model_family}`, `{output_dir}` and `{id}`. `disabled` (or `disable`) skips an entry. Booleans may be written as
text.

## Where files and captions come from

`type` chooses the source of a set's files, `caption_strategy` where its captions come from; each may have further fields, which are listed
below. A file is known by its name within the set. A set that moves to another folder or source, and keeps its names and its cache folders,
keeps the order of its samples, its checkpoints and its cached latents and embeddings: these depend on the contents of files, never on
where they lie. Each source, caption strategy and kind of media is a file of its own:
[new-dataset-source.md](new-dataset-source.md) shows how to add one.

## How an image becomes a sample

1. Image files are found by their suffixes in the folder and all its subfolders; hidden files are skipped. `validate` names broken files and
   files without a caption, and they are left out. A `.txt` file is UTF-8, or UTF-16 with a byte order mark. Only newlines end its lines;
   other Unicode separators are part of a caption. `max_num_samples` selects some of the files, always the same ones for the same `id`.
2. Images below `minimum_image_size` are left out. With `area` and `pixel_area` the area counts (for squares also the shorter edge), with
   `pixel` the shorter edge. The size is measured after the EXIF orientation is applied.
3. The aspect ratio (width / height, rounded to `aspect_bucket_rounding` decimals) gives the target size. With `area`, a square of
   `resolution` megapixels is stretched to the aspect ratio; squares of 0.25, 0.5, 1, 2 and 4 megapixels have edges of 512, 768, 1024, 1536
   and 2048 pixels. `pixel_area` is the same, with the edge of that square in pixels. With `pixel`, the shorter edge is `resolution`. Edges
   are multiples of `aspect_bucket_alignment`. Aspect ratios below 0.01 or above 100 are trained at these limits; `validate` names such
   images.
4. The image is scaled until it just covers the target. Only if `crop` is on and the image is larger than `maximum_image_size`, it is scaled
   to `target_downsample_size` instead, or further if it would not cover the target. Smaller images are enlarged; `validate` counts them for
   networks that are given the sizes of files.
5. `crop_style` selects the part that is kept. Even without `crop` some pixels are cut off along one edge, since edges are whole multiples.
   A random part depends only on the run's seed and the file's name.
6. Images of one target size form a bucket. Each bucket must hold `train_batch_size` x `gradient_accumulation_steps` x `num_processes`
   samples, counting each image `repeats` + 1 times. `allow_dataset_oversubscription` repeats the samples of smaller buckets instead.

## The order of samples

An epoch contains every sample of every set `repeats` + 1 times. The options below change when a sample is seen, but never how often; only
`probability` 0 leaves a set out. A batch holds samples of one bucket of one set. The last batch of a bucket is filled up with samples of
the same bucket that were seen earlier in the epoch. The last optimizer step of an epoch is filled up with the epoch's first batches.

The next batch is always chosen at random from those that are left in the epoch. `data_backend_sampling` decides how:

- `auto-weighting`: each batch that is left has the `probability` of its set as its weight. A bucket is therefore chosen by the number of
  batches that it has left, including `repeats`, times that probability. With equal probabilities the order is a plain shuffle: each tenth
  of an epoch holds about a tenth of every set and every bucket. With `probability` 1.0 and 0.1 and sets of the same size, the epoch starts
  with ten batches of the first set for each batch of the second. The rest of the second set follows when the first one runs out.
- `uniform`: the next set is chosen by `probability` alone among those with batches left, whatever their sizes; within the set every
  remaining batch is equally likely. Of sets with 20 and 200 samples the small one is used up after about 40 batches.

So a run that is shorter than an epoch trains on the requested mixture, and a longer run sees every sample. `validate` reports each set's
share of the batches at the start of an epoch and, if that differs, over the complete epoch. To train more on a set in every epoch, raise
its `repeats`; the set then counts as (`repeats` + 1) times as large in every rule above.

The order depends only on the samples, `seed`, the batch sizes and these options. It is the same on every machine and for any number of
processes that share a batch of one size, and a resumed run continues it. A checkpoint records the version of this rule. A run that resumes
from a checkpoint of an older version reports a warning and orders the rest of that epoch anew. `simpletuner plan --config FILE --steps N`
prints the order without training. It only opens file headers: if training finds that an image's pixels are broken, it leaves the image out,
and the order changes.

## How images get references

An image set names sets of `dataset_type` `conditioning` in `conditioning_data`. An entry with a `conditioning_type` is a conditioning set,
whatever its `dataset_type`. The partner of an image has the same name, including folders, with the same suffix or another one. It is an
error if an image has no partner, or several with other suffixes, or, with `reference_strict`, a partner of another size. A reference
without an image is a warning. The option `conditioning_multidataset_sampling` decides whether a sample is trained with its references from
all sets or with one at a time.

## Eval sets

A set of `dataset_type` `eval` is never trained on: it has no part in epochs, repeats and the order of samples. It takes the fields of an
image set, including `conditioning_data`. `repeats` and `probability` have no effect, and `crop_style` `random` crops in the middle instead,
so that the evaluation loss is the same for every seed. The loss is measured on its first `num_eval_images` images, by name:
[evaluation.md](evaluation.md). `validate` warns about eval images that are also trained on.

## Pixels

Images are read as 8-bit sRGB: only the first frame of an animation, transparency on white, deeper greyscale scaled to 8 bits. Colour
profiles (Display P3, Adobe RGB, printing presses, greyscale) and the cICP chunk of a PNG are converted to sRGB with perceptual intent. If a
profile is damaged or made for another kind of image, or the brightness is HDR (PQ, HLG), the numbers in the file are used as sRGB, and
`validate` names the files in a note. Images of more than 134 megapixels are refused. Latents cached before this rule are computed again.
"""

CACHES = f"""## Caches

Latents and text embeddings are computed once, before training, and stored in the cache folders of the sets. The address of an entry is a
hash of everything that its content depends on, so an entry is never out of date. Latents have the type that the autoencoder computes in,
embeddings that of the text encoders: bfloat16 as a rule, float32 on a CPU.

- Entries lie in shards of up to 1 GiB with an index each: `shards/*.shard` and `shards/*.index`. 100,000 latents of 1024 px are at most 200
  files. A shard is appended to by one process at a time. An index that is missing or damaged is made again from its shard. Entries of older
  versions, one safetensors file each, are read as before; new ones go to shards.
- Each entry has a checksum. One that is damaged is reported in the log, remembered as such, and computed again. A run that is killed loses
  at most the entries that are not synced yet (`write_batch_size`), and the next one goes on behind them.
- Each process of a run encodes its share. Two runs may fill one cache at the same time: each takes over what the other has made. If memory
  runs out while images are encoded, batches are halved and the run goes on.
- `vae_cache_ondemand` and `text_cache_ondemand` encode when a batch first needs an entry, and store it. `vae_cache_disable` and
  `text_cache_disable` store nothing. The encoders then stay in memory, which `validate` adds to its estimate of the text encoders. Samples
  are encoded one by one, so that nothing depends on their order: on a CPU the weights equal those of a run with `vae_batch_size` 1 bit for
  bit. Images without an entry are still decoded once at the start, so that broken ones are left out of the order of samples.
- `compress_disk_cache` stores entries from 64 KiB on in fewer bytes, without loss: bfloat16 latents in about 72 percent, float32 latents
  as they are. Reading and writing an entry then takes some milliseconds a megabyte longer.
- `simpletuner cache stats | verify | gc` and `/api/cache` count, verify and clean caches: [upkeep.md](upkeep.md).

Captions of {TYPICAL_TOKENS} tokens are assumed below. The states of padding are not stored, except where the network attends to them: those
of CLIP, and those of T5 for Flux without `flux_attention_masked_training`. T5 attends to its padding, so these states depend on the
caption, and only T5 could compute them again. A Flux caption therefore takes 4.2 MB, with masked training a tenth of it, and nothing with
`text_cache_disable`.
"""

SPECIAL = {
    "conditioning_data": "Id of a conditioning set, or a list of ids. Each of them holds a partner of the same name for every image. "
    "Default: empty.",
    "instance_prompt": "A text, or a list of texts of which each sample gets one at a time. Default: the option `instance_prompt`.",
    "crop_aspect_buckets": "The aspect ratios that `crop_aspect` `random` and `closest` choose from: numbers, or objects of `aspect` and "
    "`weight` whose weights add up to 1. Default: empty.",
}
TITLES = {
    "image": "Fields of image sets",
    "conditioning": "Fields of conditioning sets",
    "text_embeds": "Fields of text_embeds sets",
}


def describe(spec: OptionSpec) -> str:
    """Returns the line of one field in its list."""
    default = f"the option `{spec.name}`" if spec.name in INHERITED else as_text(spec.default)
    facts = ["must be given" if spec.required else f"default: {default}"]
    facts.append("one of " + ", ".join(f"`{choice}`" for choice in spec.choices) if spec.choices else spec.expected)
    facts += ["also called " + ", ".join(f"`{alias}`" for alias in spec.aliases)] if spec.aliases else []
    facts += ["also " + ", ".join(f"`{word}` for `{choice}`" for word, choice in spec.synonyms.items())] if spec.synonyms else []
    facts += ["not available yet: " + ", ".join(f"`{choice}`" for choice in spec.later)] if spec.later else []
    return f"- `{spec.name}`: {spec.help} ({'; '.join(facts)})"


def page() -> str:
    """Returns the complete page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield HEAD
    yield CACHES
    yield "| GB for 100,000 of each | images of 1024 px, bfloat16 | float32 (CPU) | captions |"
    yield "|---|---|---|---|"
    yield from (f"| {' | '.join(row)} |" for row in size_rows(specs_of_families()))
    yield ""
    for kind, title in TITLES.items():
        yield f"## {title}\n"
        yield f"`dataset_type` is `{kind}`" + (" (the default) or `eval`.\n" if kind == "image" else ".\n")
        plain = specs(kind)
        for name in SETS[kind].model_fields:
            if name in plain:
                yield describe(plain[name])
            elif name in SPECIAL:
                yield f"- `{name}`: {SPECIAL[name]}"
        yield ""
    for entry in table_entries("image"):
        if entry.fields:
            yield f"## Further fields of sets with `{entry.name}`\n"
            yield from map(describe, fields_of(entry).values())
            yield ""
    yield "## Known, not available yet\n"
    yield f"Types of datasets: {', '.join(f'`{name}`' for name in DATASET_TYPES_LATER)}.\n"
    yield "The format also has these fields, but this trainer does not implement them yet. It accepts only their defaults:"
    yield ", ".join(f"`{name}`" for name in later()) + "."


if __name__ == "__main__":
    sys.stdout.write(page())
