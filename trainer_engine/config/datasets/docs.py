"""``docs/datasets.md`` from the declared fields: ``python -m trainer_engine.config.datasets.docs > docs/datasets.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from trainer_engine.config.datasets.fields import DATASET_TYPES_LATER, SETS, later, specs
from trainer_engine.config.datasets.parse import INHERITED
from trainer_engine.config.option import OptionSpec
from trainer_engine.config.options.docs import as_text

HEAD = """# Datasets

Made from the declared fields by `python -m trainer_engine.config.datasets.docs`; a test compares. `data_backend_config` names a JSON
file with a list of datasets, each an object. A run needs at least one of `dataset_type` `image`; a set of `text_embeds` is made where there
is none, and one of them is the default.

```json
[
  {"id": "cats", "type": "local", "dataset_type": "image", "instance_data_dir": "/data/cats", "caption_strategy": "textfile",
   "resolution": 1.0, "resolution_type": "area", "crop": true, "crop_style": "center", "crop_aspect": "square", "repeats": 2},
  {"id": "text", "type": "local", "dataset_type": "text_embeds", "default": true, "cache_dir": "/data/cache/text"}
]
```

Every text may hold `{model_family}`, `{output_dir}` and `{id}`. `disabled` (or `disable`) skips an entry. Booleans may be written as text.

## How an image becomes a sample

1. Files are found by their endings in the folder and the folders in it; hidden ones are skipped. Broken files, and those without a caption,
   are named by `validate` and left out. A `.txt` file is UTF-8, or UTF-16 with a byte order mark; its lines end with newlines alone, other
   separators of Unicode are part of a caption. `max_num_samples` takes a part of them, always the same for the same `id`.
2. Images below `minimum_image_size` are left out: by area for `area` and `pixel_area` (squares also by their shorter edge), by the shorter
   edge for `pixel`. The size is that of the picture upright, as its EXIF orientation says.
3. The aspect (width / height, rounded to `aspect_bucket_rounding` decimals) gives the target size. With `area` the edge of a square of
   `resolution` megapixels is stretched by the aspect; squares of 0.25, 0.5, 1, 2 and 4 megapixels have edges of 512, 768, 1024, 1536 and
   2048 pixels. `pixel_area` is the same with the edge of that square in pixels. With `pixel` the shorter edge is `resolution`. Edges are
   multiples of `aspect_bucket_alignment`. Pictures narrower than 0.01 or wider than 100 are trained at these aspects; `validate` names
   them.
4. The image is scaled until it just covers the target. Where `crop` is on and the image is larger than `maximum_image_size`, and only
   then, it is scaled to `target_downsample_size` instead, or as far as covering the target needs.
5. `crop_style` says which part is kept. Without `crop` too, since edges are whole multiples, some pixels of one edge fall away.
   A random part depends on the run's seed and the file's name, and on nothing else.
6. Images of one target size form a bucket. Each bucket must hold `train_batch_size` x `gradient_accumulation_steps` x `num_processes`
   samples, images x (`repeats` + 1), or `allow_dataset_oversubscription` must repeat the short ones.

## The order of samples

In an epoch every sample of every set is seen `repeats` + 1 times. The options below change when, never how often; only `probability` 0
leaves a set out. A batch holds samples of one bucket of one set. The last batch of a bucket is filled up with samples of the bucket that
were seen in the epoch already, and so is the last optimizer step of an epoch, with the epoch's first batches.

At every moment the next batch is drawn by what is left of the epoch. `data_backend_sampling` says how:

- `auto-weighting`: every batch that is left is as likely as the `probability` of its set. A bucket is drawn by the number of batches that
  it has left, `repeats` counted, times that probability. With equal probabilities the order is a plain shuffle: each tenth of an epoch
  holds a tenth of every set and every bucket, up to chance. With `probability` 1.0 and 0.1 and sets of one size, the epoch starts with
  ten batches of the one for each batch of the other, and what is left of the second set follows when the first one runs out.
- `uniform`: the next set is drawn by `probability` alone among those that have a batch left, whatever their sizes are; within the set
  every batch that is left is as likely as the other. Of sets of 20 and 200 samples the small one is used up after about 40 batches.

So a run that is shorter than an epoch trains the mixture that was asked for, and a longer one sees every sample. `validate` says each
set's share of the batches: at the start of an epoch and, where that differs, over the whole epoch. To train more of a set in every epoch,
raise its `repeats`; its size is then (`repeats` + 1) times as large in every rule above.

