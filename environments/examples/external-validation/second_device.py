"""Generates images with the newest checkpoint on another device, so that training continues meanwhile.

--validation_method=external-script --validation_external_background=true
--validation_external_script='simpletuner/examples/external-validation/second_device.py {local_checkpoint_path} --device cuda:1 \
--prompt {validation_prompt} --steps {validation_num_inference_steps} --guidance {validation_guidance} --size {validation_resolution}'

Takes checkpoints of full runs, of LoRA and of LyCORIS. The base model is read from where the run read it, never from the network.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3]))  # a checkout that is not installed

import torch  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402
from torch import nn  # noqa: E402

from trainer_engine.config.options.sizes import parse_resolutions  # noqa: E402
from trainer_engine.contract.errors import EngineError  # noqa: E402
from trainer_engine.export.adapter_file import read_adapter  # noqa: E402
from trainer_engine.export.merging import merged_weights  # noqa: E402
from trainer_engine.media import write_picture  # noqa: E402

FOLDER = "external_validation"
NETWORKS = ("transformer", "unet")
ADAPTER = "pytorch_lora_weights.safetensors"


class Trouble(Exception):
    """The script ends with exit code 1; the message says why."""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw with a checkpoint on another device.")
    parser.add_argument("checkpoint", type=Path, help="write {local_checkpoint_path}")
    parser.add_argument("--device", default="cuda:1", help="cuda:1, cpu, mps (default: cuda:1)")
    parser.add_argument("--prompt", required=True, help="write {validation_prompt}")
    parser.add_argument("--negative", default="", help="write {validation_negative_prompt}")
    parser.add_argument("--steps", type=int, default=20, help="sampler steps (default: 20)")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale (default: 4)")
    parser.add_argument("--size", default="1024x1024", help="one or several sizes, as validation_resolution (default: 1024x1024)")
    parser.add_argument("--seed", type=int, default=42, help="seed of the noise (default: 42)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="", help="default: bfloat16, on a CPU float32")
    return parser.parse_args(argv)


def device_of(name: str) -> torch.device:
    """Raises Trouble where there is no such device."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise Trouble(f"--device {name} cannot be used here: {reason}") from error
    return device


def load(base: str, checkpoint: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """The base model's pipeline with what the checkpoint learned, on the CPU. Raises Trouble."""
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise Trouble(f"the base model {base} cannot be loaded: {str(error).partition(chr(10))[0]}") from error
    name = next((name for name in NETWORKS if hasattr(pipeline, name)), "")
    if not name:
        raise Trouble(f"{type(pipeline).__name__} has neither {' nor '.join(NETWORKS)}")
    network: nn.Module = getattr(pipeline, name)
    if (checkpoint / ADAPTER).is_file():
        adapter = read_adapter(checkpoint / ADAPTER, {key.rpartition(".")[0] for key in network.state_dict()})
        with torch.no_grad():
            for weight, merged in merged_weights(network, adapter).items():
                network.get_parameter(weight).copy_(merged)
    elif (checkpoint / name).is_dir():
        setattr(pipeline, name, type(network).from_pretrained(checkpoint / name, use_safetensors=True, local_files_only=True))
    else:
        raise Trouble(f"{checkpoint} holds neither {ADAPTER} nor a folder {name}")
    return pipeline.to(dtype=dtype)


def draw(arguments: argparse.Namespace, base: str, output: Path) -> list[Path]:
    """The files. Raises Trouble."""
    if not arguments.prompt.strip():
        raise Trouble("the prompt is empty: set validation_prompt")
    device = device_of(arguments.device)
    sizes = parse_resolutions(arguments.size)
    dtype = getattr(torch, arguments.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    pipeline = load(base, arguments.checkpoint, dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    written = []
    for number, (width, height) in enumerate(sizes):
        image = pipeline(
            arguments.prompt,
            **({"negative_prompt": arguments.negative} if arguments.negative else {}),
            num_inference_steps=arguments.steps,
            guidance_scale=arguments.guidance,
            width=width,
            height=height,
            generator=torch.Generator("cpu").manual_seed(arguments.seed + number),
        ).images[0]
        written.append(write_picture(output, f"{arguments.checkpoint.name}_{number}_{width}x{height}", image))
    return written


def main(argv: list[str]) -> int:
    """The exit code: 0 done, 1 with a sentence that says why not."""
    arguments = parse(argv)
    base, output = os.environ.get("SIMPLETUNER_BASE_MODEL", ""), os.environ.get("SIMPLETUNER_OUTPUT_DIR", ".")
    try:
        if not base:
            raise Trouble("SIMPLETUNER_BASE_MODEL is not set: a run sets it for its scripts")
        for path in draw(arguments, base, Path(output, FOLDER)):
            print(f"image: {path}", flush=True)
    except torch.OutOfMemoryError as error:
        print(f"error: {arguments.device} has too little memory: {str(error).partition('.')[0]}", flush=True)
        return 1
    except (Trouble, EngineError, ValueError) as error:
        print(f"error: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
