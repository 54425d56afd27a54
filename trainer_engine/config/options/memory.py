"""Options that trade time for the memory of the device."""

from __future__ import annotations

from typing import Literal

from trainer_engine.config.option import OptionGroup, option


class MemoryOptions(OptionGroup):
    """What waits in the memory of the host, or is computed again, so that a run fits on its device. docs/memory-options.md says which
    option suits which GPU."""

    gradient_checkpointing_interval: int | None = option(
        None,
        "Recompute every n-th block of the network. The others keep their activations, which takes memory and saves time. "
        "With gradient_checkpointing_segment_stride it is the number of blocks in a row. Empty, 0 or 1: every block.",
        ge=0,
    )
    gradient_checkpointing_segment_stride: int | None = option(
        None,
        "Number of blocks after which recomputing begins again: of these, the first gradient_checkpointing_interval blocks are recomputed. "
        "An interval of 2 and a stride of 4 recompute blocks 0, 1, 4, 5 and so on. Empty: gradient_checkpointing_interval alone decides.",
        ge=1,
    )
    gradient_checkpointing_backend: Literal["torch", "torch-ffn", "unsloth", "unsloth-ffn"] = option(
        "torch",
        "What gradient checkpointing recomputes, and where its inputs wait. torch: whole blocks, inputs on the device. unsloth: whole "
        "blocks, inputs in the memory of the host, copied while the device computes. torch-ffn and unsloth-ffn: only the feed-forward "
        "parts, which takes less time and more memory.",
    )
    gradient_checkpointing_offload_attention: bool = option(
        False,
        "Keep what attention saves for the backward pass in the memory of the host, except in blocks that are recomputed as a whole. Works "
        "without gradient_checkpointing too.",
    )
    gradient_checkpointing_offload_prefetch: bool = option(
        False, "Copy the next saved tensor back from the host while the current one is in use. Takes the memory of one more tensor."
    )
    gradient_checkpointing_offload_pin_memory_max_buckets: int = option(
        12,
        "Number of different tensor sizes whose memory on the host is pinned and used again. Tensors of further sizes wait in ordinary "
        "memory, which is slower.",
        ge=0,
        le=1024,
    )

    @property
    def recomputes_parts(self) -> bool:
        """Whether gradient checkpointing recomputes the feed-forward parts alone, and not whole blocks."""
        return self.gradient_checkpointing_backend.endswith("-ffn")

    @property
    def offloads_inputs(self) -> bool:
        """Whether the inputs of what is recomputed wait in the memory of the host."""
        return self.gradient_checkpointing_backend.startswith("unsloth")

    @property
    def leaves_blocks_out(self) -> bool:
        """Whether some blocks keep their activations."""
        stride = self.gradient_checkpointing_segment_stride or 0
        return self.interval > 1 if not stride else stride > self.interval

    @property
    def interval(self) -> int:
        return max(1, self.gradient_checkpointing_interval or 1)

    def recomputes(self, index: int) -> bool:
        """Whether gradient checkpointing recomputes the block with this number, counted from 0."""
        stride = self.gradient_checkpointing_segment_stride
        return index % self.interval == 0 if stride is None else index % stride < self.interval
