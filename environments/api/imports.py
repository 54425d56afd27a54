"""``/api/configs/import``: a configuration of this trainer or of another one becomes an environment. Nothing that it names is opened."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from environments import services
from environments.api import schema
from environments.api.compatibility import JsonOrFile
from environments.api.schema import described
from environments.api.serializers import CreatedSerializer, Name, Sent, Text
from environments.api.views import ACTOR, ConfigurationView, created
from environments.create.names import name_problem
from environments.errors import EnvironmentProblems
from environments.home import current_home
from environments.imports.documents import LARGEST_BYTES, MOST_DOCUMENTS, Document, ImportRefused, parse_document
from environments.imports.formats import FORMATS, translate


@extend_schema_field({"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": MOST_DOCUMENTS}]})
class Texts(serializers.Field[list[str], Any, list[str], Any]):
    """One text or a list of texts."""

    default_error_messages = {"invalid": "This is neither text nor a list of texts.", "too_many": "More texts than an import has files."}

    def to_internal_value(self, data: Any) -> list[str]:
        texts = [data] if isinstance(data, str) else data
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            self.fail("invalid")
        if len(texts) > MOST_DOCUMENTS:
            self.fail("too_many")
        return texts

    def to_representation(self, value: list[str]) -> list[str]:
        return value


@extend_schema_field({"oneOf": [{"type": "object", "additionalProperties": True}, {"type": "array", "items": {}}]})
class SentDocument(JsonOrFile):
    """A configuration or its datasets, as JSON."""


class ImportRequest(Sent):
    """A configuration of any of the formats, as JSON, as text, or as files of a form."""

    name = Name(help_text="Name of the new environment.")
    format = Text(
        required=False, allow_null=True, allow_blank=True, max_length=100, help_text=f"One of {', '.join(FORMATS)}; else recognised."
    )
    model_family = Text(
        required=False, allow_null=True, allow_blank=True, max_length=100, help_text="Family of the model, if the file does not name it."
    )
    config = SentDocument(required=False, help_text="A configuration, for example an exported one.")
    datasets = SentDocument(required=False, help_text="Its datasets, if they are in a file of their own.")
    text = Texts(required=False, help_text="The text of one file, or of several: YAML, TOML or JSON.")
    file = serializers.ListField(
        child=serializers.FileField(max_length=255), required=False, max_length=MOST_DOCUMENTS, help_text="The files, in a form."
    )


class LeftOutSerializer(serializers.Serializer[Any]):
    """One value that the environment does not have."""

    name = serializers.CharField(help_text="Path in the file.")
    value = serializers.CharField(allow_blank=True, help_text="As it stands there, shortened; *** for a secret.")
    reason = serializers.CharField()


class ImportedSerializer(CreatedSerializer):
    """The new environment, and what was left out."""

    format = serializers.ChoiceField(choices=list(FORMATS))
    left_out = LeftOutSerializer(many=True)


class Import(ConfigurationView):
    """Creates an environment from a configuration file."""

    serializer_class = ImportRequest

    @described("configs_import", "Import a configuration", ImportedSerializer, *schema.WITH_BODY, 409, request=ImportRequest)
    def post(self, request: Request) -> Response:
        sent = self.sent(request)
        home = current_home()
        if problem := name_problem(sent["name"]):
            raise EnvironmentProblems.of([problem])
        try:
            imported = translate(
                _documents(sent),
                name=sent["name"],
                home=home,
                format_name=sent.get("format") or None,
                family=sent.get("model_family") or None,
            )
        except ImportRefused as refusal:
            raise EnvironmentProblems.of(refusal.problems) from refusal
        environment = services.import_environment(imported, actor=ACTOR)
        made = created(environment, f"Environment '{environment.name}' imported from {imported.format}")
        return Response({**made, "format": imported.format, "left_out": [one.as_dict() for one in imported.left_out]})


def _documents(sent: dict[str, Any]) -> list[Document]:
    """Every document of a request. Raises ImportRefused."""
    documents = [Document(field, sent[field]) for field in ("config", "datasets") if isinstance(sent.get(field), (dict, list))]
    texts = sent.get("text") or []
    documents += [parse_document(text, f"text[{number}]" if number else "text") for number, text in enumerate(texts)]
    for upload in sent.get("file") or []:
        documents.append(parse_document(upload.read(LARGEST_BYTES + 1), str(upload.name)[:200]))
    return documents
