"""The images of an environment's datasets: listed with their captions, found by name, captions written."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from environments import services
from environments.create.names import is_name
from environments.errors import EnvironmentProblems, EnvironmentRefused
from environments.home import current_home
from environments.images.upload import FOLDER
from environments.paths import Home, outside
from environments.resolve.run import resolve_run
from environments.secrets.store import with_secrets
from trainer_engine.config.dataset_tables import FOLDER_FIELD
from trainer_engine.config.datasets import ImageSet, ReferenceSet
from trainer_engine.contract.atomic import why_not_written, write_atomically
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import is_file, read_small
from trainer_engine.datasets.captions.base import NoCaption, captions_of
from trainer_engine.datasets.media.base import suffixes_of
from trainer_engine.datasets.media.image import MEDIUM
from trainer_engine.datasets.sources.base import FoundFile
from trainer_engine.datasets.sources.local import Bound, LocalSource
from trainer_engine.datasets.text import NotText, decode

TEXT_FILES = "textfile"
PLAIN_STRATEGIES = (TEXT_FILES, "filename", "instanceprompt")
"""Strategies whose captions are read here. Tables of users are parsed only in a limited process."""
LONGEST_CAPTION = 20_000
MOST_LISTED, LONGEST_SECONDS = 20_000, 3.0
"""Images of a dataset that are looked at for a page, and the time for that."""


class NoSuchImage(EnvironmentRefused):
    """The environment has no such dataset, or the dataset no such image."""

    status_code = 404


class FoundImages(NamedTuple):
    """The images that a walk found."""

    files: list[FoundFile]
    is_cut: bool
    """Whether there are more, which were not looked at."""


@dataclass(frozen=True)
class DatasetImage:
    """One image."""

    file: str
    """Relative to the dataset's folder."""
    size_bytes: int
    captions: tuple[str, ...] | None
    """Alternative captions as training sees them; None if there is none, or if the strategy reads a table."""
    trouble: str
    """Why it has no caption; empty if it has one."""
    text: str | None
    """The content of its ``.txt`` file; None without one."""


@dataclass(frozen=True)
class ImagePage:
    """Some images of a dataset."""

    dataset: OpenDataset
    images: list[DatasetImage]
    total: int
    """Images that were found."""
    is_cut: bool
    """Whether there are more, which were not looked at."""
    without_text: int
    """Images without a ``.txt`` file beside them."""


