"""Addresses below ``/api/configs``, ``/api/folders`` and ``/api/datasets``.

Each works with and without a slash at its end, because ``curl -s`` follows no redirect.
"""

from __future__ import annotations

from django.urls import re_path

from environments.api import adapter_files, checks, compatibility, copies, dataset_images, folders, history, imports, views

NAME = r"(?P<name>[^/]+)"

urlpatterns = [
    re_path(r"^/?$", views.ConfigurationList.as_view(), name="configs"),
    re_path(r"^/examples/?$", views.ExampleList.as_view(), name="config-examples"),
    re_path(r"^/active/?$", views.ActiveConfiguration.as_view(), name="config-active"),
    re_path(r"^/environments/?$", views.EnvironmentCollection.as_view(), name="config-environments"),
    re_path(rf"^/environments/{NAME}/lycoris/?$", adapter_files.EnvironmentAdapter.as_view(), name="config-lycoris"),
    re_path(r"^/lycoris/validate/?$", adapter_files.AdapterValidation.as_view(), name="config-lycoris-validate"),
    re_path(r"^/compatibility/?$", compatibility.Compatibility.as_view(), name="config-compatibility"),
    re_path(r"^/import/?$", imports.Import.as_view(), name="config-import"),
    re_path(r"^/validate/?$", checks.Validation.as_view(), name="config-validate"),
    re_path(r"^/templates/?$", copies.TemplateList.as_view(), name="config-templates"),
    re_path(r"^/from-template/?$", copies.FromTemplate.as_view(), name="config-from-template"),
    re_path(rf"^/{NAME}/?$", views.ConfigurationDetail.as_view(), name="config"),
    re_path(rf"^/{NAME}/activate/?$", views.Activation.as_view(), name="config-activate"),
    re_path(rf"^/{NAME}/export/?$", views.Export.as_view(), name="config-export"),
    re_path(rf"^/{NAME}/dataloader/?$", views.Dataloader.as_view(), name="config-dataloader"),
    re_path(rf"^/{NAME}/datasets/?$", checks.Datasets.as_view(), name="config-datasets"),
    re_path(rf"^/{NAME}/validate/?$", checks.StoredValidation.as_view(), name="config-validate-stored"),
    re_path(rf"^/{NAME}/copy/?$", copies.Copy.as_view(), name="config-copy"),
    re_path(rf"^/{NAME}/rename/?$", copies.Rename.as_view(), name="config-rename"),
    re_path(rf"^/{NAME}/revisions/?$", history.RevisionList.as_view(), name="config-revisions"),
    re_path(rf"^/{NAME}/revision/?$", history.RevisionDetail.as_view(), name="config-revision"),
    re_path(rf"^/{NAME}/diff/?$", history.Diff.as_view(), name="config-diff"),
    re_path(rf"^/{NAME}/restore/?$", history.Restore.as_view(), name="config-restore"),
]

folder_urlpatterns = [
    re_path(r"^/?$", folders.Folders.as_view(), name="folders"),
    re_path(r"^/(?P<folder>[^/]+)/images/?$", folders.FolderImages.as_view(), name="folder-images"),
]

DATASET = r"(?P<environment>[^/]+)/(?P<dataset>[^/]+)"
dataset_urlpatterns = [
    re_path(rf"^/{DATASET}/images/?$", dataset_images.DatasetImages.as_view(), name="datasets-images"),
    re_path(rf"^/{DATASET}/thumbnail/?$", dataset_images.Thumbnail.as_view(), name="datasets-thumbnail"),
    re_path(rf"^/{DATASET}/caption/?$", dataset_images.Caption.as_view(), name="datasets-caption"),
]
