"""``/api/options/compatibility``: what of any configuration of the format is accepted. Nothing is stored, no path is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.core.files.uploadedfile import UploadedFile
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils import html

from environments.api import schema
from environments.api.parsers import LARGEST_BYTES
from environments.api.schema import described
from environments.api.serializers import ProblemSerializer, Sent
from environments.api.views import ConfigurationView
from environments.files.config_files import unwrapped, without_marks
from environments.files.datasets_file import unwrapped_datasets
from environments.files.json_text import BadJson, parse_json
from trainer_engine.config.compatibility import RANKS, check_compatibility
from trainer_engine.config.families import specs
from trainer_engine.config.options import not_available
from trainer_engine.config.options.hints import HINTS
from trainer_engine.config.options.refused import Reason, refusal_of


class JsonOrFile(serializers.JSONField):
    """A value of a JSON body; in a form JSON text, or an uploaded file."""

    default_error_messages = {"bad_json": "{reason}.", "too_large": "The file is larger than 1 MiB."}

    def get_value(self, dictionary: Any) -> Any:
        """The value as it was sent; the base class makes a text of each field of a form, also of a file."""
        value = dictionary.get(self.field_name, serializers.empty)
        return Sheet(value) if html.is_html_input(dictionary) and value is not serializers.empty else value

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, Sheet):
            return data
        if isinstance(data.sent, UploadedFile) and (data.sent.size or 0) > LARGEST_BYTES:
            self.fail("too_large")
        try:
            return parse_json(data.sent.read() if isinstance(data.sent, UploadedFile) else data.sent)
        except BadJson as error:
            self.fail("bad_json", reason=f"It is {error}" if str(error).startswith("not") else str(error))


@dataclass(frozen=True)
class Sheet:
    """A field of a form, which holds JSON."""

    sent: Any
    """The text, or the uploaded file."""


@extend_schema_field({"type": "object", "additionalProperties": True})
class SentConfig(JsonOrFile):
    """The options of a configuration."""


@extend_schema_field({"type": "array", "items": {}})
class SentDatasets(JsonOrFile):
    """The entries of a datasets file."""


class CompatibilityRequest(Sent):
    """A configuration of the format, and optionally its datasets file."""

    config = SentConfig(
        help_text="--option: value; names with or without dashes. In a form: JSON text or a file.",
        style={"base_template": "textarea.html", "rows": 16},
    )
    datasets = SentDatasets(
        required=False,
        allow_null=True,
        help_text="The content of its datasets file: a list.",
        style={"base_template": "textarea.html", "rows": 12},
    )

    def validate_config(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise serializers.ValidationError("The configuration is not an object of option: value.", code="not_an_object")
        return without_marks(unwrapped(value))

    def validate_datasets(self, value: Any) -> Any:
        entries = unwrapped_datasets(value)
        if entries is not None and not isinstance(entries, list):
            raise serializers.ValidationError("The datasets are not a list.", code="not_a_list")
        return entries


class FamilyAvailabilitySerializer(serializers.Serializer[Any]):
    """The model family of the configuration."""

    name = serializers.CharField(allow_blank=True)
    available = serializers.BooleanField()


class ObstacleSerializer(ProblemSerializer):
    """One thing that stands in the way, and of which kind it is."""

    reason = serializers.ChoiceField(choices=RANKS)


class CompatibilitySerializer(serializers.Serializer[Any]):
    """What stands in the way of a configuration, ranked: first what a change of the configuration helps least."""

    starts = serializers.BooleanField(help_text="Whether nothing in the configuration itself stands in the way.")
    family = FamilyAvailabilitySerializer()
    options = serializers.IntegerField()
    datasets = serializers.IntegerField(allow_null=True, help_text="Datasets in the file; null if none was sent.")
    obstacles = ObstacleSerializer(many=True)
    notes = ProblemSerializer(many=True)


class RefusedOptionSerializer(serializers.Serializer[Any]):
    """One option of the format that is refused."""

    option = serializers.CharField()
    reason = serializers.ChoiceField(choices=[reason.value for reason in Reason])
    about = serializers.CharField()


class UnneededOptionSerializer(serializers.Serializer[Any]):
    """One option of the format that is accepted without an effect."""

    option = serializers.CharField()
    why = serializers.CharField()


class RefusedOptionsSerializer(serializers.Serializer[Any]):
    """What of the format is not implemented."""

    families = serializers.ListField(child=serializers.CharField(), help_text="Families that are implemented.")
    refused = RefusedOptionSerializer(many=True)
    not_needed = UnneededOptionSerializer(many=True)


class Compatibility(ConfigurationView):
    """What of the configuration format is accepted."""

    serializer_class = CompatibilityRequest

    @described("options_refused", "List options of the format that are refused", RefusedOptionsSerializer)
    def get(self, request: Request) -> Response:
        refused = [(name, refusal_of(name)) for name in not_available() if name not in HINTS]
        return Response(
            {
                "families": sorted(specs()),
                "refused": [{"option": name, "reason": refusal.reason.value, "about": refusal.about} for name, refusal in refused],
                "not_needed": [{"option": name, "why": why} for name, why in HINTS.items()],
            }
        )

    @described(
        "options_compatibility",
        "Check any configuration of the format",
        CompatibilitySerializer,
        *schema.WITH_BODY,
        request=CompatibilityRequest,
    )
    def post(self, request: Request) -> Response:
        sent = self.sent(request)
        return Response(check_compatibility(sent["config"], sent.get("datasets")).as_dict())
