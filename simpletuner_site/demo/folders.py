"""The folders of the demo, all below one folder that git ignores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

REPOSITORY = "terminusresearch/pixart-900m-1024-ft-v0.6"
ENVIRONMENT = "pixart-demo"
PROMPTS_FILE = "user_prompt_library.json"


@dataclass(frozen=True)
class DemoFolders:
    """The folders of one demo."""

    root: Path
    """The server's home with ``config/`` and ``state/``; a server may use everything in its home."""

    @property
    def pictures(self) -> Path:
        return self.root / "pictures"

    @property
    def model(self) -> Path:
        """The small base model."""
        return self.root / "base-model"

    @property
    def hub(self) -> Path:
        """A Hugging Face cache that holds the small model under the real repository's id."""
        return self.root / "huggingface"

    @property
    def output(self) -> Path:
        """Checkpoints, validation images and the trained pipeline."""
        return self.root / "output"

    @property
    def caches(self) -> Path:
        return self.root / "caches"

    @property
    def grid(self) -> Path:
        """Every validation image in one image."""
        return self.root / "grid.png"

    @property
    def curves(self) -> Path:
        """Loss and learning rate."""
        return self.root / "curves.svg"

    @property
    def server_log(self) -> Path:
        return self.root / "server.log"
