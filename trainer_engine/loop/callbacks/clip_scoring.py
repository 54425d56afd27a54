"""The images of a validation scored against their prompts, and what a run says of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

from trainer_engine.config.options.evaluation import CLIP
from trainer_engine.contract.errors import EngineError
from trainer_engine.contract.events import CLIP_SCORES, ErrorEvent, Notification, Severity, StageKey
from trainer_engine.evaluation.clip_scores import ClipScorer
from trainer_engine.families.modules import free_device_memory
from trainer_engine.loop.context import RunContext
from trainer_engine.loop.state import TrainState
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.devices import out_of_memory_numbers, ran_out_of_memory
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.stages import Stages
from trainer_engine.validation.failures import SURVIVED
from trainer_engine.validation.generate import ValidationImage

METRIC = "clip_score"
MEAN = "mean"


@dataclass
class ClipScoring:
    """The first process scores what all of them drew, while the others wait."""

    scorer: ClipScorer | None
    """None on the others."""
    device: torch.device
    stages: Stages
    processes: Processes
    requests: ControlRequests
    _told: set[str] = field(default_factory=set)
    """Prompts that were said to be too long."""

    def score(self, images: Sequence[ValidationImage], state: TrainState) -> None:
        """To be called on every process. An image without a prompt has no score; what fails is a warning."""
        with self.processes.first_alone():
            prompted = [image for image in images if image.prompt.strip()]
            if self.scorer is None or not prompted or self.requests.stop_asked():
                return
            self._note_long_prompts(self.scorer, prompted)
            scores, failure = self._try(self.scorer, prompted, state)
            if failure is not None:
                # Once more: only now has the failure let go of what it was about.
                free_device_memory(self.device)
                self.stages.sink.emit(failure)
            elif len(scores) == len(prompted):
                self._emit(self.scorer, list(zip(prompted, scores, strict=True)), state)

    def _try(self, scorer: ClipScorer, images: Sequence[ValidationImage], state: TrainState) -> tuple[list[float], ErrorEvent | None]:
        pairs = [(image.path, image.prompt) for image in images]
        try:
            with self.stages.stage(StageKey.VALIDATION, "Scoring images", failure=Severity.WARNING) as advance:
                return scorer.scores(pairs, advance, self.requests.stop_asked), None
        except SURVIVED as error:
            return [], self._failed(error, state.step)

    def _failed(self, reason: Exception, step: int) -> ErrorEvent:
        full = ran_out_of_memory(reason)
        numbers = out_of_memory_numbers(self.device) if full else ""
        hint = "use a smaller pretrained_evaluation_model_name_or_path" if full else "look at the images of that step"
        hint = reason.hint if isinstance(reason, EngineError) and reason.hint else hint
        return ErrorEvent(
            code="scoring_out_of_memory" if full else "scoring_failed",
            title="Scoring failed",
            message=f"The images of step {step} could not be scored: {str(reason) or type(reason).__name__}{numbers}",
            hint=f"{hint}; training goes on, and evaluation_type=none turns scores off",
            severity=Severity.WARNING,
            details={"step": step},
        )

    def _note_long_prompts(self, scorer: ClipScorer, images: Sequence[ValidationImage]) -> None:
        names = {image.prompt: image.shortname for image in images if image.prompt not in self._told}
        cut = scorer.too_long(names)
        self._told.update(cut)
        if cut:
            longest = f"the {scorer.longest} tokens that {scorer.name} reads"
            message = f"Prompts longer than {longest} are scored by their beginnings: {', '.join(names[prompt] for prompt in cut)}."
            title = "Prompts cut for scoring"
            self.stages.sink.emit(Notification(code="clip_prompts_cut", title=title, message=message, severity=Severity.WARNING))

    def _emit(self, scorer: ClipScorer, scored: Sequence[tuple[ValidationImage, float]], state: TrainState) -> None:
        metrics = metrics_of(scored)
        state.scores = {name: value for name, value in metrics.items() if name.endswith(f"/{MEAN}") and name.count("/") == 1}
        details: dict[str, Any] = {
            "step": state.step,
            "model": scorer.name,
            "metrics": metrics,
            "images": [
                {"file": image.path.name, "shortname": image.shortname, "resolution": list(image.resolution), "score": score}
                for image, score in scored
            ],
        }
        means = ", ".join(f"{name.partition('/')[0].replace('_', ' ')} {value:.2f}" for name, value in state.scores.items())
        message = f"Step {state.step}: {means}, from {len(scored)} image{'s' if len(scored) > 1 else ''}."
        self.stages.sink.emit(Notification(code=CLIP_SCORES, title="CLIP scores", message=message, details=details))


def make_scoring(run_context: RunContext) -> ClipScoring | None:
    """Loads the model, so that one that cannot be had ends the run before it begins. None where nothing is scored.

    Raises ModelUnavailable.
    """
    options = run_context.options
    if options.scoring.evaluation_type != CLIP or options.validation.validation_disable:
        return None
    device, scorer = run_context.processes.device, None
    if run_context.processes.is_first:
        with run_context.stages.stage(StageKey.LOAD_BASE_MODEL, "Loading the scoring model"):
            scorer = ClipScorer.load(options.scoring.pretrained_evaluation_model_name_or_path, device)
    return ClipScoring(scorer, device, run_context.stages, run_context.processes, run_context.requests)


def metrics_of(scored: Sequence[tuple[ValidationImage, float]]) -> Mapping[str, float]:
    """``clip_score/mean`` over all images and ``clip_score/prompt/<shortname>`` over those of each prompt; where other weights than the
    live ones drew them, ``clip_score_<label>/...``."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for image, score in scored:
        label = f"_{image.label}" if image.label else ""
        found[f"{METRIC}{label}/{MEAN}"].append(score)
        found[f"{METRIC}{label}/prompt/{image.shortname.removesuffix(label)}"].append(score)
    return {name: fmean(scores) for name, scores in found.items()}
