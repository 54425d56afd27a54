"""Addresses below ``/api/training``, ``/api/webhooks``, ``/api/cache`` and ``/runs``; each answers with and without a slash at its end."""

from __future__ import annotations

from django.contrib import admin
from django.urls import re_path

from training.api import caches, commands, comparison, dataset_report, files, metrics, reads, report
from training.pages.adapter_file import AdapterPage
from training.pages.captions import CaptionPage, TextsPage
from training.pages.datasets import DatasetsPage
from training.pages.environments import EnvironmentList, EnvironmentPage
from training.pages.revisions import HistoryPage
from training.pages.views import RunButton, RunPage
from training.pages.webhook_admin import WebhookAdmin
from training.streams.consumers import EventSocket, EventSource
from training.webhooks.views import JobWebhooks, StoredWebhook, WebhookList, WebhookTest

JOB = r"(?P<job_id>[^/]+)"
NAME = r"(?P<name>[^/]+)"

urlpatterns = [
    re_path(r"^/validate/?$", commands.Validate.as_view(), name="training-validate"),
    re_path(r"^/start/?$", commands.Start.as_view(), name="training-start"),
    re_path(r"^/stop/?$", commands.Stop.as_view(), name="training-stop"),
    re_path(r"^/cancel/?$", commands.Cancel.as_view(), name="training-cancel"),
    re_path(r"^/validation/run/?$", commands.RunValidation.as_view(), name="training-validation-run"),
    re_path(r"^/checkpoint/run/?$", commands.RunCheckpoint.as_view(), name="training-checkpoint-run"),
    re_path(r"^/status/?$", reads.StatusView.as_view(), name="training-status"),
    re_path(r"^/events/?$", reads.EventsView.as_view(), name="training-events"),
    re_path(r"^/events/stream/?$", reads.StreamView.as_view(), name="training-stream"),
    re_path(r"^/checkpoints/?$", reads.CheckpointsView.as_view(), name="training-checkpoints"),
    re_path(r"^/checkpoints/validate/(?P<name>[^/]+)/?$", reads.CheckpointVerdict.as_view(), name="training-checkpoint-validate"),
    re_path(r"^/jobs/?$", reads.JobList.as_view(), name="training-jobs"),
    re_path(rf"^/jobs/{JOB}/?$", reads.JobDetail.as_view(), name="training-job"),
    re_path(rf"^/jobs/{JOB}/datasets/?$", dataset_report.JobDatasets.as_view(), name="training-job-datasets"),
    re_path(rf"^/jobs/{JOB}/files/?$", files.JobFiles.as_view(), name="training-job-files"),
    re_path(rf"^/jobs/{JOB}/files/(?P<path>.+)$", files.JobFile.as_view(), name="training-job-file"),
    re_path(rf"^/jobs/{JOB}/resume/?$", commands.Resume.as_view(), name="training-job-resume"),
    re_path(rf"^/jobs/{JOB}/diff/(?P<other>[^/]+)/?$", comparison.JobDiff.as_view(), name="training-job-diff"),
    re_path(rf"^/jobs/{JOB}/metrics/?$", metrics.JobMetrics.as_view(), name="training-job-metrics"),
    re_path(rf"^/jobs/{JOB}/log/?$", reads.JobLog.as_view(), name="training-job-log"),
    re_path(rf"^/jobs/{JOB}/media/(?P<index>[0-9]+)/(?P<place>[0-9]+)/?$", reads.JobMedia.as_view(), name="training-job-media"),
    re_path(rf"^/jobs/{JOB}/grid\.png/?$", report.JobGrid.as_view(), name="training-job-grid"),
    re_path(rf"^/jobs/{JOB}/curves\.svg/?$", report.JobCurves.as_view(), name="training-job-curves"),
    re_path(rf"^/jobs/{JOB}/webhooks/?$", JobWebhooks.as_view(), name="training-job-webhooks"),
    re_path(r"^/queue/?$", reads.Queue.as_view(), name="training-queue"),
    re_path(rf"^/queue/{JOB}/move/?$", commands.MoveInQueue.as_view(), name="training-queue-move"),
]

webhook_urlpatterns = [
    re_path(r"^/?$", WebhookList.as_view(), name="webhooks"),
    re_path(rf"^/{NAME}/?$", StoredWebhook.as_view(), name="webhook"),
    re_path(rf"^/{NAME}/test/?$", WebhookTest.as_view(), name="webhook-test"),
]

cache_urlpatterns = [
    re_path(r"^/?$", caches.CacheList.as_view(), name="caches"),
    re_path(r"^/verify/?$", caches.CacheVerify.as_view(), name="cache-verify"),
    re_path(r"^/gc/?$", caches.CacheGc.as_view(), name="cache-gc"),
    re_path(r"^/tasks/(?P<task_id>[^/]+)/?$", caches.CacheTaskView.as_view(), name="cache-task"),
]

STORED_NAME = r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})"
webhook_admin_urlpatterns = [
    re_path(r"^/?$", admin.site.admin_view(WebhookAdmin.as_view()), name="webhooks-admin"),
    re_path(rf"^/{STORED_NAME}/?$", admin.site.admin_view(WebhookAdmin.as_view()), name="webhook-admin"),
]
"""Pages of the admin below ``/admin/webhooks``."""

RUN = r"(?P<number>[1-9][0-9]{0,17})"
page_urlpatterns = [
    re_path(rf"^{RUN}/?$", RunPage.as_view(), name="run"),
    re_path(rf"^{RUN}/(?P<slug>[a-z-]{{1,20}})/?$", RunButton.as_view(), name="run-button"),
]
"""Pages of runs, below ``/runs/``."""
environment_urlpatterns = [
    re_path(r"^/?$", EnvironmentList.as_view(), name="environments"),
    re_path(rf"^/{STORED_NAME}/?$", EnvironmentPage.as_view(), name="environment"),
    re_path(rf"^/{STORED_NAME}/datasets/?$", DatasetsPage.as_view(), name="environment-datasets"),
    re_path(rf"^/{STORED_NAME}/datasets/caption/?$", CaptionPage.as_view(), name="environment-caption"),
    re_path(rf"^/{STORED_NAME}/datasets/texts/?$", TextsPage.as_view(), name="environment-texts"),
    re_path(rf"^/{STORED_NAME}/adapter/?$", AdapterPage.as_view(), name="environment-adapter"),
    re_path(rf"^/{STORED_NAME}/history/?$", HistoryPage.as_view(), name="environment-history"),
]
"""Pages of environments, below ``/environments``."""

STREAM = r"^api/training/events/stream/?$"
# Channels' applications are no views, but its router finds them through the same patterns.
websocket_urlpatterns = [re_path(STREAM, EventSocket.as_asgi())]
http_stream_patterns = [re_path(STREAM, EventSource.as_asgi())]
