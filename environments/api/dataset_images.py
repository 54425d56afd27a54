"""``/api/datasets/{environment}/{dataset}``: its images with their captions, small copies of them, and captions to write."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from environments.api.schema import NAME_SHAPE, WEBP, WITH_BODY, described
from environments.api.serializers import MessageSerializer, Sent, Text
from environments.api.views import ConfigurationView
from environments.errors import EnvironmentProblems
from environments.images.datasets import LONGEST_CAPTION, DatasetImage, OpenDataset, open_dataset
from environments.images.thumbnails import thumbnail_of
from trainer_engine.config.json_fields import WrongValue, parse_bool
from trainer_engine.contract.errors import Problem

USUAL, MOST = 24, 100
LARGEST = 10_000_000
ENVIRONMENT = OpenApiParameter("environment", NAME_SHAPE, OpenApiParameter.PATH, description="Name of the environment.")
DATASET = OpenApiParameter("dataset", str, OpenApiParameter.PATH, description="Id of a dataset whose images lie in a folder.")
OFFSET = OpenApiParameter("offset", {"type": "integer", "minimum": 0, "maximum": LARGEST}, description="Images to skip; 0 if not sent.")
LIMIT = OpenApiParameter("limit", {"type": "integer", "minimum": 1, "maximum": MOST}, description=f"Images to list; {USUAL} if not sent.")
MISSING_FIRST = OpenApiParameter("missing_first", bool, description="Images without a `.txt` file first.")
FILE = OpenApiParameter("file", {"type": "string", "minLength": 1}, required=True, description="As listed.")
IMAGE_HEADERS = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}
"""The address of an image names its version, so a browser may keep it."""


class DatasetImageSerializer(serializers.Serializer[Any]):
    """An image of a dataset."""

    file = serializers.CharField(help_text="Relative to the folder of the dataset.")
    size_bytes = serializers.IntegerField()
    captions = serializers.ListField(
        child=serializers.CharField(), allow_null=True, help_text="As training sees them, one of them at a time; null without any."
    )
    trouble = serializers.CharField(allow_blank=True, help_text="Why it has no caption.")
    text = serializers.CharField(allow_null=True, allow_blank=True, help_text="The `.txt` file beside it; null without one.")
    thumbnail = serializers.CharField(help_text="Address of a small copy.")


class DatasetImagesSerializer(serializers.Serializer[Any]):
    """Images of a dataset."""

    environment = serializers.CharField()
    dataset = serializers.CharField()
    folder = serializers.CharField()
    caption_strategy = serializers.CharField(allow_blank=True, help_text="Empty for a set without captions.")
    images = DatasetImageSerializer(many=True)
    offset = serializers.IntegerField()
    total = serializers.IntegerField(help_text="Images that were found.")
    is_cut = serializers.BooleanField(help_text="Whether there are more images than `total`, which were not looked at.")
    without_text = serializers.IntegerField(help_text="Images without a `.txt` file.")


class CaptionSerializer(Sent):
    """A caption to write."""

    file = Text(max_length=4000, help_text="The image, as listed.")
    caption = Text(max_length=LONGEST_CAPTION, trim_whitespace=False, help_text="Each line is one of several captions.")


class CaptionWrittenSerializer(MessageSerializer):
    """The caption file that was written."""

    path = serializers.CharField()
    is_used = serializers.BooleanField(help_text="Whether the dataset takes its captions from text files.")


class DatasetImages(ConfigurationView):
    """The images of a dataset."""

    @described(
        "datasets_images",
        "List the images of a dataset with their captions",
        DatasetImagesSerializer,
        *(404, 422),
        parameters=[ENVIRONMENT, DATASET, OFFSET, LIMIT, MISSING_FIRST],
    )
    def get(self, request: Request, environment: str, dataset: str) -> Response:
        found = open_dataset(environment, dataset)
        offset, limit = _number(request, "offset", 0, 0, LARGEST), _number(request, "limit", USUAL, 1, MOST)
        page = found.images(offset=offset, limit=limit, missing_first=_switch(request, "missing_first"))
        return Response(
            {
                "environment": environment,
                "dataset": dataset,
                "folder": str(found.folder),
                "caption_strategy": found.strategy,
                "images": [_shown(environment, found, one) for one in page.images],
                "offset": offset,
                "total": page.total,
                "is_cut": page.is_cut,
                "without_text": page.without_text,
            }
        )


class Thumbnail(ConfigurationView):
    """A small copy of an image."""

    @described(
        "datasets_thumbnail",
        "Small copy of an image of a dataset",
        OpenApiTypes.BINARY,
        *(404, 422),
        parameters=[ENVIRONMENT, DATASET, FILE],
        answered_as=WEBP,
    )
    def get(self, request: Request, environment: str, dataset: str) -> HttpResponse:
        found, file = open_dataset(environment, dataset), request.query_params.get("file", "")
        return HttpResponse(thumbnail_of(found, file), content_type=WEBP, headers=IMAGE_HEADERS)


class Caption(ConfigurationView):
    """The text file beside an image."""

    serializer_class = CaptionSerializer

    @described(
        "datasets_caption",
        "Write the caption of an image",
        CaptionWrittenSerializer,
        *WITH_BODY,
        404,
        request=CaptionSerializer,
        parameters=[ENVIRONMENT, DATASET],
    )
    def put(self, request: Request, environment: str, dataset: str) -> Response:
        sent = self.sent(request)
        found = open_dataset(environment, dataset)
        path = found.write_caption(sent["file"], sent["caption"])
        message = f"Caption of '{sent['file'][:200]}' written"
        return Response({"message": message, "path": str(path), "is_used": found.takes_text_files})


def thumbnail_address(environment: str, found: OpenDataset, file: str, size_bytes: int) -> str:
    """The address of a small copy. It changes with the file's size, so that a browser asks again for one that was replaced."""
    place = f"/api/datasets/{quote(environment)}/{quote(found.entry.id, safe='')}/thumbnail"
    return f"{place}?file={quote(file, safe='')}&size={size_bytes}"


def _shown(environment: str, found: OpenDataset, image: DatasetImage) -> dict[str, Any]:
    return {
        "file": image.file,
        "size_bytes": image.size_bytes,
        "captions": image.captions,
        "trouble": image.trouble,
        "text": image.text,
        "thumbnail": thumbnail_address(environment, found, image.file, image.size_bytes),
    }


def _number(request: Request, name: str, usual: int, least: int, most: int) -> int:
    """A whole number of the query. Raises EnvironmentProblems."""
    text = request.query_params.get(name)
    if text is None:
        return usual
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(most)) else -1
    if not least <= number <= most:
        problem = Problem.error(name, "not_a_number", f"{name} is {text[:100]!r}.", got=text[:100], expected=f"{least} to {most}")
        raise EnvironmentProblems.of([problem])
    return number


def _switch(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false")
    try:
        return parse_bool(text)
    except WrongValue as wrong:
        message = f"{name} {wrong}."
        raise EnvironmentProblems.of([Problem.error(name, wrong.code, message, got=text, expected="true or false")]) from wrong
