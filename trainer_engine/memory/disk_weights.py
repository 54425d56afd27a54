"""Memory whose content lies in files that vanish with the process."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer_engine.contract.atomic import means_full
from trainer_engine.contract.errors import DiskFull, InvalidOptions, Problem

OPTION = "group_offload_to_disk_path"


@dataclass(frozen=True)
class DiskBytes:
    """Makes memory that the operating system reads from the disk when it is used, and may drop afterwards."""

    folder: Path

    def __call__(self, size: int) -> Tensor:
        """(size,) uint8. The file has no name once it is open, so nothing remains of it, however the process ends.

        Raises DiskFull, InvalidOptions.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix="weights-", dir=self.folder)
            try:
                if hasattr(os, "posix_fallocate"):  # else a full disk would end the process while it writes into the memory
                    os.posix_fallocate(handle, 0, size)
                memory: Tensor = torch.from_file(name, shared=True, size=size, dtype=torch.uint8)
                return memory
            finally:
                os.close(handle)
                Path(name).unlink()
        except OSError as error:
            if means_full(error):
                raise DiskFull(
                    f"The disk of {self.folder} is full: {size:,} bytes of weights do not fit.", hint="free some space"
                ) from error
            message = f"Weights cannot be written to {self.folder}: {error}."
            raise InvalidOptions([Problem.error(OPTION, "not_writable", message, got=str(self.folder), expected="a folder")]) from error
