"""Options of the run: its length and batches, the learning-rate schedule, and the processes that it is spread over."""

from __future__ import annotations

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
    dynamo_backend: Literal["no", "inductor", "eager", "aot_eager"] = option(
        "no",
        "Backend of torch.compile for the network. no: the network is not compiled.",
        later=("aot_ts_nvfuser", "nvprims_nvfuser", "cudagraphs", "ofi", "fx2trt", "onnxrt", "tensorrt", "ipex", "tvm", "hpu_backend"),
    )
