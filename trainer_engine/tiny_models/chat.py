"""Small language models that read a chat, in the real Hugging Face layout: a tokenizer with a chat template, and a Qwen3."""

from __future__ import annotations

from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

TEXT_WIDTH = 32
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Marks each message, and closes an empty thought for a model that is not to think."""


def build_chat_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer of Qwen2 and Qwen3 whose tokens are single bytes, with their marks and a template like theirs."""
    alphabet = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=alphabet | {END: len(alphabet)}, merges=[], extra_special_tokens=[START, STOP])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_qwen3(vocabulary: int, *, layers: int = 3) -> Qwen3Model:
    """A Qwen3 of some ten thousand random weights."""
    return Qwen3Model(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
        )
    )
