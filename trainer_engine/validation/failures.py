"""Failures to generate or write an image, and their events. They never end a run."""

from __future__ import annotations

from trainer_engine.contract.atomic import means_full
from trainer_engine.contract.errors import DiskFull, EngineError
from trainer_engine.contract.events import ErrorEvent, Severity
from trainer_engine.families.common.autoencoder import ImageNotFinite
from trainer_engine.runtime.devices import ran_out_of_memory

SURVIVED = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, MemoryError, OSError, EngineError)
"""What networks, samplers, encoders and file systems raise; a base model may name any sampler, also one that its pipeline cannot ask.
A fault of the device for good comes again in the next step."""


class GenerationStopped(Exception):
    """The run was asked to stop while an image was generated."""


class ElsewhereFailed(Exception):
    """Another process of the group could not generate or write the image."""

    def __str__(self) -> str:
        return "another process of its group failed"


class GenerationFailed(Exception):
    """An image that failed, with what it was of; both are empty where it was none in particular."""

    def __init__(self, image: str, prompt: str, reason: Exception) -> None:
        super().__init__(f"{image}: {reason}" if image else str(reason))
        self.image, self.prompt, self.reason = image, prompt, reason

    def as_event(self, step: int, numbers: str = "") -> ErrorEvent:
        """``numbers``: how full the device was, for people."""
        code, what, hint = _explain(self.reason)
        others = "the other images are generated" if isinstance(self.reason, ImageNotFinite) else "the remaining images are not generated"
        named = f"Image {self.image}, prompt {self.prompt!r}: " if self.image else ""
        reason = str(self.reason) or type(self.reason).__name__
        message = f"Validation at step {step}: {what}. {named}{reason}{numbers}"
        return ErrorEvent(
            code=code,
            title="Validation failed",
            message=message,
            hint=f"{hint}; training goes on, and {others}",
            severity=Severity.WARNING,
            details={"step": step, "image": self.image, "prompt": self.prompt},
        )


def _explain(reason: Exception) -> tuple[str, str, str]:
    """(code, what happened, what to do)"""
    if ran_out_of_memory(reason):
        return "validation_out_of_memory", "memory ran out", "lower validation_resolution"
    if isinstance(reason, ImageNotFinite):
        return "validation_not_finite", "an image is not finite", "look at the loss; lower learning_rate, or set mixed_precision=no"
    if isinstance(reason, DiskFull) or means_full(reason):
        return "validation_disk_full", "the disk is full", "free some space before the next checkpoint needs it"
    if isinstance(reason, OSError):
        return "validation_not_written", "a file could not be read or written", "look at output_dir"
    hint = reason.hint if isinstance(reason, EngineError) and reason.hint else "look at the validation options"
    return "validation_failed", "an image could not be generated", hint
