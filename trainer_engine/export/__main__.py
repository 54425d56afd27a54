"""What ``simpletuner export`` runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer_engine.contract.errors import EngineError
from trainer_engine.export.command import FORMS, ExportRequest, export

ADAPTER = "pytorch_lora_weights.safetensors"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="simpletuner export", description="Write an adapter in the shape that another program loads.")
    parser.add_argument("adapter", type=Path, help=f"an adapter file, or a folder that holds {ADAPTER}")
    parser.add_argument("--to", choices=sorted(FORMS), required=True, help="; ".join(f"{name}: {what}" for name, what in FORMS.items()))
    parser.add_argument("--output", type=Path, required=True, help="file, for merged: folder; nothing that is there is overwritten")
    parser.add_argument("--base", default=None, help="base model, a repository id or a folder (default: the one that the file names)")
    parser.add_argument("--model_family", default=None, help="family of the base model (default: the one that the file names)")
    parser.add_argument("--controlnet", default=None, help="weights that an adapter on a ControlNet began with (default: those beside it)")
    parser.add_argument("--strength", type=float, default=1.0, help="merged: strength of the adapter (default: 1)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="merged: type of the weights (default: float32)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, else the engine's for what went wrong."""
    arguments = build_parser().parse_args(argv)
    found = arguments.adapter / ADAPTER if arguments.adapter.is_dir() else arguments.adapter
    request = ExportRequest(
        adapter=found,
        form=arguments.to,
        output=arguments.output,
        base=arguments.base,
        model_family=arguments.model_family,
        strength=arguments.strength,
        dtype=arguments.dtype,
        controlnet=arguments.controlnet,
    )
    try:
        for line in export(request):
            print(line)
    except EngineError as error:
        print(f"simpletuner export: {error}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
