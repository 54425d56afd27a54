"""``/environments/<name>/history``: the changes of an environment, compared and brought back."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect

from environments import history
from environments.errors import EnvironmentNotFound, EnvironmentRefused, RevisionNotFound
from training.pages.environments import ACTOR, environment_named
from training.pages.messages import say_problems
from training.pages.views import Page, number_in

LARGEST = 2**31 - 1
SHOWN = 100


class HistoryPage(Page):
    """The revisions, newest first, and what differs between two of them."""

    template_name = "training/pages/history.html"

    def get_context_data(self, **keywords: Any) -> dict[str, Any]:
        environment = environment_named(self.kwargs["name"])
        found = history.revisions(environment.name)
        older, newer = (_revision(self.request, name) for name in ("from", "to"))
        try:
            compared = history.compare(environment.name, older, newer)
        except RevisionNotFound as error:
            raise Http404 from error
        return super().get_context_data(
            environment=environment, rows=found[:SHOWN], newest=found[0].number, compared=compared, tab="history", **keywords
        )

    def post(self, request: HttpRequest, name: str) -> HttpResponse:
        """Bring a revision back."""
        text = request.POST.get("revision", "")
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
        try:
            restored = history.restore(name, number, actor=ACTOR)
        except EnvironmentNotFound as error:
            raise Http404 from error
        except EnvironmentRefused as refused:
            messages.error(request, "Nothing was changed.")
            say_problems(request, refused)
            return redirect("environment-history", name)
        messages.success(request, f"{name} is as it was in revision {number}.")
        if restored.left_out:
            messages.warning(request, f"Their secrets are not stored any more, so they are not set: {', '.join(restored.left_out)}.")
        return redirect("environment-history", name)


def _revision(request: HttpRequest, name: str) -> int | None:
    number = number_in(request, name)
    if number is not None and not 0 < number <= LARGEST:
        raise Http404
    return number
