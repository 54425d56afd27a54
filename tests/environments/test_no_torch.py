"""What to train is known without the machinery that trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LOOK = """
import sys
import django
django.setup()
from django.urls import get_resolver
import environments.admin.environment, environments.urls, environments.resolve.run, environments.services
print(sorted(name for name in ("torch", "diffusers", "transformers", "accelerate", "numpy") if name in sys.modules))
"""
ALONE = """
import sys
import environments.resolve.run
print(sorted(name for name in ("torch", "django", "rest_framework") if name in sys.modules))
"""


def loaded(script: str, home: Path) -> str:
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": os.environ.get("DJANGO_SETTINGS_MODULE", "simpletuner_site.settings"),
        "SIMPLETUNER_HOME": str(home),
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def test_the_web_part_loads_no_machine_learning(tmp_path: Path) -> None:
    assert loaded(LOOK, tmp_path) == "[]"


def test_resolving_a_run_needs_no_django(tmp_path: Path) -> None:
    assert loaded(ALONE, tmp_path) == "[]"
