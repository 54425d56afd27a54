"""Captions in JSON, as Ideogram 4 was trained on them. No torch."""

from __future__ import annotations

import json


def as_caption(text: str) -> str:
    """The caption in one line of JSON that a text stands for: the text itself if it is a JSON object, with its keys in their order.

    Any other text becomes the description of the image and of its only element. An empty text stays empty.
    """
    if not text.strip():
        return ""
    document = _object(text)
    if document is None:
        words = " ".join(text.split())
        element = {"type": "obj", "desc": words}
        document = {"high_level_description": words, "compositional_deconstruction": {"background": "", "elements": [element]}}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _object(text: str) -> dict[str, object] | None:
    """The JSON object that the text is, or None."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
