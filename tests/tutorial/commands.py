"""The commands of the tutorial and of the README, run as a person runs them: in a shell, with curl and jq."""

from __future__ import annotations

import re
import subprocess
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
README = ROOT / "README.md"
LORA = ROOT / "docs" / "lora.md"
CLIENTS = ROOT / "docs" / "clients.md"


def blocks(heading: str, page: Path = TUTORIAL, *, language: str = "bash") -> list[str]:
    """The blocks of shell commands (or of another language) of a page below a heading, down to the next heading of any level."""
    found: dict[str, list[str]] = {}
    title, block = "", None
    for line in page.read_text(encoding="utf-8").splitlines():
        if block is None and line.startswith("#"):
            title = line.lstrip("# ")
            found[title] = []
        elif block is None and line.strip() == f"```{language}":
            block = []
        elif block is not None and line.strip() == "```":
            found[title].append(textwrap.dedent("\n".join(block)) + "\n")
            block = None
        elif block is not None:
            block.append(line)
    assert heading in found, f"{heading!r} is not a heading of {page.name}"
    return found[heading]


@dataclass(frozen=True)
class Shell:
    """A terminal in the folder where the server was started. ``changes`` are the only differences from the page."""

    folder: Path
    changes: Mapping[str, str]

    def type(self, block: str) -> str:
        """Run one block; what it prints. A command of it that fails fails the test."""
        pattern = "|".join(re.escape(old) for old in self.changes)
        block = re.sub(pattern, lambda found: self.changes[found[0]], block)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block], cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}\n{done.stdout}"
        return done.stdout
