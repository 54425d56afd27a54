"""``/environments/<name>/datasets``: the sets of an environment with their fields, images and captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect

from environments import services as environments
from environments.api.dataset_images import thumbnail_address
from environments.errors import EnvironmentChanged, EnvironmentRefused
from environments.home import current_home
from environments.images.datasets import DatasetImage
from environments.models import Environment
from environments.seen import Seen, datasets_version
from trainer_engine.config.dataset_tables import source_specs
from trainer_engine.config.datasets.names import SETS
from trainer_engine.contract.errors import Level
from training import services
from training.pages.dataset_fields import takes_sources
from training.pages.dataset_forms import (
    ShownSet,
    added_entry,
    are_of,
    begun_entry,
    chosen_set,
    document_of,
    new_set,
    own_problems,
    shown_sets,
    typed_entries,
)
from training.pages.environments import ACTOR, environment_named
from training.pages.messages import say_problems
from training.pages.views import Page, number_in

IMAGES_ON_PAGE = 24


@dataclass(frozen=True)
class ShownImage:
    """An image of a dataset with its small copy."""

    image: DatasetImage
    thumbnail: str


class DatasetsPage(Page):
    """The datasets file as forms, and the images of one set."""

    template_name = "training/pages/datasets.html"

    def get_context_data(self, **keywords: Any) -> dict[str, Any]:
        environment = environment_named(self.kwargs["name"])
        document, refused = keywords.pop("document", None), keywords.pop("refused", ())
        document = document_of(environment) if document is None else document
        problems = refused or [one for one in environments.dataset_problems(environment) if one.level is not Level.NOTE]
        shown = list(shown_sets(environment, document, problems)) if document is not None else []
        begun = keywords.pop("added", None) or begun_entry(self.request.GET)
        added = new_set(begun, own_problems(refused, len(shown))) if begun is not None else None
        named = [problem for one in (*shown, added) if one for problem in one.problems]
        chosen = chosen_set(shown, self.request.GET.get("set", ""))
        return super().get_context_data(
            environment=environment,
            sets=shown,
            added=added,
            kinds=[(kind, takes_sources(kind)) for kind in SETS],
            sources=list(source_specs()),
            problems=[problem for problem in problems if problem not in named],
            is_readable=document is not None,
            version=keywords.pop("version", None) or datasets_version(environment, current_home()),
            chosen=chosen,
            buckets=services.check({}, environment).understood.get("datasets", []) if "buckets" in self.request.GET else None,
            tab="datasets",
            largest_upload=settings.UPLOAD_BYTES,
            **(_images(self.request, environment, chosen) if chosen else {}),
            **keywords,
        )

    def post(self, request: HttpRequest, name: str) -> HttpResponse:
        """Save the forms, with a set added or removed."""
        document, sent = document_of(environment_named(name)), request.POST
        if document is None:
            messages.error(request, "The datasets file cannot be read. Repair it by hand, or generate it anew.")
            return redirect("environment-datasets", name)
        if not are_of(document, sent.getlist("sets")):
            messages.error(request, "Nothing was saved: the sets of the file have changed since this page was opened. Look at them again.")
            return redirect("environment-datasets", name)
        typed = typed_entries(document, sent)
        kept = [entry for position, entry in enumerate(typed) if sent.get("remove") != str(position)]
        added = added_entry(sent) if sent.get("act") == "add" else None
        version = sent.get("version", "")
        try:
            environments.write_datasets_file(name, [*kept, *([added] if added else [])], actor=ACTOR, seen=Seen(datasets=version))
        except EnvironmentChanged as changed:
            messages.error(request, f"Nothing was saved. {changed.detail}")
            return self.render_to_response(self.get_context_data(document=typed, added=added), status=changed.status_code)
        except EnvironmentRefused as refused:
            messages.error(request, "Nothing was saved.")
            say_problems(request, refused)
            # Without a set the others have other places than on this page, so their problems are not shown beside them.
            beside = refused.problems if len(kept) == len(document) else ()
            return self.render_to_response(self.get_context_data(document=typed, added=added, refused=beside, version=version), status=422)
        removed = len(kept) < len(document)
        did = f"Added {added['id']} to" if added else "Removed a set from" if removed else "Saved"
        messages.success(request, f"{did} the datasets of {name}.{' Its files stay where they are.' if removed else ''}")
        return redirect("environment-datasets", name)


def _images(request: HttpRequest, environment: Environment, chosen: ShownSet) -> dict[str, Any]:
    assert chosen.opened is not None
    offset, missing_first = number_in(request, "from") or 0, request.GET.get("order") != "name"
    try:
        page = chosen.opened.images(offset=offset, limit=IMAGES_ON_PAGE, missing_first=missing_first)
    except EnvironmentRefused as refused:
        return {"trouble": str(refused.detail)}
    if offset and not page.images:
        raise Http404
    address = [thumbnail_address(environment.name, chosen.opened, one.file, one.size_bytes) for one in page.images]
    order = "missing" if missing_first else "name"

    def link(begin: int) -> str:
        return "?" + urlencode({"set": chosen.id, "from": begin, "order": order}) + "#images"

    return {
        "page": page,
        "images": [ShownImage(image, thumbnail) for image, thumbnail in zip(page.images, address, strict=True)],
        "offset": offset,
        "order": order,
        "newer": link(max(0, offset - IMAGES_ON_PAGE)) if offset else "",
        "older": link(offset + IMAGES_ON_PAGE) if offset + IMAGES_ON_PAGE < page.total else "",
    }
