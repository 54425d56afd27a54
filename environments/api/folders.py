"""``/api/folders``: folders to take images from, and the upload of images into a folder of the home."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from environments.api.parsers import FormBody
from environments.api.schema import FORM, NAME_SHAPE, WITH_BODY, described
from environments.api.serializers import MessageSerializer, ProblemSerializer
from environments.api.views import ConfigurationView
from environments.home import current_home
from environments.images.folders import FolderFacts, facts_of, list_folders
from environments.images.upload import MOST_AT_ONCE, MOST_IN_FOLDER, UploadLimits, store_images, upload_folder

PATH = OpenApiParameter(
    "path", str, description="Folder to list, absolute or relative to the home; the places to begin if nothing is sent."
)
FOLDER = OpenApiParameter("folder", NAME_SHAPE, OpenApiParameter.PATH, description="Name of a folder in `datasets/`; it is created.")
LIMITS = UploadLimits(settings.UPLOAD_BYTES, settings.KEPT_FREE_BYTES)
MOST_ENTRIES = 2 * MOST_IN_FOLDER
"""Images of a folder that uploads fill, and their captions."""
UPLOAD_SHAPE: dict[str, Any] = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "array", "minItems": 1, "maxItems": MOST_AT_ONCE, "items": {"type": "string", "format": "binary"}},
    },
}


class FolderSerializer(serializers.Serializer[Any]):
    """A folder."""

    path = serializers.CharField()
    name = serializers.CharField()
    images = serializers.IntegerField(help_text="In the folder itself.")
    captions = serializers.IntegerField(help_text="Text files in the folder itself.")


class FoldersSerializer(serializers.Serializer[Any]):
    """A folder and the folders in it."""

    folder = FolderSerializer(allow_null=True)
    parent = serializers.CharField(allow_null=True, help_text="The folder above, if it may be read.")  # type: ignore[assignment]
    folders = FolderSerializer(many=True)
    is_cut = serializers.BooleanField(help_text="Whether there are more folders.")


class StoredImageSerializer(serializers.Serializer[Any]):
    """An image that was stored."""

    file = serializers.CharField()
    width = serializers.IntegerField()
    height = serializers.IntegerField()
    size_bytes = serializers.IntegerField()
    is_new = serializers.BooleanField(help_text="False if the folder held it already.")


class UploadedSerializer(MessageSerializer):
    """What became of an upload."""

    folder = serializers.CharField(help_text="Value for `instance_data_dir`.")
    images = StoredImageSerializer(many=True, help_text="Images and clips.")
    captions = serializers.ListField(child=serializers.CharField(), help_text="Text files of these images.")
    problems = ProblemSerializer(many=True, help_text="One for each file that was not stored; the others were.")
    count = serializers.IntegerField(help_text="Images in the folder now.")


class Folders(ConfigurationView):
    """The folders that a person can pick."""

    @described("folders", "List folders to take images from", FoldersSerializer, 422, parameters=[PATH])
    def get(self, request: Request) -> Response:
        found = list_folders(request.query_params.get("path", ""), current_home())
        return Response(
            {
                "folder": _shown(found.folder) if found.folder else None,
                "parent": found.parent,
                "folders": [_shown(one) for one in found.folders],
                "is_cut": found.is_cut,
            }
        )


class FolderImages(ConfigurationView):
    """Takes uploaded images."""

    parser_classes: Any = (FormBody,)

    @described(
        "folder_images_upload",
        "Upload images into a folder of the home",
        UploadedSerializer,
        *WITH_BODY,
        request=UPLOAD_SHAPE,
        parameters=[FOLDER],
        sent_as=FORM,
    )
    def post(self, request: Request, folder: str) -> Response:
        home = current_home()
        stored = store_images(folder, request.FILES.getlist("file"), home, LIMITS)
        count = facts_of(upload_folder(folder, home), MOST_ENTRIES).images
        images = [
            {"file": one.file, "width": one.size[0], "height": one.size[1], "size_bytes": one.size_bytes, "is_new": one.is_new}
            for one in stored.images
        ]
        message = f"{len(images)} image{'' if len(images) == 1 else 's'} in {stored.folder}"
        problems = [one.as_dict() for one in stored.refused]
        shown = {"message": message, "folder": stored.folder, "images": images, "captions": stored.captions}
        return Response({**shown, "problems": problems, "count": count})


def _shown(facts: FolderFacts) -> dict[str, Any]:
    return {"path": facts.path, "name": facts.name, "images": facts.images, "captions": facts.captions}
