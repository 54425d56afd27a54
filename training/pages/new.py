"""``/new``: from a folder of images to a run, in one form."""

from __future__ import annotations

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from environments import services as environments
from environments.create.plan import NewEnvironment
from environments.errors import EnvironmentRefused
from environments.examples import first_lora
from environments.models import Environment
from training import services
from training.errors import TrainingRefused
from training.pages import card
from training.pages.buttons import page_of
from training.pages.messages import say_problems
from training.pages.views import Page

ACTOR = "page"
FIELDS_OF_PROBLEMS = {"model_family": "model", "model_flavour": "model", "max_train_steps": "steps"}
"""Option of a problem -> the field that shows it, where the names differ."""


class NewLora(forms.Form):
    """What a first adapter takes."""

    name = forms.CharField(max_length=64, help_text="Letters, digits, dots, dashes. It names the environment and its folders.")
    model = forms.ChoiceField(help_text="The numbers are the memory of a GPU that training takes, with the weights in so many bits.")
    images = forms.CharField(label="Images", max_length=4000, help_text="A folder with 10 to 50 images of one thing.")
    trigger_word = forms.CharField(
        required=False, max_length=200, help_text="A rare word that stands for what the images show. You write it into prompts later."
    )
    memory = forms.TypedChoiceField(coerce=int, label="Memory of the card")
    weights = forms.CharField(
        required=False, max_length=4000, help_text="A folder or another repository, in place of the download of the model."
    )
    resolution = forms.IntegerField(
        required=False, min_value=16, max_value=4096, help_text="Edge of the images in training, in pixels. Empty: that of the model."
    )
    steps = forms.IntegerField(required=False, min_value=1, max_value=10_000_000, help_text="Empty: that of the example, or 1,000.")
    validation_prompt = forms.CharField(required=False, max_length=4000, help_text="Images of this prompt show what was learned.")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        groups: dict[str, list[tuple[str, str]]] = {}
        for choice in card.model_choices():
            groups.setdefault(choice.title, []).append((choice.key, f"{choice.title} {choice.flavour} – {choice.text}"))
        model, memory = self.fields["model"], self.fields["memory"]
        assert isinstance(model, forms.ChoiceField) and isinstance(memory, forms.ChoiceField)
        model.choices = list(groups.items())
        memory.choices = [(card.PROCESSOR, "no GPU: the processor (slow)"), *((size, f"{size} GB") for size in card.CARDS)]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        choice, memory = card.find_choice(cleaned.get("model", "")), cleaned.get("memory")
        if choice is not None and memory is not None and card.options_for(choice, memory) is None:
            smaller = ", ".join(dict.fromkeys(one.title for one in card.model_choices() if one.least <= memory)) or "none"
            self.add_error("memory", f"{choice.title} {choice.flavour} needs {choice.least:.0f} GB. With {memory} GB: {smaller}.")
        return cleaned

    @property
    def wanted(self) -> NewEnvironment:
        """The environment that a valid form asks for."""
        sent = self.cleaned_data
        choice = card.find_choice(sent["model"])
        assert choice is not None
        example = first_lora(choice.family, choice.flavour)
        edge, steps = sent["resolution"], sent["steps"]
        given = {
            "pretrained_model_name_or_path": sent["weights"],
            "max_train_steps": steps,
            "validation_prompt": sent["validation_prompt"],
            "resolution": edge,
            "validation_resolution": f"{edge}x{edge}" if edge else None,
            "lr_warmup_steps": min(100, steps // 10) if steps else None,
            **_often_enough(steps),
        }
        return NewEnvironment(
            name=sent["name"],
            model_family=choice.family,
            model_flavour=choice.flavour,
            model_type="lora",
            example=example.name if example else None,
            images=sent["images"],
            trigger_word=sent["trigger_word"],
            options={
                **(card.options_for(choice, sent["memory"]) or {}),
                **{name: value for name, value in given.items() if value not in (None, "")},
            },
        )


def _often_enough(steps: int | None) -> dict[str, int]:
    """Intervals at which a short run still shows images and saves checkpoints."""
    return {} if not steps or steps >= 1000 else dict.fromkeys(("validation_step_interval", "checkpoint_step_interval"), max(1, steps // 4))


class NewPage(Page):
    """The form, and what it leads to: the page of the run, or that of the environment with what is wrong with it."""

    template_name = "training/pages/new.html"

    def get_context_data(self, **keywords: Any) -> dict[str, Any]:
        form = keywords.pop("form", None) or NewLora(initial={"memory": card.card_here()})
        return super().get_context_data(form=form, choices=card.model_choices(), largest_upload=settings.UPLOAD_BYTES, **keywords)

    def post(self, request: HttpRequest) -> HttpResponse:
        form = NewLora(request.POST)
        environment = _created(form) if form.is_valid() else None
        if environment is None:
            return self.render_to_response(self.get_context_data(form=form), status=422)
        page = reverse("environment", args=[environment.name])
        if request.POST.get("act") != "start":
            messages.success(request, f"{environment.name} was written. Nothing was started.")
            return redirect(page)
        try:
            started = services.start_training({}, environment=environment)
        except (TrainingRefused, EnvironmentRefused) as refused:
            messages.warning(request, f"{environment.name} was written, and cannot be started yet. {refused.detail}")
            say_problems(request, refused)
            return redirect(page)
        say_problems(request, started.report)
        return redirect(page_of(started.job))


def _created(form: NewLora) -> Environment | None:
    """The environment of a valid form; None if it was refused, with the reasons in the form."""
    try:
        return environments.create_environment(form.wanted, actor=ACTOR)
    except EnvironmentRefused as refused:
        for problem in refused.problems:
            name = FIELDS_OF_PROBLEMS.get(problem.option, problem.option)
            form.add_error(name if name in form.fields else None, f"{problem.message} {problem.hint}".strip())
        return None
