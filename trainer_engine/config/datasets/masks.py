"""Sets of masks (``conditioning_type`` mask and segmentation), which weight the loss, and checks of the option that refers to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer_engine.config.datasets.entry import EntryDraft
from trainer_engine.config.options.registry import REGISTRY
from trainer_engine.contract.errors import Problem

OPTION = "masked_loss_probability"
MASKS = ("mask", "segmentation")


def is_mask(draft: EntryDraft) -> bool:
    """Whether the files of an entry weight the loss."""
    return draft.values.get("conditioning_type") in MASKS


def problems(values: Mapping[str, Any], images: Sequence[EntryDraft], references: Sequence[EntryDraft]) -> Iterator[Problem]:
    """Yields the problems of masks: several of one image set, fields without an effect on them, and an option without masks."""
    masks = {draft.id: draft for draft in references if is_mask(draft)}
    for draft in images:
        named = [name for name in draft.values.get("conditioning_data", ()) if name in masks]
        if len(named) > 1:
            what = f"{' and '.join(named)} are both masks of its images."
            expected = "one set of masks for each image set"
            yield _of(draft, "conditioning_data", "several_masks", what, got=", ".join(named), expected=expected)
    for draft in masks.values():
        if draft.values.get("crop"):
            what = "crop has no effect: a mask is cropped at the place of its image."
            yield Problem.note(f"dataloader[{draft.position}].crop", "no_effect", f"{draft.title}: {what}", got=True)
    if not masks and values[OPTION] != REGISTRY[OPTION].default:
        message = f"There is no conditioning set of conditioning_type mask or segmentation: {OPTION} has no effect."
        yield Problem.note(OPTION, "no_masks", message, got=values[OPTION])


def _of(draft: EntryDraft, field: str, code: str, what: str, *, got: str, expected: str) -> Problem:
    """An error of an entry that is complete on its own, so that the entry itself stays usable."""
    return Problem.error(f"dataloader[{draft.position}].{field}", code, f"{draft.title}: {what}", got=got, expected=expected)
