"""The API of LyCORIS adapter files. Each view parses the request, calls one service and builds the answer."""

from __future__ import annotations

from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response

from environments import services
from environments.api import serializers as shapes
from environments.api.schema import NAME, WITH_BODY, described
from environments.api.views import ACTOR, NAMED, ConfigurationView
from environments.errors import EnvironmentProblems
from environments.files.adapter_file import checked, find_adapter_file
from environments.home import current_home
from trainer_engine.config.families import find_spec
from trainer_engine.config.family_spec import FamilySpec

EXAMPLE = {"algo": "lokr", "multiplier": 1, "linear_dim": 16, "linear_alpha": 1, "apply_preset": {"target_module": ["Attention"]}}
ADAPTER_SHAPE = {
    "type": "object",
    "description": "The adapter file itself, or `config` with the file in it.",
    "additionalProperties": True,
    "example": EXAMPLE,
}
CHECKED_SHAPE = {
    "description": "Any JSON: the adapter file, or an object with it as `config` and a `model_family` whose class names are checked.",
    "example": EXAMPLE,
}


def document_of(data: Any) -> Any:
    """The adapter file in a body: the body itself, or its ``config``."""
    return data["config"] if isinstance(data, dict) and "config" in data else data


def spec_of(name: object) -> FamilySpec | None:
    return find_spec(str(name or ""))


class EnvironmentAdapter(ConfigurationView):
    """The adapter file of an environment whose ``lora_type`` is ``lycoris``."""

    serializer_class = shapes.AdapterSerializer

    @described("configs_lycoris_get", "Show an environment's LyCORIS file", shapes.AdapterShownSerializer, *NAMED, 422, parameters=[NAME])
    def get(self, request: Request, name: str) -> Response:
        environment = services.find(name)
        found = find_adapter_file(environment.config, name, current_home())
        if found.problem is not None:
            raise EnvironmentProblems.of([found.problem])
        validation = checked(found.document, spec_of(environment.config.get("model_family")))
        return Response(
            {"name": name, "path": found.given, "absolute_path": str(found.path), "config": found.document, "validation": validation}
        )

    @described(
        "configs_lycoris_put",
        "Replace an environment's LyCORIS file",
        shapes.AdapterWrittenSerializer,
        *WITH_BODY,
        *NAMED,
        409,
        request=ADAPTER_SHAPE,
        parameters=[NAME],
    )
    def put(self, request: Request, name: str) -> Response:
        document = document_of(request.data)
        written = services.write_adapter_file(name, document, actor=ACTOR)
        validation = checked(document, spec_of(written.environment.config.get("model_family")))
        return Response(
            {
                "message": f"LyCORIS configuration of '{name}' written",
                "path": written.environment.config["lycoris_config"],
                "absolute_path": str(written.path),
                "config": document,
                "validation": validation,
            }
        )


class AdapterValidation(ConfigurationView):
    """Checks an adapter file without storing it. With ``model_family`` next to ``config``, class names are checked too."""

    serializer_class = shapes.AdapterSerializer

    @described("configs_lycoris_validate", "Check a LyCORIS file", shapes.AdapterCheckedSerializer, *WITH_BODY, request=CHECKED_SHAPE)
    def post(self, request: Request) -> Response:
        family = request.data.get("model_family") if isinstance(request.data, dict) and "config" in request.data else None
        return Response(checked(document_of(request.data), spec_of(family)))
