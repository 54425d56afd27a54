"""Plans the sample of a measured file: size, crop, bucket and captions, or why the file is left out."""

from __future__ import annotations

from trainer_engine.config.datasets import ImageSet
from trainer_engine.datasets.buckets import clip_bucket
from trainer_engine.datasets.captions.base import CaptionsOf, NoCaption
from trainer_engine.datasets.fitting import Fitter
from trainer_engine.datasets.index import ImageFile
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.sources.base import LeftOut, Source
from trainer_engine.datasets.texts import RememberedTexts


class Planner:
    """Applies the settings of a dataset to its files."""

    def __init__(
        self,
        entry: ImageSet,
        source: Source,
        captions: CaptionsOf,
        *,
        alignment: int,
        rounding: int,
        canvas_px: int = 0,
        texts: RememberedTexts | None = None,
        frame_stride: int = 1,
    ) -> None:
        """``canvas_px``: pixels of the largest image; 0 for any number. ``texts``: where ``captions`` are read, if they are remembered.

        ``frame_stride``: clips have one frame and a multiple of these.
        """
        self.entry = entry
        self.source = source
        self.captions = captions
        self.fitter = Fitter(entry, alignment=alignment, rounding=rounding, canvas_px=canvas_px)
        self._texts = texts
        self._frame_stride = frame_stride

    def plan(self, file: ImageFile) -> Sample | LeftOut:
        """Returns the sample of a file, or why the file is left out."""
        reason, target, crop, bucket, resized = self.fitter.fit((file.width, file.height), file.name)
        frames = 1
        if file.frame_rate is not None and not reason:
            reason, frames = self._wrong_length(file), self._frames(file)
            bucket = clip_bucket(bucket, frames)
        if reason:
            return LeftOut(file.name, reason, broken=False)
        try:
            captions = self.captions(file.name)
        except NoCaption as missing:
            return LeftOut(file.name, str(missing), broken=True)
        return Sample(
            source=self.source,
            name=file.name,
            size_bytes=file.size_bytes,
            version=file.version,
            width=file.width,
            height=file.height,
            resized=resized,
            target=target,
            crop=crop,
            bucket=bucket,
            captions=captions,
            remark=file.remark,
            frames=frames,
            frame_rate=file.frame_rate,
        )

    def _wrong_length(self, file: ImageFile) -> str:
        """Returns why a clip is too short or too long; empty if it is not."""
        clips = self.entry.video
        if clips is None:
            return ""
        if clips.min_frames and file.frames < clips.min_frames:
            return f"it has {file.frames} frames; min_frames={clips.min_frames}"
        if clips.max_frames and file.frames > clips.max_frames:
            return f"it has {file.frames} frames; max_frames={clips.max_frames}"
        return ""

    def _frames(self, file: ImageFile) -> int:
        """Returns how many frames of a clip are trained on, from the first one on."""
        clips = self.entry.video
        return file.frames if clips is None else clips.trained_frames(file.frames, self._frame_stride)

    def save_texts(self) -> None:
        """Remembers the captions that were read."""
        if self._texts:
            self._texts.save()
