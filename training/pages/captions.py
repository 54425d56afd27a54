"""Captions that the page of datasets sends without a script, and a set whose captions become text files."""

from __future__ import annotations

from urllib.parse import urlencode

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from environments import services as environments
from environments.errors import EnvironmentRefused
from environments.home import current_home
from environments.images.datasets import TEXT_FILES, NoSuchImage, open_dataset
from environments.seen import Seen, datasets_version
from training.pages.dataset_forms import document_of
from training.pages.environments import ACTOR, environment_named
from training.pages.messages import say_problems
from training.pages.views import Page


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
        environment_named(name)
        wanted = request.POST.get("set", "")
        try:
            opened = open_dataset(name, wanted)
            count = 0 if opened.takes_text_files else opened.write_texts()
            environment = environment_named(name)  # read now: thousands of files take a while to be written
            seen, document = Seen(datasets=datasets_version(environment, current_home())), document_of(environment) or []
            entry = next((one for one in document if one.get("id") == wanted), None)
            if entry is None:
                raise NoSuchImage(f"{count} text files were written, but the environment has no dataset '{wanted[:100]}' any more")
            entry |= {"caption_strategy": TEXT_FILES, "prepend_instance_prompt": False, "only_instance_prompt": False}
            environments.write_datasets_file(name, document, actor=ACTOR, seen=seen)
            messages.success(request, f"{count} text files were written; {wanted} takes its captions from text files now.")
        except EnvironmentRefused as refused:
            messages.error(request, str(refused.detail))
            say_problems(request, refused)
        return redirect(f"{reverse('environment-datasets', args=[name])}?{urlencode({'set': wanted})}#images")
