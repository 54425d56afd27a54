"""The adapter files of LyCORIS over HTTP: each view parses, calls one service, answers."""

from __future__ import annotations

from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response

from environments import serializers as shapes
from environments import services
from environments.adapter_file import checked, find_adapter_file
from environments.errors import EnvironmentProblems
from environments.home import current_home
from environments.schema import described
from environments.views import ACTOR, ConfigurationView
from trainer_engine.contract.families import FamilyCard, find_card


def document_of(data: Any) -> Any:
    """The adapter file in a body: the body itself, or what it holds as ``config``."""
    return data["config"] if isinstance(data, dict) and "config" in data else data


def card_of(name: object) -> FamilyCard | None:
    return find_card(str(name or ""))


class EnvironmentAdapter(ConfigurationView):
    """The adapter file of an environment whose ``lora_type`` is ``lycoris``."""

    serializer_class = shapes.AdapterSerializer

    @described("configs_lycoris_get", "Show an environment's LyCORIS file", shapes.AdapterShownSerializer, 404, 422)
    def get(self, request: Request, name: str) -> Response:
        environment = services.find(name)
        found = find_adapter_file(environment.config, name, current_home())
        if found.problem is not None:
            raise EnvironmentProblems.of([found.problem])
        said = checked(found.document, card_of(environment.config.get("model_family")))
        return Response({"name": name, "path": found.given, "absolute_path": str(found.path), "config": found.document, "validation": said})

    @described(
        "configs_lycoris_put",
        "Replace an environment's LyCORIS file",
        shapes.AdapterWrittenSerializer,
        400,
        404,
        409,
        413,
        415,
        422,
        request=shapes.AdapterSerializer,
    )
    def put(self, request: Request, name: str) -> Response:
        document = document_of(request.data)
        written = services.write_adapter_file(name, document, actor=ACTOR)
        said = checked(document, card_of(written.environment.config.get("model_family")))
        return Response(
            {
                "message": f"LyCORIS configuration of '{name}' written",
                "path": written.environment.config["lycoris_config"],
                "absolute_path": str(written.path),
                "config": document,
                "validation": said,
            }
        )


class AdapterValidation(ConfigurationView):
    """Whether an adapter file is right, without storing it; ``model_family`` beside ``config`` checks class names too."""

    serializer_class = shapes.AdapterSerializer

    @described(
        "configs_lycoris_validate", "Check a LyCORIS file", shapes.AdapterCheckedSerializer, 400, 413, 415, request=shapes.AdapterSerializer
    )
    def post(self, request: Request) -> Response:
        family = request.data.get("model_family") if isinstance(request.data, dict) and "config" in request.data else None
        return Response(checked(document_of(request.data), card_of(family)))
