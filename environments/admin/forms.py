"""The admin's forms: one field per option, derived from the registry, with problems shown at the field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from django import forms
from django.utils.html import escape, format_html, format_html_join
from django.utils.safestring import SafeString

from environments.admin.seen_fields import SeenField, versions_of
from environments.create.names import name_problem
from environments.create.plan import NewEnvironment, plan
from environments.examples import shipped_examples
from environments.files.datasets_file import locate
from environments.files.json_text import BadJson, parse_json
from environments.home import current_home
from environments.models import Environment
from environments.resolve.checks import check_config, effective_defaults
from environments.resolve.run import resolve_run
from environments.seen import Seen
from environments.sync import shown_datasets
from trainer_engine.config.families import specs
from trainer_engine.config.options import GROUPS, REGISTRY, OptionSpec
from trainer_engine.config.secrets import hide
from trainer_engine.contract.errors import Level, Problem, limited

if TYPE_CHECKING:
    ModelForm = forms.ModelForm[Environment]
else:
    ModelForm = forms.ModelForm

PREFIX = "option_"
DATASETS = "datasets_text"
EMPTY_TEXT = '""'
"""Input for an empty text, because an empty field means the default."""


USUAL = MappingProxyType({"optimizer": ("adamw_bf16", "bnb-adamw8bit", "prodigy", "torch-adafactor", "torch-adamw", "optimi-lion")})
"""Choices that most people take, of options with many. Forms list them first."""
FAMILY, FLAVOUR = "model_family", "model_flavour"


class SecretInput(forms.TextInput):
    """Never shows a secret, not even in a form that is shown again because of problems."""

    def __init__(self, spec: OptionSpec, attrs: dict[str, Any]) -> None:
        super().__init__(attrs)
        self.spec = spec

    def format_value(self, value: Any) -> str | None:
        return hide(self.spec, value) if value else None


def option_field(spec: OptionSpec) -> forms.Field:
    """The form field of an option. An empty field means that the option is not set and the default applies."""
    default = default_in_words(spec, spec.default)
    # The admin does not escape help texts, and they contain <output_dir>.
    label, help_text = spec.name, escape(spec.help)
    if choices_of(spec):
        return forms.ChoiceField(required=False, choices=listed_choices(spec, default), label=label, help_text=help_text)
    if spec.name in (FAMILY, FLAVOUR):  # the form fills in their choices
        return forms.ChoiceField(required=False, label=label, help_text=help_text)
    attributes = {"placeholder": default, "class": "vTextField"}
    widget = SecretInput(spec, attrs=attributes) if spec.secret else forms.TextInput(attrs=attributes)
    return forms.CharField(required=False, strip=False, label=label, help_text=help_text, widget=widget)


def choices_of(spec: OptionSpec) -> Sequence[str]:
    """The choices of an option; empty for one that is typed in."""
    return ("true", "false") if spec.kind == "bool" else spec.choices


def listed_choices(spec: OptionSpec, default: str) -> list[Any]:
    """The choices of a field, with the default for an empty one first; the usual ones before the others where there are many."""
    words, usual = choices_of(spec), USUAL.get(spec.name, ())
    if not usual:
        return [("", f"— {default}"), *((word, word) for word in words)]
    groups = (("Usual", usual), ("Others", tuple(word for word in words if word not in usual)))
    return [("", f"— {default}"), *((name, [(word, word) for word in group]) for name, group in groups)]


def model_choices(config: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The families, and the flavours under their families, that of a configuration first. What is stored is a choice, too."""
    family, flavour = str(config.get(FAMILY) or ""), str(config.get(FLAVOUR) or "")
    known = sorted(specs().values(), key=lambda spec: spec.name != family)
    families = [(spec.name, f"{spec.name} · {spec.title}") for spec in specs().values()]
    flavours: list[Any] = [(spec.title, [(name, name) for name in spec.flavours]) for spec in known]
    return {
        FAMILY: [*families, *([(family, family)] if family and family not in specs() else [])],
        FLAVOUR: [*flavours, *([(flavour, flavour)] if flavour and not any(flavour in spec.flavours for spec in known) else [])],
    }


