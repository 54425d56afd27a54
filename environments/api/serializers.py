"""The shapes of requests and answers, for DRF and the OpenAPI schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from environments.create.names import LONGEST, SCHEMA_PATTERN

LONGEST_TEXT = 4000
MOST_TAGS = 64


class Text(serializers.CharField):
    """A text field that refuses other JSON types, such as numbers."""

    default_error_messages = {"invalid": "This is not text."}

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return str(super().to_internal_value(data))


class Flag(serializers.BooleanField):
    """true or false, as JSON or as the text of a form. No number stands for one of them."""

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, bool | str):
            self.fail("invalid", input=data)
        return super().to_internal_value(data)


@extend_schema_field({"type": "string", "pattern": SCHEMA_PATTERN, "minLength": 1, "maxLength": LONGEST})
class Name(Text):
    """A new environment's name; its rule is ``names.name_problem``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=200, **kwargs)


class Sent(serializers.Serializer[Any]):
    """A body with known fields only, with or without leading dashes; any other field is a problem."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping) and any(str(key).startswith("--") for key in data):
            data = {str(key).removeprefix("--"): data[key] for key in data}
        marks = {key for key in data if str(key).startswith("__")} if isinstance(data, Mapping) else set()
        unknown = {str(key) for key in data} - set(self.fields) - marks - {"csrfmiddlewaretoken"} if isinstance(data, Mapping) else set()
        errors: dict[str, Any] = {
            name[:100]: [serializers.ErrorDetail("There is no field with this name.", code="unknown_field")] for name in sorted(unknown)
        }
        try:
            values = super().to_internal_value(data)
        except serializers.ValidationError as error:
            if not isinstance(error.detail, dict):
                raise
            errors |= error.detail
        if errors:
            raise serializers.ValidationError(errors)
        return values


class ConfigField(serializers.DictField):
    """``--option``: typed value."""


class CreateEnvironmentSerializer(Sent):
    """A new environment."""

    name = Name(help_text=f"1 to {LONGEST} letters, digits, dots, dashes and underscores.")
    model_family = Text(required=False, max_length=100, help_text="Family of the base model; may come from the example.")
    model_flavour = Text(required=False, allow_null=True, allow_blank=True, max_length=200, help_text="Named weights of the family.")
    model_type = Text(required=False, allow_null=True, allow_blank=True, max_length=100, help_text="full or lora; lora if nothing is sent.")
    lora_type = Text(required=False, allow_null=True, allow_blank=True, max_length=100, help_text="standard or lycoris, for lora.")
    description = Text(required=False, allow_null=True, allow_blank=True, max_length=LONGEST_TEXT)
    example = Text(required=False, allow_null=True, allow_blank=True, max_length=200, help_text="A shipped template to start from.")
    dataloader_path = Text(
        required=False,
        allow_null=True,
        allow_blank=True,
        max_length=LONGEST_TEXT,
        help_text="Datasets file; NAME/multidatabackend.json if nothing is sent.",
    )
    create_dataloader = Flag(required=False, default=True, initial=True, help_text="Whether to write a starter datasets file.")
    images = Text(
        required=False,
        allow_null=True,
        allow_blank=True,
        max_length=LONGEST_TEXT,
        help_text="An existing folder of images to train on. Text files beside them are their captions.",
    )
    trigger_word = Text(
        required=False,
        allow_null=True,
        allow_blank=True,
        max_length=200,
        help_text="A word that stands in each caption, and is the caption of images without text files.",
    )
    options = ConfigField(required=False, default=dict, help_text="Options that are laid over the example: `--option`: value.")


@extend_schema_field({"type": "object", "additionalProperties": True, "example": {"--max_train_steps": 200, "--num_train_epochs": 0}})
class WholeConfig(serializers.JSONField):
    """``--option``: value, as an object of JSON."""


class UpdateEnvironmentSerializer(Sent):
    """The configuration that replaces the stored one."""

    name = Text(required=False, max_length=200, help_text="The name in the address, if sent.")
    config = WholeConfig(help_text="--option: value; names with or without dashes.", style={"base_template": "textarea.html", "rows": 16})
    description = Text(required=False, allow_null=True, allow_blank=True, max_length=LONGEST_TEXT)
    tags = serializers.ListField(child=Text(max_length=100), required=False, allow_null=True, max_length=MOST_TAGS)

    def to_internal_value(self, data: Any) -> Any:
        """Ignore the metadata of an export: the address names the environment."""
        if isinstance(data, dict) and "_metadata" in data:
            data = {name: value for name, value in data.items() if name != "_metadata"}
        return super().to_internal_value(data)

    def validate_config(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise serializers.ValidationError("The configuration is not an object of option: value.", code="not_an_object")
        return value


class NewConfigurationSerializer(UpdateEnvironmentSerializer):
    """A new environment with its configuration."""

    name = Name(help_text=f"1 to {LONGEST} letters, digits, dots, dashes and underscores.")


class RegenerateDataloaderSerializer(Sent):
    """Which datasets file to generate, and how."""

    path = Text(
        required=False, allow_null=True, allow_blank=True, max_length=LONGEST_TEXT, help_text="Empty: the one the environment names."
    )
    include_defaults = Flag(required=False, default=True, initial=True, help_text="Whether to write out sizes, cropping and cache folders.")


class ProblemSerializer(serializers.Serializer[Any]):
    """One problem and how to fix it."""

    option = serializers.CharField()
    code = serializers.CharField()
    message = serializers.CharField()
    got = serializers.CharField(allow_blank=True)
    expected = serializers.CharField(allow_blank=True)
    hint = serializers.CharField(allow_blank=True)


class ErrorSerializer(serializers.Serializer[Any]):
    """Why a request was refused."""

    detail = serializers.CharField()
    problems = ProblemSerializer(many=True)


class MessageSerializer(serializers.Serializer[Any]):
    """What was done."""

    message = serializers.CharField()


class MetaSerializer(serializers.Serializer[Any]):
    """The metadata of an environment."""

    name = serializers.CharField()
    description = serializers.CharField(allow_blank=True)
    model_family = serializers.CharField(allow_null=True)
    model_type = serializers.CharField(allow_null=True)
    model_flavour = serializers.CharField(allow_null=True)
    lora_type = serializers.CharField(allow_null=True)
    created_at = serializers.DateTimeField()
    modified_at = serializers.DateTimeField()
    tags = serializers.ListField(child=serializers.CharField())
    is_template = serializers.BooleanField()
    parent_template = serializers.CharField(allow_null=True)


class ListedSerializer(MetaSerializer):
    """An environment as a row of the list."""

    dataloader_path = serializers.CharField(allow_null=True)
    data_backend_config = serializers.CharField(allow_null=True)
    has_dataloader = serializers.BooleanField()


class ListSerializer(serializers.Serializer[Any]):
    """Every configuration of one type."""

    configs = ListedSerializer(many=True)
    active = serializers.CharField(allow_null=True)
    count = serializers.IntegerField()
    config_type = serializers.CharField()


class EnvironmentSerializer(serializers.Serializer[Any]):
    """One environment."""

    name = serializers.CharField()
    config = ConfigField()
    metadata = MetaSerializer()
    config_type = serializers.CharField()
    problems = ProblemSerializer(
        many=True, required=False, help_text="Why config.json, edited by hand, cannot be used; config is then the last usable one."
    )


class ActiveSerializer(serializers.Serializer[Any]):
    """The environment that runs start from; nulls if there is none."""

    name = serializers.CharField(allow_null=True)
    config = ConfigField(allow_null=True)
    metadata = MetaSerializer(allow_null=True)


class DatasetsFileSerializer(serializers.Serializer[Any]):
    """The path of the datasets file."""

    path = serializers.CharField(allow_null=True)
    absolute_path = serializers.CharField(allow_null=True)


class RegeneratedFileSerializer(DatasetsFileSerializer):
    """The new datasets file, and the copy of the old one."""

    previous = serializers.CharField(allow_null=True)


class CreatedMetaSerializer(MetaSerializer):
    """A new environment and its folder."""

    path = serializers.CharField()


class CreatedSerializer(MessageSerializer):
    """The new environment and its files."""

    environment = CreatedMetaSerializer()
    config = ConfigField()
    dataloader = DatasetsFileSerializer()


class AdviceSerializer(serializers.Serializer[Any]):
    """Problems that would keep a run from starting, and suggestions."""

    warnings = serializers.ListField(child=serializers.CharField())
    suggestions = serializers.ListField(child=serializers.CharField())


class UpdatedSerializer(MessageSerializer):
    """The stored environment."""

    metadata = MetaSerializer()
    validation = AdviceSerializer()


class ActivatedSerializer(MessageSerializer):
    """The name that is active now."""

    active = serializers.CharField()


class RegeneratedSerializer(MessageSerializer):
    """The generated datasets file."""

    environment = MetaSerializer()
    dataloader = RegeneratedFileSerializer()


class ExampleDefaultsSerializer(serializers.Serializer[Any]):
    """The main options of a template."""

    model_family = serializers.CharField()
    model_type = serializers.CharField()
    model_flavour = serializers.CharField(allow_null=True)
    lora_type = serializers.CharField(allow_null=True)
    data_backend_config = serializers.CharField()


class ExampleSerializer(serializers.Serializer[Any]):
    """One shipped template."""

    name = serializers.CharField()
    defaults = ExampleDefaultsSerializer()
    description = serializers.CharField()
    config_path = serializers.CharField()
    dataloader_path = serializers.CharField(allow_null=True)
    has_dataloader = serializers.BooleanField()


class ExamplesSerializer(serializers.Serializer[Any]):
    """The shipped templates."""

    examples = ExampleSerializer(many=True)
    count = serializers.IntegerField()


class AdapterSerializer(serializers.Serializer[Any]):
    """An adapter file of LyCORIS: ``config`` may also be sent as the body itself."""

    config = serializers.JSONField(
        help_text='The file: {"algo": "lokr", "multiplier": 1.0, "linear_dim": 10000, "linear_alpha": 1, ...}',
        style={"base_template": "textarea.html", "rows": 16},
    )
    model_family = serializers.CharField(required=False, help_text="For a check: the family whose class names the file uses.")


class AdapterCheckedSerializer(serializers.Serializer[Any]):
    """Whether an adapter file can be used, and what is wrong with it."""

    valid = serializers.BooleanField()
    errors = serializers.ListField(child=serializers.CharField())  # type: ignore[assignment]
    warnings = serializers.ListField(child=serializers.CharField())
    problems = ProblemSerializer(many=True)


class AdapterFileSerializer(serializers.Serializer[Any]):
    """A stored adapter file."""

    path = serializers.CharField(help_text="As the configuration names it.")
    absolute_path = serializers.CharField()
    config = serializers.JSONField()
    validation = AdapterCheckedSerializer()


class AdapterShownSerializer(AdapterFileSerializer):
    """The adapter file of an environment."""

    name = serializers.CharField()


class AdapterWrittenSerializer(AdapterFileSerializer):
    """The adapter file that was written."""

    message = serializers.CharField()
