"""Sets of masks (``conditioning_type`` mask and segmentation), which weight the loss, and checks of the option that refers to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer_engine.config.datasets.entry import EntryDraft
from trainer_engine.config.options.registry import REGISTRY
from trainer_engine.contract.errors import Problem

OPTION = "masked_loss_probability"
MASKS = ("mask", "segmentation")


def masks_of(draft: EntryDraft, references: Sequence[EntryDraft]) -> tuple[list[str], bool]:
    """Returns the ids of the sets of masks of an image set, and whether it has other conditioning sets too."""
    kinds = {one.id: one.values.get("conditioning_type") for one in references}
    kinds |= {one.id_of(draft.id): one.conditioning_type for one in draft.values.get("conditioning", ())}
    named = (*draft.values.get("conditioning_data", ()), *(one.id_of(draft.id) for one in draft.values.get("conditioning", ())))
    masks = [id for id in dict.fromkeys(named) if kinds.get(id) in MASKS]
    return masks, len(masks) < len(set(named))


def problems(values: Mapping[str, Any], images: Sequence[EntryDraft], references: Sequence[EntryDraft]) -> Iterator[Problem]:
    """Yields the problems of masks: several of one image set, fields without an effect on them, and an option without masks."""
    used: set[str] = set()
    for draft in images:
        named, _ = masks_of(draft, references)
        used.update(named)
        if len(named) > 1:
            what = f"{' and '.join(named)} are both masks of its images."
            expected = "one set of masks for each image set"
            yield _of(draft, "conditioning_data", "several_masks", what, got=", ".join(named), expected=expected)
    for draft in references:
        if draft.values.get("conditioning_type") in MASKS and draft.values.get("crop"):
            what = "crop has no effect: a mask is cropped at the place of its image."
            yield Problem.note(f"dataloader[{draft.position}].crop", "no_effect", f"{draft.title}: {what}", got=True)
    if not used and values[OPTION] != REGISTRY[OPTION].default:
        message = f"No image set has masks (conditioning_type mask or segmentation): {OPTION} has no effect."
        yield Problem.note(OPTION, "no_masks", message, got=values[OPTION])


def _of(draft: EntryDraft, field: str, code: str, what: str, *, got: str, expected: str) -> Problem:
    """An error of an entry that is complete on its own, so that the entry itself stays usable."""
    return Problem.error(f"dataloader[{draft.position}].{field}", code, f"{draft.title}: {what}", got=got, expected=expected)
