from __future__ import annotations

from typing import Literal

from trainer_engine.config.option import OptionGroup, option


class DistributedOptions(OptionGroup):
    """Over how many processes a run is spread, and how its network is compiled."""

    num_processes: int = option(1, "Processes on this machine. accelerate_config wins over it.", ge=1)
    accelerate_config: str | None = option(None, "Accelerate's YAML file: processes, hosts, devices.")
    dynamo_backend: Literal["no", "inductor", "eager", "aot_eager"] = option(
        "no",
        "Compile the denoiser with torch.compile and this backend.",
        later=("aot_ts_nvfuser", "nvprims_nvfuser", "cudagraphs", "ofi", "fx2trt", "onnxrt", "tensorrt", "ipex", "tvm", "hpu_backend"),
    )
