"""An incomplete family folder is named together with what it lacks."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest

from trainer_engine.config.family_problems import all_family_problems

NUMBERS = count()
SPEC = """from trainer_engine.config.family_parts import ClipSpec, Component, LatentSpec, PromptSpec, Role, SamplingSpec
from trainer_engine.config.family_spec import FamilySpec
SPEC = FamilySpec(
    name="made_up", title="Made up", description="", flavours={"one": "a/b"}, default_flavour="one", model_types=("lora",),
    objective="epsilon", components={"unet": Component("unet", "unet.", Role.TRAINED)},
    prompts=PromptSpec(text_encoders=("CLIP",), token_limit=77), latents=LatentSpec(channels=4, scale_factor_px=8, alignment_px=64),
    sampling=SamplingSpec(clips=None),
)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    name = f"families_of_test_{next(NUMBERS)}"
    folder = tmp_path / name / "made_up"
    folder.mkdir(parents=True)
    (tmp_path / name / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "family.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module(name)
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def write(package: ModuleType, spec: str) -> None:
    (Path(package.__path__[0]) / "made_up" / "spec.py").write_text(spec)


def test_the_families_here_are_complete() -> None:
    assert all_family_problems() == {}


def test_a_complete_folder_has_no_problems(package: ModuleType) -> None:
    write(package, SPEC)
    assert all_family_problems(package) == {}


def test_a_folder_of_a_family_with_clips_has_no_problems(package: ModuleType) -> None:
    write(package, SPEC.replace("clips=None", "clips=ClipSpec(stride=4, trained_frames=81, frames_per_second=16)"))
    assert all_family_problems(package) == {}


def test_a_missing_spec_and_a_missing_class_are_both_named(package: ModuleType) -> None:
    (Path(package.__path__[0]) / "made_up" / "family.py").unlink()
    found = all_family_problems(package)
    assert found == {"made_up": ["It has no spec.py, which defines SPEC.", "It has no family.py, which defines FAMILY."]}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("SPEC =", "OTHER =", "no SPEC of the class FamilySpec"),
        ("title=", "headline=", "cannot be imported: FamilySpec.__init__() got an unexpected keyword argument 'headline'"),
        ('objective="epsilon", ', "", "missing 1 required keyword-only argument: 'objective'"),
        ('("lora",)', '"lora"', "SPEC.model_types is 'lora', expected tuple[str, ...]"),
        ("token_limit=77", "token_limit='77'", "SPEC.prompts.token_limit is '77', expected int"),
        ("Role.TRAINED", "'trained'", "SPEC.components['unet'].role is 'trained', expected Role"),
        ("Role.TRAINED", "Role.FROZEN", "no component with the role trained"),
        ('{"one": "a/b"}', '{"one": 1}', "SPEC.flavours is {'one': 1}, expected Mapping[str, str]"),
        ('default_flavour="one"', 'default_flavour="two"', "expected one of the flavours"),
        ('name="made_up"', 'name="other"', "expected the name of the folder"),
        ("clips=None", "clips=4", "SPEC.sampling.clips is 4, expected trainer_engine.config.family_parts.ClipSpec | None"),
        ("clips=None", "clips=ClipSpec(stride='4', trained_frames=81, frames_per_second=16)", "clips.stride is '4', expected int"),
        ('("CLIP",)', "()", "another number of text_encoders"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_field_and_what_is_expected(package: ModuleType, old: str, new: str, message: str) -> None:
    assert old in SPEC
    write(package, SPEC.replace(old, new))
    (problem,) = all_family_problems(package)["made_up"]
    assert message in problem
