"""Resolves ``image_embeds``: the sets that say where the latents of an image set are cached."""

from __future__ import annotations

from collections.abc import Sequence

from trainer_engine.config.datasets.entry import EntryDraft

FIELD = "image_embeds"
FOLDER = "cache_dir_vae"


def resolve(images: Sequence[EntryDraft], latents: Sequence[EntryDraft]) -> None:
    """Gives each image set the folder of the set that it names, unless it has a folder of its own.

    Afterwards no image set names one, so the datasets can be written without these sets.
    """
    known = {draft.id: draft for draft in latents}
    named: set[str] = set()
    for draft in images:
        wanted = draft.values.get(FIELD)
        draft.values[FIELD] = None
        if not wanted:
            continue
        named.add(wanted)
        found = known.get(wanted)
        if found is None:
            expected = f"one of {', '.join(sorted(known))}" if known else "the id of an image_embeds set; the file has none"
            draft.error(FIELD, "unknown_reference", f"there is no image_embeds set {wanted!r}.", got=wanted, expected=expected)
        elif found.values.get("cache_dir"):
            _move(draft, found)
    for draft in latents:
        if draft.id not in named:
            draft.note("id", "not_linked", "no image set names it in image_embeds: it is not used.", got=draft.id)


def _move(draft: EntryDraft, latents: EntryDraft) -> None:
    """Takes over the folder of a set of latents."""
    if draft.raw.get(FOLDER) in (None, ""):
        draft.values[FOLDER] = latents.values["cache_dir"]
    elif draft.values.get(FOLDER) != latents.values["cache_dir"]:
        what = f"image_embeds has no effect: {FOLDER} says where the latents are cached."
        draft.note(FIELD, "no_effect", what, got=latents.id)
