"""Reads the header of a checkpoint in one file, and what it states of its noise schedule. Standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer_engine.config.adapters.file_header import AdapterHeader, UnusableAdapter, open_adapter
from trainer_engine.config.one_file.layout import is_one_file
from trainer_engine.contract.files import is_file


def read_header(path: Path) -> AdapterHeader:
    """The header of a safetensors file. Raises UnusableAdapter if it is none, is damaged or is missing."""
    if not is_file(path):
        raise UnusableAdapter("not_found", f"There is no file {path}.", "give the path of a .safetensors file")
    return open_adapter(path)


def schedule_stated_by(source: str | None) -> dict[str, Any]:
    """``stated_schedule`` of a source of weights; empty if it is no file in safetensors, which other checks report."""
    if source is None or not is_one_file(source):
        return {}
    try:
        return stated_schedule(read_header(Path(source)))
    except UnusableAdapter:
        return {}


def stated_schedule(header: AdapterHeader) -> dict[str, Any]:
    """What a checkpoint states of its noise schedule, in the keys of ``scheduler_config.json``.

    Stability AI's model metadata name the prediction; ComfyUI's convention is an empty tensor ``v_pred``, or ``ztsnr`` for a schedule that
    ends in pure noise.
    """
    predictions = {"v": "v_prediction", "epsilon": "epsilon"}
    stated = predictions.get(header.metadata.get("modelspec.prediction_type", ""))
    prediction = "v_prediction" if "v_pred" in header.tensors else stated
    ends_in_noise = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in header.tensors else {}
    return {**({"prediction_type": prediction} if prediction else {}), **ends_in_noise}
