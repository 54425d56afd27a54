"""Small language models that read a chat, in the real Hugging Face layout: tokenizers with a chat template, a Qwen3 and a Mistral 3."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TEXT_WIDTH = 32
SMALL: dict[str, Any] = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 2 * TEXT_WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Marks each message, and closes an empty thought for a model that is not to think."""
MISTRAL_MARKS = ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% set mark = 'SYSTEM_PROMPT' if message.role == 'system' else 'INST' %}"
    "[{{ mark }}]{% for part in message.content %}{{ part.text }}{% endfor %}[/{{ mark }}]{% endfor %}"
)


def build_chat_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer of Qwen2 and Qwen3 whose tokens are single bytes, with their marks and a template like theirs."""
    tokenizer = Qwen2Tokenizer(vocab={**_bytes(), END: len(_bytes())}, merges=[], extra_special_tokens=[START, STOP])
    tokenizer.chat_template = QWEN_TEMPLATE
    return tokenizer


def build_mistral_tokenizer() -> PreTrainedTokenizerFast:
    """The same for Mistral 3, which pads on the left and has contents in parts."""
    backend = Tokenizer(models.BPE(vocab=_bytes(), merges=[]))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "extra_special_tokens": list(MISTRAL_MARKS)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **marks)
    tokenizer.chat_template = MISTRAL_TEMPLATE
    return tokenizer


def build_qwen3(vocabulary: int, *, layers: int = 3) -> Qwen3ForCausalLM:
    """A Qwen3 of some ten thousand random weights."""
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocabulary, num_hidden_layers=layers, tie_word_embeddings=True, **SMALL))


def build_mistral3(vocabulary: int, *, layers: int = 3) -> Mistral3ForConditionalGeneration:
    """A Mistral 3 of some ten thousand random weights, with a part for images."""
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    text = {"model_type": "mistral", "vocab_size": vocabulary, "num_hidden_layers": layers, **SMALL}
    images = {"model_type": "pixtral", "image_size": 32, "patch_size": 16, **vision}
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=images))


def _bytes() -> dict[str, int]:
    """A token for every byte."""
    return {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
