"""Small text models in the real Hugging Face layout: tokenizers of CLIP, T5 and Pile T5, and a CLIP with random weights."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer, LlamaTokenizerFast, T5Tokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

EDGE_PX = 32
WIDTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_TOKENS = 77
WORDS = """a an the of on in at with and to from under over near behind between two three small large big tiny soft bright dark
red green blue yellow orange purple pink brown black white grey golden silver teal
circle square triangle star heart ring stripe stripes dot dots cross moon sun shape pattern background
photo picture painting drawing sketch poster landscape style light morning evening night day sky sea lake river
mountain forest tree flower field house door window street city boat car cat dog bird horse fish fox owl bear man woman child
glass wood stone paper water fire snow rain cloud studio"""
WORD_SCORE, LETTER_SCORE = -4.0, -12.0


def build_clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that spells every word letter by letter.

    It knows lower-case letters, digits and punctuation; anything else becomes the end token, as in the real one.
    """
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=CLIP_TOKENS)


def build_t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer with common words of captions as tokens; it spells other words letter by letter.

    A unigram model with the special tokens of T5. Letters that are not in the vocabulary become ``<unk>``.
    """
    letters = ["▁", *string.ascii_lowercase, *string.ascii_uppercase, *string.digits, *string.punctuation]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(f"▁{word}", WORD_SCORE) for word in dict.fromkeys(WORDS.split())] + [(letter, LETTER_SCORE) for letter in letters]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5Tokenizer(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", extra_ids=0)


def build_llama_tokenizer() -> LlamaTokenizerFast:
    """A tokenizer of Llama that spells letter by letter, and byte by byte what is not ASCII.

    As that of Pile T5, it puts the end behind a text, nothing before it, and pads with the mark of a beginning.
    """
    letters = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    return LlamaTokenizerFast(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        add_bos_token=False,
        add_eos_token=True,
        pad_token="<s>",
        padding_side="right",
    )


def make_tiny_clip(folder: Path, *, seed: int = 0) -> Path:
    """Write a CLIP of some thousand parameters and its processor into ``folder``, and return it.

    The same seed gives the same bytes. The global random state does not change.
    """
    tokenizer = build_clip_tokenizer()
    shared = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {**shared, **tokens, "vocab_size": len(tokenizer), "max_position_embeddings": CLIP_TOKENS, "projection_dim": WIDTH}
    vision = {**shared, "image_size": EDGE_PX, "patch_size": EDGE_PX // 4, "projection_dim": WIDTH}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    crop = {"height": EDGE_PX, "width": EDGE_PX}
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": EDGE_PX}, crop_size=crop)
    model.save_pretrained(folder)
    CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder
