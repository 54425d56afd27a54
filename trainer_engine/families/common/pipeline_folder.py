"""The pipeline that a full fine-tune leaves: the trained network, everything else as the base model has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffusers import SchedulerMixin
from torch import nn

from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.resuming.base_weights import base_weights
from trainer_engine.families.base import Family
from trainer_engine.results.folders import copy_part, model_card, whole_folder, write_json
from trainer_engine.results.model_card import model_card_head, model_card_notices, named_base
from trainer_engine.results.pipeline_index import pipeline_index
from trainer_engine.weights.hub import Part, hub_cache

SaveAgain = Callable[[Path], None]


@dataclass(frozen=True)
class CopiedPart:
    """A part of a pipeline that is copied from the base model."""

    library: str
    cls: str
    part: Part
    load: Callable[[], Any]
    """Loads the part, to be written under its plain names; for weights of a variant, which have others, and for those in one file."""
    is_text: bool = False
    """Whether it is left out without ``save_text_encoder``; not if text encoders were trained."""
    is_readable: bool = True
    """Whether diffusers reads the weights as they are stored; otherwise they are loaded and written again."""


PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def has_processor(part: Part) -> bool:
    """Whether the folder of a tokenizer holds what prepares images as well, and is that of a processor."""
    return any((part.folder / name).is_file() for name in PROCESSOR_FILES)


@dataclass(frozen=True)
class TrainedPart:
    """A part of a pipeline that was trained."""

    library: str
    cls: str
    save: SaveAgain


def trained_parts(family: Family, network: nn.Module) -> dict[str, TrainedPart]:
    """Subfolder -> the trained component that belongs there. ``network`` is the bare network of a run."""

    def saving(name: str, module: nn.Module) -> SaveAgain:
        return lambda folder: family.save_component(name, module, folder)

    return {
        family.components[name].folder: TrainedPart(type(module).__module__.partition(".")[0], type(module).__name__, saving(name, module))
        for name, module in family.trained_modules(network).items()
    }


@dataclass(frozen=True)
class PipelinePlan:
    """What goes into the folder."""

    spec: FamilySpec
    pipeline: str
    """Class of the pipeline."""
    base_model: str
    trained: Mapping[str, TrainedPart]
    """By subfolder."""
    copied: Mapping[str, CopiedPart]
    """By subfolder."""
    scheduler: SchedulerMixin
    dtype: str
    objective: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the pipeline that are no components."""


def plan_of(
    family: Family,
    network: nn.Module,
    copied: Mapping[str, CopiedPart],
    scheduler: SchedulerMixin,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> PipelinePlan:
    """The pipeline that a run of the family leaves. ``network`` is the bare network of the run."""
    return PipelinePlan(
        spec=family.spec,
        pipeline=family.pipeline_name,
        base_model=family.parts.base.name,
        trained=trained_parts(family, network),
        copied=copied,
        scheduler=scheduler,
        dtype=str(family.devices.weights).removeprefix("torch."),
        objective=family.prediction_type,
        settings=settings,
    )


def write_pipeline(folder: Path, plan: PipelinePlan, options: TrainingOptions) -> None:
    """A complete diffusers pipeline in ``folder``, which appears atomically.

    Raises ModelUnavailable where the base model's other parts have gone.
    """
    with_text = options.checkpointing.save_text_encoder or bool(plan.spec.trained_text_encoders)
    present: dict[str, tuple[str, str]] = {}
    absent: dict[str, tuple[str, str]] = {}
    with whole_folder(folder) as staging:
        for subfolder, trained in plan.trained.items():
            present[subfolder] = trained.library, trained.cls
            trained.save(staging / subfolder)
        for subfolder, copied in plan.copied.items():
            if subfolder in plan.trained:
                continue
            wanted = with_text or not copied.is_text
            (present if wanted else absent)[subfolder] = copied.library, copied.cls
            if wanted and copied.is_readable and copied.part.is_copyable:
                copy_part(copied.part.folder, staging / subfolder)
            elif wanted:
                copied.load().save_pretrained(staging / subfolder)
        scheduler = in_diffusers(plan.scheduler)
        scheduler.save_pretrained(staging / "scheduler")
        present["scheduler"] = "diffusers", type(scheduler).__name__
        named = options.publishing.hub_model_id or ""
        home = named if options.publishing.push_to_hub and "/" in named else None
        name, index = pipeline_index(plan.pipeline, present, absent, plan.settings, home=home, base_model=plan.base_model)
        write_json(staging / name, index)
        (staging / "README.md").write_text(_card_text(plan, options, drawable=with_text), encoding="utf-8")


def in_diffusers(scheduler: SchedulerMixin) -> SchedulerMixin:
    """A scheduler of the class of diffusers that its own class is derived from, so that every program can load it."""
    cls: Any = next(one for one in type(scheduler).__mro__ if one.__module__.startswith("diffusers."))
    return scheduler if type(scheduler) is cls else cls.from_config(scheduler.config)


def _card_text(plan: PipelinePlan, options: TrainingOptions, *, drawable: bool) -> str:
    facts = {
        "family": plan.spec.name,
        "objective": plan.objective,
        **base_facts(options, plan.spec),
        **training_facts(options),
        "weights": plan.dtype,
    }
    return model_card(
        head=model_card_head(options, plan.spec, plan.base_model, ["full-fine-tune"]),
        notices=model_card_notices(options),
        title=plan.spec.title,
        base_model=named_base(options, plan.base_model),
        pipeline=plan.pipeline,
        module=plan.spec.widened.module if plan.spec.widened else "diffusers",
        dtype=plan.dtype,
        facts=facts,
        drawable=drawable,
    )


def base_facts(options: TrainingOptions, spec: FamilySpec) -> dict[str, str]:
    """Lines of a model card that name each source of base weights, with the first digits of its components' digests."""
    by_source: dict[str, list[str]] = {}
    for name, component in base_weights(options.model, spec, hub_cache()).items():
        by_source.setdefault(component.source, []).append(f"{name} {component.digest[:12]}".strip())
    return {f"base weights from `{named_base(options, source)}`": ", ".join(parts) for source, parts in by_source.items()}


def training_facts(options: TrainingOptions) -> dict[str, str]:
    """How a model was trained, as lines of its card."""
    groups = options.distributed.groups_of(options.distributed.num_processes)
    return {
        "resolution": f"{options.data.resolution:g} ({options.data.resolution_type})",
        "batch": f"{options.run.train_batch_size} x {options.run.gradient_accumulation_steps} x {groups}",
        "optimizer": options.optimizer.optimizer,
        "learning rate": f"{options.optimizer.learning_rate:g}, {options.schedule.lr_scheduler}",
        **({"learning rate of the text encoders": f"{options.optimizer.text_encoder_rate:g}"} if options.model.train_text_encoder else {}),
        "guidance used while validating": f"{options.validation.validation_guidance:g}",
        **({"input": "the image and its control image, the control_image of the pipeline"} if options.model.control else {}),
    }
