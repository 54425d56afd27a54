"""A small Kolors in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
from sentencepiece import sentencepiece_model_pb2
from torch import nn

from trainer_engine.families.kolors.components import LIBRARY
from trainer_engine.tiny_models.autoencoders import build_vae
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder
from trainer_engine.tiny_models.stable_diffusion import TEXT_WIDTH, tiny_unet
from trainer_engine.tiny_models.text import LETTER_SCORE, WORD_SCORE, WORDS

SIZE_WIDTH = 8
"""Width of the sines that each time id is embedded with."""
ATTENTION_WIDTH = 24
"""Width of the prompt behind the projection of the UNet."""
SPREAD = 0.1
"""Standard deviation of the weights of the text encoder, with which its states are as large as those of other small models."""
CODE = {
    "AutoConfig": "configuration_chatglm.ChatGLMConfig",
    "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
}
TOKENIZER_CONFIG = {
    "name_or_path": "THUDM/chatglm3-6b-base",
    "remove_space": False,
    "do_lower_case": False,
    "tokenizer_class": "ChatGLMTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
}
"""The published one, which asks for code."""


def write_vocabulary(path: Path) -> None:
    """Writes a unigram model of SentencePiece: common words of captions, letters, and bytes for everything else."""
    messages: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    kinds, model = messages.ModelProto.SentencePiece, messages.ModelProto()
    words = [f"▁{word}" for word in dict.fromkeys(WORDS.split())]
    letters = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    pieces = [("<unk>", 0.0, kinds.UNKNOWN), ("<s>", 0.0, kinds.CONTROL), ("</s>", 0.0, kinds.CONTROL)]
    pieces += [(f"<0x{byte:02X}>", 0.0, kinds.BYTE) for byte in range(256)]
    pieces += [(letter, LETTER_SCORE, kinds.NORMAL) for letter in letters] + [(word, WORD_SCORE, kinds.NORMAL) for word in words]
    for piece, score, kind in pieces:
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = messages.TrainerSpec.UNIGRAM
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(pieces)
    model.normalizer_spec.name = "identity"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def tiny_glm(vocabulary: int) -> ChatGLMModel:
    """Three layers of ChatGLM3: two heads of the queries share one of keys and values."""
    config = ChatGLMConfig(
        num_layers=3,
        padded_vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        ffn_hidden_size=2 * TEXT_WIDTH,
        kv_channels=8,
        num_attention_heads=4,
        seq_length=512,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=2,
        original_rope=True,
        auto_map=CODE,
    )
    encoder = ChatGLMModel(config)  # its weights are not initialised
    for name, parameter in encoder.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=SPREAD)
    return encoder


def make_tiny(folder: Path, *, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """Write the pipeline into ``folder`` and return it. The same seed gives the same bytes. The global random state is left alone."""
    vocabulary = folder / "tokenizer" / "tokenizer.model"
    write_vocabulary(vocabulary)
    tokenizer = ChatGLMTokenizer(str(vocabulary))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = tiny_unet(
            text_width=ATTENTION_WIDTH,
            encoder_hid_dim=TEXT_WIDTH,
            encoder_hid_dim_type="text_proj",
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            addition_embed_type="text_time",
            addition_time_embed_dim=SIZE_WIDTH,
            projection_class_embeddings_input_dim=6 * SIZE_WIDTH + TEXT_WIDTH,
        )
        encoder, vae = tiny_glm(tokenizer.vocab_size), build_vae()
    scheduler = EulerDiscreteScheduler(
        num_train_timesteps=1100,
        beta_start=0.00085,
        beta_end=0.014,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=prediction_type,
    )
    parts = {"unet": unet, "text_encoder": encoder, "tokenizer": tokenizer, "vae": vae, "scheduler": scheduler}
    classes = {name: [LIBRARY, type(parts[name]).__name__] for name in ("text_encoder", "tokenizer")}
    write_pipeline_folder(folder, "KolorsPipeline", parts, force_zeros_for_empty_prompt=False, **classes)
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n", encoding="utf-8")
    return folder