The order follows from the samples, `seed`, batch sizes and these options alone: it is the same on every machine, for any number of
processes that share a batch of one size, and a resumed run takes it up where it was. A checkpoint records the version of this rule; a run
that resumes from a checkpoint of an older version gets a warning and orders the rest of that epoch anew. `simpletuner plan --config FILE
--steps N` prints the order without training. It opens headers only: an image whose pixels turn out to be broken is left out by training,
and the order is then another.

## How images get references

A set of images names sets of `dataset_type` `conditioning` in `conditioning_data`; an entry with a `conditioning_type` is one of these,
whatever else it says. The partner of an image lies under the same name, folders included, with the same ending or another. An image without
a partner, with several of other endings, or with `reference_strict` with a partner of another size, is an error; a reference without an
image is a warning. The option `conditioning_multidataset_sampling` says whether a sample is trained with its references of all sets, or
with one at a time.

## Sets that are held out

A set of `dataset_type` `eval` is never trained on: it has no part in epochs, repeats and the order of samples. It takes the fields of a set
of images, `conditioning_data` included; `repeats` and `probability` have no effect, and random parts (`crop_style` `random`) are cut out of
the middle instead, so that what is measured is the same under every seed. The first `num_eval_images` of its images, by name, are what the
evaluation loss is measured on: [evaluation.md](evaluation.md). `validate` warns of held-out images that are trained on as well.

## Pixels

Pictures are read as sRGB in 8 bits: the first frame of a moving one, transparency on white, deeper grey scaled to 8 bits. Colour profiles
(Display P3, Adobe RGB, those of printing presses and grey ones) and the cICP chunk of a PNG are converted to sRGB, perceptually. A profile
that is damaged or made for other pictures, and HDR brightness (PQ, HLG), are left: the numbers of the file are taken as sRGB, and
`validate` names the files in a note. Pictures of more than 134 megapixels are refused. Latents that were cached before this rule are made
again.
"""

SPECIAL = {
    "conditioning_data": "The id of a set of references, or a list of ids: each image has a partner of the same name in every one. "
    "Default: empty.",
    "instance_prompt": "A text, or a list of texts of which each sample gets one at a time. Default: the option `instance_prompt`.",
    "crop_aspect_buckets": "The aspects that `crop_aspect` `random` and `closest` choose from: numbers, or objects of `aspect` and "
    "`weight` whose weights add up to 1. Default: empty.",
}
TITLES = {
    "image": "Fields of sets of images",
    "conditioning": "Fields of sets of references",
    "text_embeds": "Fields of sets of text embeddings",
}


def describe(spec: OptionSpec) -> str:
    """One line of a list."""
    default = f"the option `{spec.name}`" if spec.name in INHERITED else as_text(spec.default)
    facts = ["must be given" if spec.required else f"default: {default}"]
    facts.append("one of " + ", ".join(f"`{choice}`" for choice in spec.choices) if spec.choices else spec.expected)
    facts += ["also called " + ", ".join(f"`{alias}`" for alias in spec.aliases)] if spec.aliases else []
    facts += ["also " + ", ".join(f"`{word}` for `{choice}`" for word, choice in spec.synonyms.items())] if spec.synonyms else []
    facts += ["not available yet: " + ", ".join(f"`{choice}`" for choice in spec.later)] if spec.later else []
    return f"- `{spec.name}`: {spec.help} ({'; '.join(facts)})"


def page() -> str:
    """The whole document."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield HEAD
    for kind, title in TITLES.items():
        yield f"## {title}\n"
        yield f"`dataset_type` is `{kind}`" + (
            ", which is also what it is where nothing is said, or `eval`.\n" if kind == "image" else ".\n"
        )
        plain = specs(kind)
        for name in SETS[kind].model_fields:
            if name in plain:
                yield describe(plain[name])
            elif name in SPECIAL:
                yield f"- `{name}`: {SPECIAL[name]}"
        yield ""
    yield "## Known, not available yet\n"
    yield f"Types of datasets: {', '.join(f'`{name}`' for name in DATASET_TYPES_LATER)}.\n"
    yield "Fields of the format that have no code behind them here yet; only their defaults are accepted, because they ask for nothing:"
    yield ", ".join(f"`{name}`" for name in later()) + "."


if __name__ == "__main__":
    sys.stdout.write(page())
