"""``GET /api/models``: the model families and their flavours, with what each needs. Facts of the specifications alone."""

from __future__ import annotations

from functools import cache
from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec
from training.api import schema
from training.preflight.families_page import abilities, licence_of, memory_gib


class FlavourMemorySerializer(serializers.Serializer[Any]):
    """Estimated GiB a GPU for one step at the size of the weights, a batch of 1, with gradient checkpointing; null if not offered."""

    full = serializers.FloatField(allow_null=True, help_text="A full fine-tune.")
    lora = serializers.FloatField(allow_null=True, help_text="A LoRA of rank 16.")
    lora_int8 = serializers.FloatField(allow_null=True, help_text="The same on a base in int8-quanto.")
    lora_nf4 = serializers.FloatField(allow_null=True, help_text="The same on a base in nf4-bnb.")


class FlavourSerializer(serializers.Serializer[Any]):
    """Published weights of a family."""

    name = serializers.CharField()
    is_default = serializers.BooleanField()
    repository = serializers.CharField(help_text="On the hub.")
    license = serializers.CharField(allow_null=True)
    parameters = serializers.IntegerField(help_text="Of the network that is trained.")
    token_limit = serializers.IntegerField(help_text="Of a prompt.")
    memory_gib = FlavourMemorySerializer()
    takes_references = serializers.BooleanField()
    needs_references = serializers.BooleanField()
    can_do = serializers.ListField(child=serializers.CharField())


class FamilySerializer(serializers.Serializer[Any]):
    """A model family."""

    name = serializers.CharField(help_text="Value of `model_family`.")
    title = serializers.CharField()
    description = serializers.CharField()
    aliases = serializers.ListField(child=serializers.CharField())
    model_types = serializers.ListField(child=serializers.CharField())
    prediction_types = serializers.ListField(child=serializers.CharField())
    alignment_px = serializers.IntegerField(help_text="Edges of training images are multiples of this.")
    media = serializers.ListField(child=serializers.CharField(), help_text="What it trains on.")
    lora_targets = serializers.ListField(child=serializers.CharField())
    samplers = serializers.ListField(child=serializers.CharField())
    default_flavour = serializers.CharField()
    flavours = FlavourSerializer(many=True)


class ModelsSerializer(serializers.Serializer[Any]):
    """Every model family."""

    families = FamilySerializer(many=True)
    count = serializers.IntegerField()


class Models(APIView):
    """The model families that can be trained."""

    @schema.described("models", "List the model families", ModelsSerializer)
    def get(self, request: Request) -> Response:
        return Response({"families": _families(), "count": len(_families())})


@cache
def _families() -> tuple[dict[str, Any], ...]:
    return tuple(_family(spec) for spec in specs().values())


def _family(spec: FamilySpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "title": spec.title,
        "description": spec.description,
        "aliases": spec.aliases,
        "model_types": spec.model_types,
        "prediction_types": spec.prediction_types,
        "alignment_px": spec.latents.alignment_px,
        "media": spec.latents.media,
        "lora_targets": tuple(spec.adapters.lora_targets),
        "samplers": spec.sampling.samplers,
        "default_flavour": spec.default_flavour,
        "flavours": [_flavour(spec, name) for name in spec.flavours],
    }


def _flavour(spec: FamilySpec, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "is_default": name == spec.default_flavour,
        "repository": spec.flavours[name],
        "license": licence_of(spec, name),
        "parameters": spec.parameters[name],
        "token_limit": spec.tokens_of(name, None),
        "memory_gib": memory_gib(spec, name),
        "takes_references": name in spec.takes_references,
        "needs_references": name in spec.needs_references,
        "can_do": tuple(abilities(spec, name)),
    }
