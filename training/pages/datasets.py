"""``/environments/<name>/datasets``: the sets of an environment with their fields, images and captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from environments import services as environments
from environments.api.dataset_images import thumbnail_address
from environments.errors import EnvironmentRefused
from environments.files.datasets_file import unwrapped_datasets
from environments.files.json_text import BadJson, parse_json
from environments.home import current_home
from environments.images.datasets import TEXT_FILES, DatasetImage, OpenDataset, datasets_of, open_dataset
from environments.images.upload import LARGEST_BYTES
from environments.models import Environment
from environments.sync import shown_datasets
from trainer_engine.contract.errors import Level, Problem
from training import services
from training.pages.dataset_fields import FieldRow, changed_entry, field_rows, kind_of
from training.pages.environments import ACTOR, environment_named
from training.pages.messages import say_problems
from training.pages.views import Page, number_in

IMAGES_ON_PAGE = 24


@dataclass(frozen=True)
class ShownImage:
    """An image of a dataset with its small copy."""

    image: DatasetImage
    thumbnail: str


@dataclass(frozen=True)
class ShownSet:
    """A dataset of the file."""

    position: int
    id: str
    kind: str
    rows: list[FieldRow]
    problems: list[Problem]
    """Errors and warnings."""
    opened: OpenDataset | None
    """None if its images lie in no folder of this machine."""


class DatasetsPage(Page):
    """The datasets file as forms, and the images of one set."""

    template_name = "training/pages/datasets.html"

    def get_context_data(self, **keywords: Any) -> dict[str, Any]:
        environment = environment_named(self.kwargs["name"])
        document = _document(environment)
        problems = [one for one in environments.dataset_problems(environment) if one.level is not Level.NOTE]
        shown = list(_sets(environment, document, problems)) if document is not None else []
        named = {problem for one in shown for problem in one.problems}
        chosen = _chosen(shown, self.request.GET.get("set", ""))
        return super().get_context_data(
            environment=environment,
            sets=shown,
            problems=[problem for problem in problems if problem not in named],
            is_readable=document is not None,
            chosen=chosen,
            buckets=services.check({}, environment).understood.get("datasets", []) if "buckets" in self.request.GET else None,
            tab="datasets",
            largest_upload=LARGEST_BYTES,
            **(_images(self.request, environment, chosen) if chosen else {}),
            **keywords,
        )

    def post(self, request: HttpRequest, name: str) -> HttpResponse:
        environment = environment_named(name)
        document = _document(environment)
        if document is None:
            messages.error(request, "The datasets file cannot be read. Repair it by hand, or generate it anew.")
            return redirect("environment-datasets", name)
        if not _is_of(document, request.POST.getlist("sets")):
            messages.error(request, "Nothing was saved: the sets of the file have changed since this page was opened. Look at them again.")
            return redirect("environment-datasets", name)
        entries = [changed_entry(entry, request.POST, position) for position, entry in enumerate(document)]
        try:
            environments.write_datasets_file(name, entries, actor=ACTOR)
            messages.success(request, f"Saved the datasets of {name}.")
        except EnvironmentRefused as refused:
            messages.error(request, "Nothing was saved.")
            say_problems(request, refused)
        return redirect("environment-datasets", name)


class CaptionPage(Page):
    """Takes a caption without a script. The script of the page sends it to the API."""

    http_method_names = ["post"]

    def post(self, request: HttpRequest, name: str) -> HttpResponse:
        environment_named(name)
        given = request.POST
        try:
            open_dataset(name, given.get("set", "")).write_caption(given.get("file", ""), given.get("caption", ""))
            messages.success(request, f"Saved the caption of {given.get('file', '')[:200]}.")
        except EnvironmentRefused as refused:
            messages.error(request, str(refused.detail))
        query = urlencode({key: given[key] for key in ("set", "from", "order") if key in given})
        return redirect(f"{reverse('environment-datasets', args=[name])}?{query}#images")


class TextsPage(Page):
    """Writes the captions of a set into text files, and lets the set read them from there, so that each can be edited."""

    http_method_names = ["post"]

    def post(self, request: HttpRequest, name: str) -> HttpResponse:
        document, wanted = _document(environment_named(name)), request.POST.get("set", "")
        try:
            opened = open_dataset(name, wanted)
            count = 0 if opened.takes_text_files else opened.write_texts()
            entry = (document or [])[opened.entry.position]
            entry |= {"caption_strategy": TEXT_FILES, "prepend_instance_prompt": False, "only_instance_prompt": False}
            environments.write_datasets_file(name, document, actor=ACTOR)
            messages.success(request, f"{count} text files were written; {wanted} takes its captions from text files now.")
        except EnvironmentRefused as refused:
            messages.error(request, str(refused.detail))
            say_problems(request, refused)
        return redirect(f"{reverse('environment-datasets', args=[name])}?{urlencode({'set': wanted})}#images")


def _is_of(document: list[dict[str, Any]], sent: list[str]) -> bool:
    """Whether a form is about these sets in this order; its fields name them by position. A program may leave the ids out."""
    return not sent or sent == [str(entry.get("id", "")) for entry in document]


def _document(environment: Environment) -> list[dict[str, Any]] | None:
    """The entries of the datasets file with secrets hidden; None if they cannot be shown as forms."""
    text = shown_datasets(environment, current_home())
    try:
        document = unwrapped_datasets(parse_json(text)) if text is not None else None
    except BadJson:
        return None
    if not isinstance(document, list) or not all(isinstance(entry, dict) for entry in document):
        return None
    return document


def _sets(environment: Environment, document: list[dict[str, Any]], problems: list[Problem]) -> Iterator[ShownSet]:
    opened = {found.entry.position: found for found in datasets_of(environment.name)}
    for position, entry in enumerate(document):
        kind = kind_of(entry)
        begin = f"dataloader[{position}]"
        own = [one for one in problems if one.option == begin or one.option.startswith(f"{begin}.")]
        rows = list(field_rows(entry))
        yield ShownSet(position, str(entry.get("id", "")), kind, rows, own, opened.get(position))


def _chosen(shown: list[ShownSet], wanted: str) -> ShownSet | None:
    """The set whose images are shown: the one that was asked for, else the first."""
    with_images = [one for one in shown if one.opened is not None]
    return next((one for one in with_images if one.id == wanted), with_images[0] if with_images and not wanted else None)


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
