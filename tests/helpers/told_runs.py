"""Run folders whose journals were written by the real journal, without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from trainer_engine.contract.events import CheckpointEvent, ImageEvent, Notification, ProgressEvent
from trainer_engine.contract.run import JobSpec, RunFolder
from trainer_engine.media import attachments
from trainer_engine.runtime.events import Journal

PROMPT = "a white boat"


class ToldRun:
    """A run that tells what it is made to tell."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.folder = RunFolder(path).create()
        chosen = {"model_family": "pixart_sigma", "model_type": "full", **options}
        JobSpec(job_id=path.name, environment="boats", options=chosen, datasets=[]).write(self.folder)
        self.journal = Journal(self.folder.journal)

    def step(
        self, step: int, loss: float | None = 0.5, *, rate: float = 1e-4, total: int = 100, metrics: Mapping[str, float] | None = None
    ) -> None:
        self.journal.emit(
            ProgressEvent(
                step=step,
                total_steps=total,
                epoch=1,
                loss=loss,
                learning_rate=rate,
                grad_norm=1.0,
                samples_per_second=1.0,
                seconds_per_step=1.0,
                eta_seconds=1.0,
                metrics=dict(metrics or {}),
            )
        )

    def evaluation(self, step: int, metrics: Mapping[str, float | None]) -> None:
        self.journal.emit(Notification(code="evaluation", message=f"Step {step}.", details={"step": step, "metrics": dict(metrics)}))

    def checkpoint(self, step: int) -> None:
        self.journal.emit(CheckpointEvent(path=f"/gone/checkpoint-{step}", label=f"checkpoint-{step}", step=step, size_bytes=1))

    def image(
        self,
        step: int,
        colour: str,
        *,
        name: str = "validation",
        prompt: str = PROMPT,
        size: tuple[int, int] = (64, 64),
        number: int = 0,
        kind: str = "final",
    ) -> Path:
        """Draw and tell an image of one colour."""
        path = self.folder.media / f"step_{step}_{name}_{number}_{size[0]}x{size[1]}.png"
        Image.new("RGB", size, colour).save(path)
        self.emit_image(path, step, name=name, prompt=prompt, size=size, kind=kind)
        return path

    def emit_image(
        self, path: Path, step: int, *, name: str, prompt: str, size: tuple[int, int], kind: str = "final", mp4: Path | None = None
    ) -> None:
        self.journal.emit(
            ImageEvent(
                title=f"Validation (step 5/5): {name}",
                body=prompt,
                step=5,
                global_step=step,
                resolution=size,
                validation_type=kind,
                prompt=prompt,
                step_label="5/5",
                **attachments(path, mp4),
            )
        )


def coloured_places(path: Path) -> dict[tuple[int, int, int], tuple[int, int]]:
    """Colour -> where it is first met in a picture, rows first."""
    places: dict[tuple[int, int, int], tuple[int, int]] = {}
    with Image.open(path) as sheet:
        pixels = sheet.convert("RGB")
        for y in range(0, sheet.height, 3):
            for x in range(0, sheet.width, 3):
                colour = pixels.getpixel((x, y))
                assert isinstance(colour, tuple)
                places.setdefault(colour, (x, y))  # type: ignore[arg-type]
    return places
