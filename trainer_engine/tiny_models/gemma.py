"""A small Gemma 2 in the real Hugging Face layout, with random weights, and its tokenizer."""

from __future__ import annotations

import string
from collections.abc import Iterable

from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

TEXT_WIDTH = 32
SPACE = "▁"
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")


def build_gemma_tokenizer(words: Iterable[str] = ()) -> GemmaTokenizer:
    """A tokenizer of Gemma that spells letter by letter, and byte by byte what is not ASCII. ``words`` behind a space are one token each.

    As the published one, it puts ``<bos>`` before a text and pads on the left.
    """
    letters = [SPACE, *string.ascii_letters, *string.digits, *string.punctuation]
    merges = list(dict.fromkeys(pair for word in words for pair in _merges_of(SPACE + word)))
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *("".join(pair) for pair in merges)]
    return GemmaTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=merges, add_bos_token=True)


def _merges_of(word: str) -> list[tuple[str, str]]:
    """The pairs that make one token of the word, beginning with its first two letters."""
    return [(word[:end], word[end]) for end in range(1, len(word))]


def build_gemma2(vocabulary: int, *, layers: int = 3) -> Gemma2Model:
    """A Gemma 2 of some ten thousand random weights, with attention to near and to all tokens in turn."""
    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=16,
    )
    return Gemma2Model(config)
