"""Finds the class of a family in its folder."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

from trainer_engine.config.families import find_spec
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.families.base import Family
from trainer_engine.runtime.devices import Devices


def load_family(options: TrainingOptions, devices: Devices) -> Family:
    """The family that ``model_family`` names. Raises ModelUnavailable where there is none."""
    spec = find_spec(options.model.model_family)
    if spec is None:
        raise ModelUnavailable(f"There is no model family {options.model.model_family!r}.", hint="see docs/options.md, model_family")
    module = importlib.import_module(f"trainer_engine.families.{spec.name}.family")
    return family_class(spec, module)(options, devices)


def family_class(spec: FamilySpec, module: ModuleType) -> type[Family]:
    """The class in the ``family.py`` of a family. Raises ModelUnavailable if it does not implement the whole interface."""
    found = getattr(module, "FAMILY", None)
    if not (isinstance(found, type) and issubclass(found, Family)):
        problem = f"its family.py has no FAMILY that is a subclass of Family, but {found!r}"
    elif inspect.isabstract(found):
        problem = f"{found.__name__} does not implement {', '.join(sorted(found.__abstractmethods__))}"
    elif getattr(found, "spec", None) is not spec:
        problem = f"{found.__name__}.spec is not the SPEC of its spec.py"
    else:
        return found
    raise ModelUnavailable(f"The model family {spec.name!r} is not complete: {problem}.", hint="docs/new-family.md describes the interface")
