"""The pipeline that a run leaves: trained transformer, everything else as the base model has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diffusers
import torch

from trainer_engine.contract.options import TrainingOptions
from trainer_engine.export import copy_part, model_card, whole_folder, write_json
from trainer_engine.families.pixart_sigma.card import CARD
from trainer_engine.families.pixart_sigma.parts import Parts


def write_pipeline(
    folder: Path, parts: Parts, save_transformer: Callable[[Path], None], options: TrainingOptions, *, dtype: str, prediction_type: str
) -> None:
    """A complete diffusers pipeline in ``folder``. Raises ModelUnavailable where the base model's other parts have gone."""
    with_text = options.checkpointing.save_text_encoder
    scheduler = parts.make_scheduler(prediction_type)
    with whole_folder(folder) as beside:
        save_transformer(beside / "transformer")
        _write_part(parts, "vae", beside)
        if with_text:
            _write_part(parts, "text_encoder", beside)
            _write_part(parts, "tokenizer", beside)
        scheduler.save_pretrained(beside / "scheduler")
        write_json(beside / "model_index.json", _model_index(type(scheduler).__name__, with_text=with_text))
        facts = {
            "family": CARD.name,
            "objective": prediction_type,
            "resolution": f"{options.data.resolution:g} ({options.data.resolution_type})",
            "batch": f"{options.run.train_batch_size} x {options.run.gradient_accumulation_steps} x {options.distributed.num_processes}",
            "optimizer": options.optimizer.optimizer,
            "learning rate": f"{options.optimizer.learning_rate:g}, {options.schedule.lr_scheduler}",
            "weights": dtype,
            "guidance used while validating": f"{options.validation.validation_guidance:g}",
        }
        card = model_card(
            title=CARD.title, base_model=parts.base.name, pipeline="PixArtSigmaPipeline", dtype=dtype, facts=facts, drawable=with_text
        )
        (beside / "README.md").write_text(card, encoding="utf-8")


def _write_part(parts: Parts, name: str, beside: Path) -> None:
    """As it stands in its repository; weights of a variant are saved again under the plain name."""
    part = parts.find(name)
    if part.variant is None:
        copy_part(part.folder, beside / name)
    elif name == "vae":
        parts.load_vae(None).save_pretrained(beside / name, safe_serialization=True)
    else:
        parts.load_text_encoder(torch.bfloat16).save_pretrained(beside / name)


def _model_index(scheduler: str, *, with_text: bool) -> dict[str, object]:
    return {
        "_class_name": "PixArtSigmaPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "T5EncoderModel"] if with_text else [None, None],
        "tokenizer": ["transformers", "T5Tokenizer"] if with_text else [None, None],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