@dataclass(frozen=True)
class OpenDataset:
    """A dataset whose files lie in a folder of this machine."""

    entry: ImageSet | ReferenceSet
    home: Home

    @property
    def folder(self) -> Path:
        return Path(self.entry.instance_data_dir)

    @property
    def strategy(self) -> str:
        """The caption strategy; empty for references, which have no captions."""
        return self.entry.caption_strategy if isinstance(self.entry, ImageSet) else ""

    @property
    def takes_text_files(self) -> bool:
        """Whether its captions are those of text files."""
        return self.strategy == TEXT_FILES and isinstance(self.entry, ImageSet) and not self.entry.only_instance_prompt

    @property
    def can_write_texts(self) -> bool:
        """Whether its captions come from elsewhere, and are known without a table."""
        return self.strategy in PLAIN_STRATEGIES and not self.takes_text_files

    @property
    def upload_name(self) -> str:
        """The folder of ``datasets/`` in the home that it is, for an upload; empty if it is another place."""
        uploads = os.path.realpath(self.home.root / FOLDER)
        real = Path(os.path.realpath(self.folder))
        return real.name if str(real.parent) == uploads and is_name(real.name) else ""

    def files(self) -> FoundImages:
        """The images in the order of their names, but those whose names JSON cannot hold. Raises EnvironmentProblems.

        In a very large folder, or on a slow disk, only some are found.
        """
        bound = Bound(MOST_LISTED, LONGEST_SECONDS)
        try:
            found = LocalSource(str(self.folder)).list_files(suffixes_of((MEDIUM.name,)), bound).files
        except OSError as error:
            message = f"{self.folder} cannot be listed: {error.strerror or error}."
            problem = Problem.error(self.entry.option("instance_data_dir"), "unreadable", message, got=str(self.folder))
            raise EnvironmentProblems.of([problem]) from error
        return FoundImages([file for file in found if file.name.isprintable()], bound.is_reached)

    def path_of(self, file: str, *, suffix: str = "", writing: bool = False) -> Path:
        """The absolute path of an image, or of the file beside it with another suffix. Raises NoSuchImage, EnvironmentProblems.

        Links are resolved, and the server's path rule judges where they lead to.
        """
        parts = Path(file).parts
        named = not file or "\0" in file or Path(file).is_absolute() or any(part.startswith(".") for part in parts)
        image = self.folder / file
        if named or image.suffix.lower() not in MEDIUM.suffixes or not is_file(image):
            raise NoSuchImage(f"The dataset '{self.entry.id}' has no image '{file[:200]}'")
        path = image.with_suffix(suffix) if suffix else image
        refusals = [self.home.place_rule.refusal(image, writing=False), self.home.place_rule.refusal(path, writing=writing)]
        for refusal in refusals:
            if refusal is not None:
                raise EnvironmentProblems.of([outside(file, "file", refusal)])
        return Path(os.path.realpath(path))

    def images(self, *, offset: int, limit: int, missing_first: bool = False) -> ImagePage:
        """Some of the images with their captions; those without a ``.txt`` file first if asked. Raises EnvironmentProblems."""
        files, is_cut = self.files()
        bare = {file.name for file in files if not is_file((self.folder / file.name).with_suffix(".txt"))}
        ordered = sorted(files, key=lambda file: file.name not in bare) if missing_first else files
        captions = self._captions()
        shown = [self._image(file, captions) for file in ordered[offset : offset + limit] if self._may_show(file.name)]
        return ImagePage(self, shown, len(files), is_cut, len(bare))

    def _may_show(self, file: str) -> bool:
        """Whether a link to an image leads to where the server may read."""
        return self.home.place_rule.may_read(self.folder / file)

    def _captions(self) -> Callable[[str], tuple[str, ...]] | None:
        if not isinstance(self.entry, ImageSet) or self.strategy not in PLAIN_STRATEGIES:
            return None
        return captions_of(self.entry, LocalSource(str(self.folder)).within(self.home.place_rule))

    def _image(self, file: FoundFile, captions: Callable[[str], tuple[str, ...]] | None) -> DatasetImage:
        found, trouble = None, ""
        try:
            found = captions(file.name) if captions else None
        except NoCaption as error:
            trouble = str(error)
        return DatasetImage(file.name, file.size_bytes, found, trouble, self._text(file.name))

    def _text(self, file: str) -> str | None:
        try:
            return decode(read_small(self.path_of(file, suffix=".txt"), LONGEST_CAPTION * 4))
        except (OSError, NotText, EnvironmentRefused):
            return None

    def write_texts(self) -> int:
        """Write the caption that training sees now into a text file for each image without one. Returns their number.

        Raises EnvironmentProblems, at the first file that cannot be written.
        """
        captions, written = self._captions(), 0
        files, is_cut = self.files()
        if is_cut:
            message = f"{self.folder} has more than {len(files):,} images, too many to write a text file for each from here."
            hint = "write the captions with a program of your own, then set caption_strategy=textfile"
            raise EnvironmentProblems.of([Problem.error(self.entry.option("instance_data_dir"), "too_many", message, hint=hint)])
        for file in files if captions else ():
            if not os.path.lexists((self.folder / file.name).with_suffix(".txt")):
                found = self._image(file, captions)
                if found.captions:
                    self.write_caption(file.name, "\n".join(found.captions))
                    written += 1
        return written

    def write_caption(self, file: str, text: str) -> Path:
        """Write the ``.txt`` file of an image. Raises NoSuchImage, EnvironmentProblems."""
        kept = "\n".join(line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")).strip()
        if not kept or len(kept) > LONGEST_CAPTION:
            message = "The caption is empty." if not kept else f"The caption has {len(kept):,} characters."
            expected = f"1 to {LONGEST_CAPTION:,} characters; each line is one of several captions"
            raise EnvironmentProblems.of([Problem.error("caption", "bad_length", message, expected=expected)])
        path = self.path_of(file, suffix=".txt", writing=True)
        try:
            write_atomically(path, f"{kept}\n".encode())
        except OSError as error:
            raise EnvironmentProblems.of([Problem.error("file", "not_written", why_not_written(path.parent, error), got=file)]) from error
        return path


def datasets_of(name: str) -> list[OpenDataset]:
    """The datasets of an environment whose images lie in folders of this machine, in the order of its file. Raises EnvironmentNotFound."""
    environment, home = services.find(name), current_home()
    loader = resolve_run(home, with_secrets(home, name, environment.config), {}).dataloader
    entries: list[ImageSet | ReferenceSet] = [*loader.sets_of_images, *loader.reference_sets] if loader else []
    local = [one for one in entries if one.source.place_field == FOLDER_FIELD and Path(one.instance_data_dir).is_absolute()]
    plain = [one for one in local if not (isinstance(one, ReferenceSet) and one.generated)]
    return [OpenDataset(one, home) for one in sorted(plain, key=lambda one: one.position)]


def open_dataset(name: str, dataset: str) -> OpenDataset:
    """One of them. Raises EnvironmentNotFound, NoSuchImage."""
    for found in datasets_of(name):
        if found.entry.id == dataset:
            return found
    raise NoSuchImage(f"The environment '{name}' has no dataset '{dataset[:100]}' with a folder of images")
