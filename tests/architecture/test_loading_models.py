"""Models are loaded from safetensors alone and never run code of their own: every call of the libraries says so."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.architecture.test_shape import ROOT, modules, nodes

NEEDED = {"trust_remote_code": False, "local_files_only": True}
OF_WEIGHTS = {"use_safetensors": True}
WITHOUT_REMOTE_CODE = ("load_diffusers", "load")
"""Functions that load models of diffusers: its classes know no code of a model's own, and warn of the argument."""
WITHOUT_WEIGHTS = ("load_tokenizer",)


def calls(name: str) -> Iterator[tuple[str, str, ast.Call]]:
    """(place, function around it, call) of every call of an attribute called so."""
    for path in modules():
        for function in nodes(path):
            if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", function.name, node


def test_every_model_is_loaded_with_the_safe_arguments() -> None:
    found = list(calls("from_pretrained"))
    assert len(found) >= 4
    for place, function, call in found:
        given = {argument.arg: argument.value.value for argument in call.keywords if isinstance(argument.value, ast.Constant)}
        needed = {**NEEDED, **({} if function in WITHOUT_WEIGHTS else OF_WEIGHTS)}
        if function in WITHOUT_REMOTE_CODE:
            needed.pop("trust_remote_code")
        assert all(argument.arg is not None for argument in call.keywords), f"{place} hides its arguments"
        assert needed.items() <= given.items(), f"{place} lacks {needed.items() - given.items()}"


def test_nothing_is_unpickled() -> None:
    imported = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules()
        for node in nodes(path)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
        & {getattr(node, "module", None) or "", *(alias.name for alias in node.names)}
    ]
    loads = [
        place
        for place, _, call in calls("load")
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and call.func.value.id in ("torch", "numpy", "np")
    ]
    assert imported + loads == []
