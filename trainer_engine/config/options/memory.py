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
    musubi_blocks_to_swap: int = option(
        0,
        "Number of blocks of the network whose frozen weights wait in the memory of the host. Each is copied to the device shortly before "
        "it is used, while the block before it computes; two fit there at a time. Blocks at equal distances are chosen; all of them if "
        "there are fewer. For adapters.",
        ge=0,
    )
    musubi_block_swap_device: Literal["cpu"] = option("cpu", "Where the blocks of musubi_blocks_to_swap wait.")
    enable_group_offload: bool = option(
        False,
        "Keep the frozen weights of all blocks of the network in the memory of the host, and copy them to the device in groups when they "
        "are used. For adapters. Not together with musubi_blocks_to_swap or ramtorch.",
    )
    group_offload_type: Literal["block_level", "leaf_level"] = option(
        "block_level",
        "What enable_group_offload copies at once. block_level: group_offload_blocks_per_group blocks; layers around them stay on the "
        "device. leaf_level: one layer, also of those around the blocks; takes the least memory and the most time.",
    )
    group_offload_blocks_per_group: int = option(1, "Number of blocks in a group of group_offload_type=block_level.", ge=1)
    group_offload_use_stream: bool = option(
        False, "Copy the next group while the current one computes. Two groups are then on the device at a time, otherwise one."
    )
    group_offload_to_disk_path: str | None = option(
        None,
        "Folder in which the weights of enable_group_offload wait instead of the memory of the host. The files vanish with the run. Empty: "
        "they wait in memory.",
    )
    group_offload_text_encoder: bool = option(
        False, "Copy the weights of text encoders to the device layer by layer while captions are encoded."
    )
    ramtorch: bool = option(
        False,
        "Keep the frozen weights of the network's linear layers in the memory of the host, and copy each to the device when it is used, "
        "while the layer before it computes. For adapters. The package of this name is not needed.",
    )
    ramtorch_target_modules: str | None = option(
        None,
        "Layers that ramtorch keeps on the host: patterns for names or classes of layers, separated by commas, such as "
        "transformer_blocks.*. Empty: all.",
    )
    ramtorch_transformer_percent: int = option(
        100, "Share of these layers that ramtorch keeps on the host, from the first on, in percent.", ge=0, le=100
    )
    ramtorch_text_encoder: bool = option(False, "Do the same with text encoders while captions are encoded.")
    ramtorch_text_encoder_percent: int = option(
        100, "Share of the linear layers of text encoders for ramtorch_text_encoder, in percent.", ge=0, le=100
    )
    ramtorch_disable_extensions: bool = option(
        True, "Whether ramtorch keeps only linear layers on the host. false: embeddings, convolutions and norms too."
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

    @property
    def streams_network(self) -> bool:
        """Whether frozen weights of the network wait in the memory of the host."""
        return bool(self.musubi_blocks_to_swap or self.enable_group_offload or self.ramtorch)

    @property
    def streams_encoders(self) -> bool:
        """Whether the weights of text encoders wait in the memory of the host while captions are encoded."""
        return self.group_offload_text_encoder or self.ramtorch_text_encoder

    @property
    def prefetches_network(self) -> bool:
        """Whether streamed weights of the network are copied before they are needed."""
        return self.group_offload_use_stream or not self.enable_group_offload

    @property
    def prefetches_encoders(self) -> bool:
        """Whether streamed weights of text encoders are copied before they are needed."""
        return self.group_offload_use_stream or not self.group_offload_text_encoder

    @property
    def target_patterns(self) -> tuple[str, ...]:
        """The patterns of ``ramtorch_target_modules``."""
        return tuple(pattern.strip() for pattern in (self.ramtorch_target_modules or "").split(",") if pattern.strip())
