"""The linters that people put an OpenAPI schema through find nothing, with the rules that they have by themselves."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from drf_spectacular.generators import SchemaGenerator

REDOCLY, SPECTRAL = "@redocly/cli@2.77.0", "@stoplight/spectral-cli@6.16.3"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("npx") is None, reason="npx is not installed")]


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "openapi.json"
    path.write_text(json.dumps(SchemaGenerator().get_schema(request=None, public=True)))
    return path


def lint(schema: Path, package: str, *arguments: str) -> Any:
    """What a linter prints as JSON. Skips the test if npm's registry cannot be reached."""
    command = ["npx", "--yes", package, "lint", *arguments, schema.name]
    found = subprocess.run(command, cwd=schema.parent, capture_output=True, text=True, timeout=300, check=False)
    if "npm error" in found.stderr:
        pytest.skip(f"{package} cannot be fetched")
    return json.JSONDecoder().raw_decode(found.stdout)[0]  # spectral writes a sentence after it


def test_redocly_reports_nothing(schema: Path) -> None:
    assert lint(schema, REDOCLY, "--format=json")["problems"] == []


def test_spectral_reports_nothing(schema: Path) -> None:
    (schema.parent / "rules.json").write_text('{"extends": ["spectral:oas"]}')
    assert lint(schema, SPECTRAL, "--ruleset", "rules.json", "--format=json", "--fail-severity=hint") == []
