"""Small language models that read a chat, in the real Hugging Face layout, and tokenizers with chat templates."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
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
VISION_MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
MISTRAL_ENDS = ("<s>", "</s>", "<pad>")
MISTRAL_MARKS = ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
MINISTRAL_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% set mark = 'SYSTEM_PROMPT' if message.role == 'system' else 'INST' %}"
    "[{{ mark }}]{% for part in message.content %}{{ part.text }}{% endfor %}[/{{ mark }}]{% endfor %}"
)


def build_chat_tokenizer(*marks: str) -> Qwen2Tokenizer:
    """A tokenizer of Qwen2 and Qwen3 whose tokens are single bytes, with their marks, further ``marks`` and a template like theirs."""
    tokenizer = Qwen2Tokenizer(vocab={**_bytes(), END: len(_bytes())}, merges=[], extra_special_tokens=[START, STOP, *marks])
    tokenizer.chat_template = QWEN_TEMPLATE
    return tokenizer


def build_mistral_tokenizer() -> PreTrainedTokenizerFast:
    """The same for Mistral 3, which pads on the left, has contents in parts, and puts ``<s>`` before a text that is no chat."""
    backend = Tokenizer(models.BPE(vocab=_bytes(), merges=[]))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    begin = MISTRAL_ENDS[0]
    backend.add_special_tokens(list(MISTRAL_ENDS))
    backend.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, backend.token_to_id(begin))])
    marks = {**dict(zip(("bos_token", "eos_token", "pad_token"), MISTRAL_ENDS, strict=True)), "extra_special_tokens": list(MISTRAL_MARKS)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **marks)
    tokenizer.chat_template = MISTRAL_TEMPLATE
    return tokenizer


def build_qwen3(vocabulary: int, *, layers: int = 3) -> Qwen3ForCausalLM:
    """A Qwen3 of some ten thousand random weights."""
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocabulary, num_hidden_layers=layers, tie_word_embeddings=True, **SMALL))


def build_qwen25_vl(tokenizer: Qwen2Tokenizer, *, layers: int = 3) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of some ten thousand random weights, which sees images in patches of 2 pixels. The tokenizer has ``VISION_MARKS``."""
    start, end, image, video = (tokenizer.convert_tokens_to_ids(mark) for mark in VISION_MARKS)
    text = {key: value for key, value in SMALL.items() if key != "head_dim"}
    text |= {"vocab_size": len(tokenizer), "num_hidden_layers": layers, "bos_token_id": None, "eos_token_id": None}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}}
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": TEXT_WIDTH,
        "patch_size": 2,
    }
    vision |= {"window_size": 8, "fullatt_block_indexes": [1]}
    marks = {"vision_start_token_id": start, "vision_end_token_id": end, "image_token_id": image, "video_token_id": video}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **marks))


def build_qwen3_vl(tokenizer: Qwen2Tokenizer, *, layers: int = 3, patch_px: int = 2) -> Qwen3VLForConditionalGeneration:
    """A Qwen3-VL of random weights, ten thousand a layer, which sees images in patches. The tokenizer has ``VISION_MARKS``."""
    start, end, image, video = (tokenizer.convert_tokens_to_ids(mark) for mark in VISION_MARKS)
    text: dict[str, Any] = {**SMALL, "vocab_size": len(tokenizer), "num_hidden_layers": layers}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}}
    vision: dict[str, Any] = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": TEXT_WIDTH}
    vision |= {"patch_size": patch_px, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    marks = {"vision_start_token_id": start, "vision_end_token_id": end, "image_token_id": image, "video_token_id": video}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **marks))


def build_mistral3(vocabulary: int, *, layers: int = 3, language: str = "mistral") -> Mistral3ForConditionalGeneration:
    """A Mistral 3 of some ten thousand random weights, with a part for images. ``language``: ``mistral``, or ``ministral3``, whose queries
    are scaled by their place in the text as the published ones are, but from the ninth token on."""
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    text = {"model_type": language, "vocab_size": vocabulary, "num_hidden_layers": layers, **SMALL}
    if language == "ministral3":
        text["rope_parameters"] = {**MINISTRAL_ROPE, "original_max_position_embeddings": 8}
    images = {"model_type": "pixtral", "image_size": 32, "patch_size": 16, **vision}
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=images))


def _bytes() -> dict[str, int]:
    """A token for every byte."""
    return {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
