"""A small HiDream-I1 in the real Hugging Face layout, with random weights and Llama beside the rest: for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImageTransformer2DModel, SchedulerMixin, UniPCMultistepScheduler
from tokenizers import Tokenizer, decoders, models, processors
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from trainer_engine.families.hidream.spec import TOKENS
from trainer_engine.tiny_models.autoencoders import build_vae
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder
from trainer_engine.tiny_models.text import build_clip_tokenizer, build_t5_tokenizer

T5_WIDTH, LLAMA_WIDTH, CLIP_WIDTH = 24, 32, 16
LLAMA_LAYERS = (0, 2, 2)
"""Two layers of Llama are read, the last one by two blocks; the one between them by none."""
START, END = "<|begin_of_text|>", "<|eot_id|>"
MODULATION_SCALE = 0.2


def make_tiny(folder: Path, *, flavour: str = "full", seed: int = 0) -> Path:
    """Write the pipeline of a flavour into ``folder`` and return it. The global random state is left alone.

    The same seed gives the same bytes.
    """
    clip_tokenizer, t5_tokenizer, llama_tokenizer = build_clip_tokenizer(), build_t5_tokenizer(), build_llama_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = build_transformer()
        clips = [_clip(clip_tokenizer) for _ in range(2)]
        t5 = T5EncoderModel(_t5(len(t5_tokenizer)))
        llama = _llama(len(llama_tokenizer))
    parts: dict[str, Any] = {
        "transformer": transformer,
        "text_encoder": clips[0],
        "text_encoder_2": clips[1],
        "text_encoder_3": t5,
        "text_encoder_4": llama,
        "tokenizer": clip_tokenizer,
        "tokenizer_2": clip_tokenizer,
        "tokenizer_3": t5_tokenizer,
        "tokenizer_4": llama_tokenizer,
        "vae": build_vae(16, shift=0.1159, quant_convs=False),
        "scheduler": _scheduler(flavour),
    }
    write_pipeline_folder(folder, "HiDreamImagePipeline", parts)
    return folder


def build_transformer(**changes: Any) -> HiDreamImageTransformer2DModel:
    """Two blocks with two streams and one with one, four experts in each, of which a token passes through two."""
    usual: dict[str, Any] = {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 2,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "caption_channels": [T5_WIDTH, LLAMA_WIDTH],
        "text_emb_dim": 2 * CLIP_WIDTH,
        "num_routed_experts": 4,
        "num_activated_experts": 2,
        "axes_dims_rope": (4, 2, 2),
        "max_resolution": (32, 32),
        "llama_layers": list(LLAMA_LAYERS),
    }
    network = HiDreamImageTransformer2DModel(**{**usual, **changes})
    for name, parameter in network.named_parameters():  # ones would hide what the norms scale
        if "rms_norm" in name:
            nn.init.normal_(parameter, mean=1.0, std=MODULATION_SCALE)
    return network


def build_llama_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are single bytes. As the real one, it begins with a mark and has no token to pad with."""
    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab={**letters, START: len(letters), END: len(letters) + 1}, merges=[]))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, len(letters))])
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="right", bos_token=START, eos_token=END)


def _clip(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """A CLIP that takes longer prompts than the original one."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CLIP_WIDTH,
        intermediate_size=2 * CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=CLIP_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def _t5(vocabulary: int) -> T5Config:
    return T5Config(vocab_size=vocabulary, d_model=T5_WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu")


def _llama(vocabulary: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=LLAMA_WIDTH,
        intermediate_size=2 * LLAMA_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
    )
    return LlamaForCausalLM(config)


def _scheduler(flavour: str) -> SchedulerMixin:
    """That of the published full weights is a solver; another one stands for weights that state their shift otherwise."""
    if flavour == "full":
        return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return FlowMatchEulerDiscreteScheduler(shift=6.0)
