"""How far the states of a Flux caption's padding can be compressed: those of T5's architecture, with random weights.

T5 attends to its padding, so its states depend on the caption and are stored. Each sees nearly what its neighbour sees. How alike they are
depends on the biases of relative positions, which are larger in trained weights than the initial ones; so several sizes are taken.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from tests.bench.table import Table
from trainer_engine.caches.packing import pack

SECTION = "padding"
TOKENS, LENGTH = 50, 512
LAYERS, WIDTH = 24, 512
BIASES = (0.02, 1.0, 3.0)
"""Standard deviations of the biases of relative positions."""
VOCABULARY, END, PAD = 2000, 1, 0


@dataclass(frozen=True)
class Shares:
    """Bytes of a caption as a share of its bfloat16 states."""

    packed: float
    """As ``compress_disk_cache`` stores it."""
    differences: float
    """Of the difference between neighbouring positions, as ordered integers in planes of bytes, zlib level 6."""
    step: float
    """Relative difference between neighbouring states of padding, median."""


def states(bias: float, *, layers: int = LAYERS, width: int = WIDTH, seed: int = 0) -> Tensor:
    """(LENGTH, width) of a caption of TOKENS tokens, in bfloat16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"d_model": width, "d_ff": 5 * width // 2, "d_kv": 64, "num_heads": width // 64, "num_layers": layers}
        encoder = T5EncoderModel(T5Config(vocab_size=VOCABULARY, feed_forward_proj="gated-gelu", is_encoder_decoder=False, **sizes)).eval()
        ids = torch.full((1, LENGTH), PAD)
        ids[0, :TOKENS] = torch.randint(END + 1, VOCABULARY, (TOKENS,))
        ids[0, TOKENS] = END
        with torch.no_grad():
            encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.normal_(0, bias)
            found: Tensor = encoder(input_ids=ids).last_hidden_state[0].bfloat16()
    return found


def shares(found: Tensor) -> Shares:
    content = save({"embeds": found})
    packed = pack(content, {"embeds": found})
    padding = found[TOKENS + 1 :].float()
    steps = (padding[1:] - padding[:-1]).norm(dim=1) / padding[:-1].norm(dim=1)
    return Shares(len(packed or content) / len(content), len(_differences(found)) / found.nbytes, float(steps.median()))


def _differences(found: Tensor) -> bytes:
    """The states so coded that small differences between positions are small numbers; it can be undone."""
    bits = found.view(torch.int16).numpy().astype(np.int32) & 0xFFFF
    ordered = np.where(bits & 0x8000, 0x8000 - (bits & 0x7FFF), 0x8000 + bits)
    steps = np.diff(ordered, axis=0, prepend=np.zeros_like(ordered[:1]))
    folded = np.where(steps >= 0, 2 * steps, -2 * steps - 1).astype(np.uint32)
    return zlib.compress(b"".join((folded >> shift & 0xFF).astype(np.uint8).tobytes() for shift in (0, 8, 16)), 6)


def run(table: Table) -> None:
    for bias in BIASES:
        found = shares(states(bias))
        value = f"{100 * found.packed:.0f} % with compress_disk_cache, {100 * found.differences:.0f} % as differences of positions"
        title = f"a caption of {TOKENS} of {LENGTH} tokens, T5 of {LAYERS} layers, random weights, position biases of {bias:g}"
        table.add(SECTION, title, value, aim="20 %", beside=f"neighbouring states of padding differ by {100 * found.step:.2f} %")
