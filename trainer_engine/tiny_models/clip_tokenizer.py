"""A CLIP tokenizer that spells every word letter by letter."""

from __future__ import annotations

import string

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
LONGEST = 77


def build_clip_tokenizer() -> CLIPTokenizer:
    """Lower-case letters, digits and punctuation, inside words and at their ends; anything else is the end token, as in the real one."""
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=LONGEST)