def default_in_words(spec: OptionSpec, default: Any) -> str:
    """The text of an empty field."""
    if spec.required:
        return "must be given"
    return "default: none" if default in (None, "") else f"default: {text_of(default)}"


def text_of(value: Any) -> str:
    """A value as it is typed in."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return ",".join(f"{key}={text_of(item)}" for key, item in value.items())
    return EMPTY_TEXT if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


class NewEnvironmentForm(ModelForm):
    """The form of a new environment."""

    model_family = forms.ChoiceField(required=False, help_text="Family of the base model; may come from the example.")
    model_flavour = forms.ChoiceField(required=False, help_text="Named weights of the family.")
    model_type = forms.ChoiceField(required=False, help_text="lora: a small adapter. full: every weight of the model.")
    lora_type = forms.ChoiceField(required=False, help_text="standard: LoRA. lycoris: LoKr, LoHa and others, set up in an adapter file.")
    example = forms.ChoiceField(required=False, help_text="A shipped template to start from.")

    class Meta:
        model = Environment
        fields = ("name", "description")
        widgets = {"description": forms.TextInput(attrs={"class": "vTextField"})}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        flavours = [(family_spec.title, [(flavour, flavour) for flavour in family_spec.flavours]) for family_spec in specs().values()]
        types = sorted({model_type for family_spec in specs().values() for model_type in family_spec.model_types})
        self._choose("model_family", [(family_spec.name, family_spec.title) for family_spec in specs().values()])
        self._choose("model_flavour", flavours)
        self._choose("model_type", [(word, word) for word in types], empty="— the example's, else lora")
        self._choose("lora_type", [(word, word) for word in REGISTRY["lora_type"].choices], empty="— the example's, else standard")
        self._choose("example", [(example.name, f"{example.name}: {example.description}") for example in shipped_examples()])

    def _choose(self, name: str, choices: list[Any], *, empty: str = "—") -> None:
        field = self.fields[name]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [("", empty), *choices]

    @property
    def wanted(self) -> NewEnvironment:
        """The request of the form."""
        given = {name: value for name, value in self.cleaned_data.items() if value}
        return NewEnvironment(**given)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        problem = name_problem(cleaned.get("name", ""))
        planned = plan(self.wanted, current_home()) if "name" in cleaned else []
        for problem in planned if isinstance(planned, list) else []:
            self.add_error(problem.option if problem.option in self.fields else None, str_of(problem))
        return cleaned


class EnvironmentFormBase(ModelForm):
    """A configuration and its datasets file, with the problems that a start would report, each at its field."""

    version = SeenField()
    datasets_version = SeenField()

    tags_text = forms.CharField(
        required=False, label="Tags", help_text="Words, separated by commas.", widget=forms.TextInput(attrs={"class": "vTextField"})
    )
    datasets_text = forms.CharField(
        required=False,
        strip=False,
        label="Datasets file",
        widget=forms.Textarea(attrs={"rows": 28, "class": "vLargeTextField datasets", "spellcheck": "false"}),
    )

    class Meta:
        model = Environment
        fields = ("description",)
        widgets = {"description": forms.TextInput(attrs={"class": "vTextField"})}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.instance.config
        self.initial.update(versions_of(self.instance))
        self.initial["tags_text"] = ", ".join(self.instance.tags)
        self.initial[DATASETS] = datasets_of(self.instance)
        self.initial.update({f"{PREFIX}{name}": text_of(value) for name, value in config.items() if value is not None})
        self._show_defaults(config)
        self.fields[DATASETS].help_text = escape(locate(config, current_home()).path or "data_backend_config names no file.")
        if not self.is_bound:
            self._show_problems(config)

    def _show_defaults(self, config: Mapping[str, Any]) -> None:
        """Show the default of this configuration in each empty field."""
        models, defaults = model_choices(config), effective_defaults(config)
        for name, choices in models.items():
            field = self.fields[f"{PREFIX}{name}"]
            assert isinstance(field, forms.ChoiceField)
            field.choices = [("", f"— {default_in_words(REGISTRY[name], defaults.get(name))}"), *choices]
        for name, default in defaults.items():
            field, words = self.fields[f"{PREFIX}{name}"], default_in_words(REGISTRY[name], default)
            if name in models:
                continue
            if isinstance(field, forms.ChoiceField):
                field.choices = listed_choices(REGISTRY[name], words)
            else:
                field.widget.attrs["placeholder"] = words

    def _show_problems(self, config: Mapping[str, Any]) -> None:
        """Show the problems that a start would report at their fields."""
        by_field: dict[str, list[Problem]] = {}
        for problem in resolve_run(current_home(), config, {}).problems:
            by_field.setdefault(field_of(problem), []).append(problem)
        for name, problems in by_field.items():
            field = self.fields.get(name)
            if field is not None:
                field.help_text = format_html("{}{}", field.help_text, problem_list(problems))

    def clean_tags_text(self) -> list[str]:
        return [word.strip() for word in self.cleaned_data["tags_text"].split(",") if word.strip()]

    def clean_datasets_text(self) -> str:
        text = str(self.cleaned_data[DATASETS]).replace("\r\n", "\n")
        if DATASETS in self.changed_data:
            try:
                document = parse_json(text)
            except BadJson as error:
                raise forms.ValidationError(f"The text is {error}.") from error
            if not isinstance(document, list):
                raise forms.ValidationError("The datasets file is a list: [{...}, {...}].")
        return text

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        checked = check_config(self.config(), current_home())
        for problem in checked.errors:
            name = field_of(problem)
            self.add_error(name if name in self.fields else None, str_of(problem))
        return cleaned

    def config(self) -> dict[str, Any]:
        """The stored configuration with the changes of the form. Unchanged values keep their types."""
        values = dict(self.instance.config)
        for name in REGISTRY:
            field = f"{PREFIX}{name}"
            if field not in self.changed_data or field not in self.cleaned_data:
                continue
            sent = self.cleaned_data[field]
            if sent == "":
                values.pop(name, None)
            else:
                values[name] = "" if sent == EMPTY_TEXT else sent
        return values

    def seen(self) -> Seen:
        """What the form was opened with. A page that shows no datasets file sends no version of it."""
        return Seen(options=self.cleaned_data["version"], datasets=self.cleaned_data["datasets_version"])

    def difference(self) -> str:
        """The options and other fields in which what was typed differs from what is stored now, in one sentence."""
        names = (name.removeprefix(PREFIX) if name.startswith(PREFIX) else str(self[name].label).lower() for name in self.changed_data)
        return f"What is stored now differs from this page in: {', '.join(names)}."

    def datasets(self) -> str | None:
        """The text of the datasets file if it was changed, else None."""
        return str(self.cleaned_data[DATASETS]) if DATASETS in self.changed_data else None


EnvironmentForm: type[EnvironmentFormBase] = type(
    "EnvironmentForm", (EnvironmentFormBase,), {f"{PREFIX}{name}": option_field(spec) for name, spec in REGISTRY.items()}
)


def datasets_of(environment: Environment) -> str:
    """The text of the datasets file; empty if the option names another kind of file."""
    return shown_datasets(environment, current_home()) or ""


def option_groups() -> Iterable[tuple[str, str, list[str]]]:
    """(group, its description, its form fields), in the order of the registry."""
    for group, cls in GROUPS.items():
        yield group, (cls.__doc__ or "").strip(), [f"{PREFIX}{name}" for name in cls.model_fields]


def field_of(problem: Problem) -> str:
    """The form field that a problem is about."""
    return DATASETS if problem.option.startswith("dataloader") else f"{PREFIX}{problem.option}"


def str_of(problem: Problem) -> str:
    """A problem as one text: message, expected value, hint."""
    expected = f" Expected: {problem.expected}." if problem.expected else ""
    return f"{problem.message}{expected}{' Hint: ' + problem.hint + '.' if problem.hint else ''}"


def problem_list(problems: Sequence[Problem]) -> SafeString:
    """Problems as a list whose entries are coloured by their level."""
    words = {Level.ERROR: "error", Level.WARNING: "warning", Level.NOTE: "note"}
    items = format_html_join(
        "", '<li class="problem-{}">{}</li>', ((words[problem.level], str_of(problem)) for problem in limited(problems))
    )
    return format_html('<ul class="problems">{}</ul>', items)
