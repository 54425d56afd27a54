"""Options of the run: its length and batches, the learning-rate schedule, and the processes that it is spread over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from trainer_engine.config.option import OptionGroup, option


class RunOptions(OptionGroup):
    """How long a run is, how large its batches are, and where its output goes."""

    output_dir: str = option(
        ..., "Folder for checkpoints, validation images, default caches and the result. It is created if it does not exist."
    )
    max_train_steps: int = option(0, "Number of optimizer steps. 0: num_train_epochs decides how long the run is.", ge=0)
    num_train_epochs: int = option(
        1,
        "Number of passes over the datasets. 0: max_train_steps decides how long the run is. Only one of the two may be above 0. "
        "If only max_train_steps is given, this option counts as 0.",
        ge=0,
        le=1000,
    )
    train_batch_size: int = option(4, "Samples per device in one forward pass.", ge=1, le=128)
    gradient_accumulation_steps: int = option(1, "Micro-batches whose gradients are accumulated for one optimizer step.", ge=1)
    seed: int = option(42, "Random seed of noise, timesteps, caption dropout, crops and the order of samples.", ge=0, le=2_147_483_647)
    use_ema: bool = option(False, "Keep an exponential moving average (EMA) of the trained weights.")
    ema_decay: float = option(0.995, "Decay of the EMA: the share of the average that each update keeps.", ge=0, le=0.9999)
    ema_update_interval: int = option(1, "Number of optimizer steps between two updates of the EMA.", ge=1)
    ema_device: Literal["accelerator", "cpu"] = option(
        "cpu",
        "Where the EMA is kept, in float32. cpu: in the memory of the host; each update copies the trained weights there. accelerator: "
        "with the trained weights, which is faster and takes the memory of the device.",
    )
    ema_cpu_only: bool = option(False, "Keep the EMA in the memory of the host whatever ema_device says.")
    ema_foreach_disable: bool = option(False, "Update the EMA one weight at a time instead of many together. The numbers are the same.")
    ema_warmup_steps: int = option(
        0, "Optimizer steps at the start during which the EMA is a copy of the trained weights. Averaging begins after them.", ge=0
    )
    i_know_what_i_am_doing: bool = option(
        False, "Resume even if the datasets or batch sizes differ from those of the checkpoint. The order of samples then starts anew."
    )

    @property
    def ema_on_host(self) -> bool:
        """Whether the average of the weights lies in the memory of the host."""
        return self.ema_cpu_only or self.ema_device == "cpu"


class ScheduleOptions(OptionGroup):
    """How the learning rate changes over the run. Every schedule starts with lr_warmup_steps of linear warm-up."""

    lr_scheduler: Literal["constant_with_warmup", "constant", "linear", "cosine", "cosine_with_restarts", "sine", "polynomial"] = option(
        "constant_with_warmup",
        "Schedule of the learning rate after the warm-up. constant and constant_with_warmup keep it at learning_rate; the others decay to "
        "lr_end.",
        synonyms={"cosine_with_warmup": "cosine", "linear_with_warmup": "linear"},
    )
    lr_warmup_steps: int = option(0, "Number of optimizer steps over which the learning rate rises linearly from 0 to learning_rate.", ge=0)
    lr_end: float = option(4e-7, "Lowest learning rate of the decaying schedules.", ge=0, le=1)
    lr_num_cycles: int = option(1, "Number of cycles over the run, for cosine_with_restarts and sine.", ge=1)
    lr_power: float = option(0.8, "Exponent of the polynomial schedule.", ge=0.1)


class DistributedOptions(OptionGroup):
    """How many processes a run uses, and how its network is compiled."""

    num_processes: int = option(1, "Number of processes on this machine. accelerate_config overrides it.", ge=1)
    accelerate_config: str | None = option(
        None, "Path of a YAML configuration file of Accelerate, which sets processes, hosts and devices. Empty: num_processes decides."
    )
    num_machines: int = option(1, "Machines that share the run. Start it on each, with the same options but machine_rank.", ge=1, le=1024)
    machine_rank: int = option(0, "Number of this machine among num_machines. The first, 0, writes checkpoints and images.", ge=0, le=1023)
    main_process_ip: str = option("127.0.0.1", "Address of machine 0, to which the others connect.")
    main_process_port: int = option(29500, "Port of machine 0, to which the others connect.", ge=1, le=65_535)
    find_unused_parameters: bool = option(
        False, "Several processes: allow that a step leaves weights without a gradient, which takes a pass over all weights."
    )
    context_parallel_size: int = option(
        1,
        "Processes that work on one sample together, each on a part of its tokens. Such a group counts as one process for batches, epochs "
        "and validation images. docs/distributed.md says which models can be split. 0 and 1: each process works alone.",
        ge=0,
        le=64,
    )
    context_parallel_comm_strategy: Literal["alltoall", "allgather"] = option(
        "alltoall",
        "How the processes of a group attend to each other's tokens. alltoall: each computes some of the attention heads for all tokens. "
        "allgather: each computes all heads for its own tokens, which needs an attention_mechanism that returns how its scores add up.",
    )
    fsdp_enable: bool = option(
        False,
        "Spread the weights of the network over all processes (FSDP), and in a full fine-tune gradients and optimizer state too, if one "
        "device cannot hold them. docs/distributed.md says what can be combined with it.",
    )
    fsdp_version: int = option(2, "Version of FSDP. 2 is the only one.", ge=1, le=2)
    fsdp_reshard_after_forward: bool = option(
        True, "FSDP: free the gathered weights of a block after its forward pass and gather them again for the backward pass."
    )
    fsdp_cpu_offload: bool = option(
        False,
        "FSDP: keep the part of the weights that a process has in the memory of the host, and copy a block to the device while it "
        "computes. In a full fine-tune, gradients and optimizer state are there too, and the host updates the weights.",
    )
    fsdp_cpu_ram_efficient_loading: bool = option(
        False,
        "FSDP: only the first process reads the weights of the network, and sends them to the others block by block. The memory of the "
        "host then holds the network once, and not once for each process.",
    )
    fsdp_activation_checkpointing: bool = option(False, "FSDP: turn gradient_checkpointing on, which does the same.")
    fsdp_auto_wrap_policy: Literal["TRANSFORMER_BASED_WRAP", "NO_WRAP"] = option(
        "TRANSFORMER_BASED_WRAP",
        "FSDP: what gathers its weights on its own. TRANSFORMER_BASED_WRAP: each block. NO_WRAP: the complete network at once.",
        later=("SIZE_BASED_WRAP",),
    )
    fsdp_transformer_layer_cls_to_wrap: str | None = option(
        None, "FSDP: class names of the blocks, separated by commas. Empty: the blocks that the network consists of."
    )
    torch_num_threads: int = option(0, "Threads of a process for operators on the CPU. 0: as many as PyTorch chooses.", ge=0, le=1024)
    dynamo_backend: Literal["no", "inductor", "eager", "aot_eager"] = option(
        "no",
        "Backend of torch.compile for the network. no: the network is not compiled. inductor: compiled to fast kernels; docs/speed.md says "
        "what that needs. eager and aot_eager trace the network only, to find faults.",
        later=("aot_ts_nvfuser", "nvprims_nvfuser", "cudagraphs", "ofi", "fx2trt", "onnxrt", "tensorrt", "ipex", "tvm", "hpu_backend"),
    )
    dynamo_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = option(
        None,
        "What inductor optimizes for. Empty or default: short compilation and fast steps. reduce-overhead: fewer launches on a GPU by "
        "CUDA graphs, for more memory. max-autotune: the fastest of several kernels; compilation takes long, and a resumed run may "
        "choose others.",
    )
    dynamo_dynamic: bool = option(
        False,
        "Compile one graph for all sizes of images. Off: one graph for each size, each compiled when it first occurs. These are faster, "
        "and a resumed run computes with the same ones.",
    )
    dynamo_fullgraph: bool = option(
        False, "Refuse a network that cannot be compiled as one graph, instead of running parts of it without compilation."
    )
    dynamo_use_regional_compilation: bool = option(
        False,
        "Compile the repeated blocks of the network instead of all of it. They share their graphs, so compilation is many times shorter.",
    )

    @property
    def group_size(self) -> int:
        """How many processes work on one sample together; 1 without context parallelism."""
        return max(1, self.context_parallel_size)

    def groups_of(self, processes: int) -> int:
        """How many samples so many processes take at a time: the number of groups, at least 1."""
        return max(1, processes // self.group_size)

    @property
    def reads_weights_once(self) -> bool:
        """Whether only the first process reads the weights of the network."""
        return self.fsdp_enable and self.fsdp_cpu_ram_efficient_loading

    @property
    def keeps_parts_on_host(self) -> bool:
        """Whether the parts of spread weights lie in the memory of the host."""
        return self.fsdp_enable and self.fsdp_cpu_offload

    def wrapped_blocks(self, usual: Sequence[str]) -> tuple[str, ...]:
        """Class names of the modules that gather their sharded weights on their own. ``usual``: those of the family."""
        if self.fsdp_auto_wrap_policy == "NO_WRAP":
            return ()
        named = (self.fsdp_transformer_layer_cls_to_wrap or "").replace(",", " ").split()
        return tuple(named or usual)
