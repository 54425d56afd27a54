"""Sets of control images (``conditioning_type`` controlnet), and checks of the options that they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer_engine.config.control import sees_control_images
from trainer_engine.config.controlnet import CONTROL, NAME, WEIGHTS
from trainer_engine.config.datasets.entry import EntryDraft
from trainer_engine.config.datasets.masks import MASKS
from trainer_engine.config.families import find_spec
from trainer_engine.contract.errors import Problem


def problems(values: Mapping[str, Any], images: Sequence[EntryDraft], references: Sequence[EntryDraft]) -> Iterator[Problem]:
    """Yields the problems of control images: sets without them in a run that looks at them, and sets with them where nothing does.

    A network that takes references looks at control images as at references of the same size.
    """
    of_files = {one.id: str(one.values.get("conditioning_type")) for one in references}
    for draft in images:
        made = {one.id_of(draft.id): one.conditioning_type for one in draft.values.get("conditioning", ())}
        kinds = {id: {**of_files, **made}.get(id, "") for id in (*draft.values.get("conditioning_data", ()), *made)}
        shown = {id: kind for id, kind in kinds.items() if kind and kind not in MASKS}
        if sees_control_images(values):
            yield from _of_regularisation(draft, values) if values[NAME] else ()
            yield from _of_the_run(draft, shown, values)
        elif CONTROL in shown.values() and not _may_show_references(values):
            named = ", ".join(id for id, kind in shown.items() if kind == CONTROL)
            what = f"{named} holds control images, which this network does not look at without a ControlNet."
            expected = "controlnet=true, control=true, or a model that takes references"
            yield _of(draft, "needs_controlnet", what, got=named, expected=expected)


def _may_show_references(values: Mapping[str, Any]) -> bool:
    """Whether the network of a run looks at references, or belongs to a family that is not here, of which that is not known."""
    spec = find_spec(str(values["model_family"] or ""))
    return spec is None or (values["model_flavour"] or spec.default_flavour) in spec.takes_references


def _of_the_run(draft: EntryDraft, shown: Mapping[str, str], values: Mapping[str, Any]) -> Iterator[Problem]:
    """``shown``: id -> type of the conditioning sets of an image set that are no masks."""
    asked, looks = ("controlnet=true", "a ControlNet") if values[NAME] else ("control=true", "a network with control")
    others = [id for id, kind in shown.items() if kind != CONTROL]
    if others:
        what = f"{', '.join(others)} holds references, but {asked} trains {looks}, which looks at control images."
        yield _of(draft, "not_control_images", what, got=", ".join(others), expected=f"conditioning_type={CONTROL}")
    if CONTROL not in shown.values() and not others:
        what = f"{asked} needs a control image for each image, but this set has no set of them."
        yield _of(draft, "control_needed", what, got="", expected=f"the id of a set with conditioning_type={CONTROL}, or conditioning")
    elif values["conditioning_multidataset_sampling"] == "combined" and len(shown) > 1:
        what = f"{' and '.join(shown)} are both its control images, and {looks} looks at one."
        yield _of(
            draft, "several_controls", what, got=", ".join(shown), expected="one of them, or conditioning_multidataset_sampling=random"
        )


def _of_regularisation(draft: EntryDraft, values: Mapping[str, Any]) -> Iterator[Problem]:
    if draft.values.get("is_regularisation_data") and values["model_type"] == "lora" and not values[WEIGHTS]:
        what = "a new ControlNet has no prediction of its own that an adapter could keep."
        field = f"dataloader[{draft.position}].is_regularisation_data"
        yield Problem.error(field, "nothing_to_preserve", f"{draft.title}: {what}", got=True, expected=f"false, or {WEIGHTS}")


def _of(draft: EntryDraft, code: str, what: str, *, got: str, expected: str) -> Problem:
    """An error of an entry that is complete on its own, so that the entry itself stays usable."""
    return Problem.error(
        f"dataloader[{draft.position}].conditioning_data", code, f"{draft.title}: {what}", got=got or None, expected=expected
    )
