"""``/environments/<name>/adapter``: the LyCORIS adapter file of an environment as text, with the check of a start."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from environments import services as environments
from environments.create.starter import plain
from environments.errors import EnvironmentChanged, EnvironmentRefused
from environments.files.adapter_file import OPTION, find_adapter_file, uses_lycoris
from environments.files.json_text import BadJson, parse_json, write_json
from environments.home import current_home
from environments.models import Environment
from environments.seen import Seen, version_of
from trainer_engine.config.families import find_spec
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.lycoris.config_file import parse_lycoris
from trainer_engine.contract.errors import Level, Problem
from trainer_engine.contract.files import is_file
from training.pages.environments import ACTOR, environment_named
from training.pages.views import Page


class AdapterPage(Page):
    """The text of the file, what a check says of it, and a button that stores it."""

    template_name = "training/pages/adapter.html"

    def get_context_data(self, **keywords: Any) -> dict[str, Any]:
        environment = environment_named(self.kwargs["name"])
        is_used = uses_lycoris(environment.config)
        found = find_adapter_file(environment.config, environment.name, current_home()) if is_used else None
        text, problems = keywords.pop("text", None), keywords.pop("problems", [])
        is_begun = found is not None and found.document is None and text is None
        if found is not None and text is None:
            text = write_json(_begun(environment) if is_begun else found.document)
            problems = [found.problem] if found.problem else _advice(found.document, environment)
        return super().get_context_data(
            environment=environment,
            is_used=is_used,
            file=found,
            is_there=found is not None and is_file(found.path),
            is_begun=is_begun,
            version=keywords.pop("version", None) or version_of(found and found.document),
            text=text,
            problems=problems,
            tab="adapter",
            **keywords,
        )

    def post(self, request: HttpRequest, name: str) -> HttpResponse:
        """Store the file if it can be used; else show what was typed with the reasons."""
        environment, text = environment_named(name), request.POST.get("text", "")
        version = request.POST.get("version", "")
        try:
            environments.write_adapter_file(name, parse_json(text), actor=ACTOR, seen=Seen(adapter=version))
        except BadJson as error:
            return self._refused(request, [Problem.error(OPTION, "invalid_json", f"The text is {error}.")], text=text, version=version)
        except EnvironmentChanged as changed:
            return self._refused(request, changed.problems, status=changed.status_code, text=text)
        except EnvironmentRefused as refused:
            return self._refused(request, refused.problems, text=text, version=version)
        messages.success(request, f"Saved the adapter file of {environment.name}.")
        return redirect("environment-adapter", name)

    def _refused(self, request: HttpRequest, problems: Any, *, status: int = 422, **shown: str) -> HttpResponse:
        messages.error(request, "Nothing was saved.")
        return self.render_to_response(self.get_context_data(problems=problems, **shown), status=status)


def _spec_of(environment: Environment) -> FamilySpec | None:
    return find_spec(str(environment.config.get("model_family")))


def _begun(environment: Environment) -> dict[str, Any]:
    """What the page offers where there is no file yet: the adapter that new environments of the family begin with."""
    spec = _spec_of(environment)
    return plain(spec.adapters.lycoris_start) if spec is not None else {}


def _advice(document: object, environment: Environment) -> list[Problem]:
    """What a check says of a stored file."""
    _, problems = parse_lycoris(document, _spec_of(environment))
    return [problem for problem in problems if problem.level is not Level.NOTE]
