"""Generates ``docs/datasets.md`` from the declared fields: ``python -m trainer_engine.config.datasets.docs > docs/datasets.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from trainer_engine.config.dataset_tables import fields_of, generator_specs
from trainer_engine.config.datasets.conditioning import common_fields
from trainer_engine.config.datasets.docs_text import CACHES, HEAD
from trainer_engine.config.datasets.hints import GONE, HINTS
from trainer_engine.config.datasets.names import SETS, later, specs, table_entries
from trainer_engine.config.datasets.object_fields import CaptionShuffle, ClipLength, TableFile
from trainer_engine.config.datasets.parse import INHERITED
from trainer_engine.config.datasets.refused import KINDS, refusal_of_field
from trainer_engine.config.datasets.sizes import size_rows
from trainer_engine.config.families import specs as specs_of_families
from trainer_engine.config.option import OptionGroup, OptionSpec, spec_of
from trainer_engine.config.options.docs import as_text

SPECIAL = {
    "conditioning_data": "Id of a conditioning set, or a list of ids. Each of them holds a partner of the same name for every image. "
    "Default: empty.",
    "caption_filter_list": "What is removed from the captions of the sets that use this cache, and replaced in them: a list of texts, or "
    "the path of a `.json` or `.txt` file with one on each line. See [Captions](#captions). Default: empty.",
    "conditioning": "An object, or a list of objects: conditioning sets that are generated from the images of this set, see below. "
    "Default: empty.",
    "instance_prompt": "A text, or a list of texts of which each sample gets one at a time. Default: the option `instance_prompt`; of a "
    "conditioning set none.",
    "crop_aspect_buckets": "The aspect ratios that `crop_aspect` `random` and `closest` choose from: numbers, or objects of `aspect` and "
    "`weight` whose weights add up to 1. Default: empty.",
}
OBJECTS: dict[str, tuple[str, type[OptionGroup]]] = {
    "parquet": ("The table with captions or sizes of the files, an object:", TableFile),
    "video": ("Lengths of the clips of a set of `dataset_type` `video`, an object, see [Sets of clips](#sets-of-clips):", ClipLength),
    "caption_shuffle": ("Variants of captions with shuffled tags, an object:", CaptionShuffle),
}
TITLES = {
    "image": "Fields of sets of images and clips",
    "conditioning": "Fields of conditioning sets",
    "text_embeds": "Fields of text_embeds sets",
    "image_embeds": "Fields of image_embeds sets",
    "conditioning_image_embeds": "Fields of conditioning_image_embeds sets",
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
        yield f"`dataset_type` is `{kind}`" + (" (the default), `video` or `eval`.\n" if kind == "image" else ".\n")
        plain = specs(kind)
        for name in SETS[kind].model_fields:
            if name in plain:
                yield describe(plain[name])
            elif name in SPECIAL:
                yield f"- `{name}`: {SPECIAL[name]}"
            elif name in OBJECTS:
                what, group = OBJECTS[name]
                yield f"- `{name}`: {what}"
                yield from (f"  {describe(spec_of(key, name, info))}" for key, info in group.model_fields.items())
        yield ""
    for entry in table_entries("image"):
        if entry.fields:
            yield f"## Further fields of sets with `{entry.name}`\n"
            yield from map(describe, fields_of(entry).values())
            yield ""
    yield "## Not needed\n"
    yield "These fields of the format are accepted in every set, with a note that says why they have no effect:\n"
    yield from (f"- `{name}`: {hint.reason}." for name, hint in HINTS.items())
    yield from (f"- `{name}`: no longer part of the format; {instead}." for name, instead in GONE.items())
    yield ""
    yield "## Fields of generated conditioning sets\n"
    yield "Every object in `conditioning` may have these fields:\n"
    yield from map(describe, common_fields().values())
    yield "- `captions`: Captions instead of those of the images: false, a text, or a list of which each sample gets one. Default: empty."
    yield "- `params`: An object with fields of the generator, which may also stand beside it. Default: empty.\n"
    for generator in generator_specs().values():
        yield f"With `type` `{generator.name}`, {generator.help}\n"
        yield from map(describe, fields_of(generator).values())
        yield ""
    yield "## Known, refused\n"
    yield "The format also has these types of datasets and these fields. Of a field only the default is accepted:\n"
    yield from (f"- `dataset_type` `{name}`: {refusal.about}." for name, refusal in KINDS.items())
    yield from (f"- `{name}`: {refusal_of_field(name).about}." for name in later())


if __name__ == "__main__":
    sys.stdout.write(page())
