"""Addresses below ``/api/training``; each answers with and without a slash at its end."""

from __future__ import annotations

from django.urls import re_path

from training import pictures, read_views, views
from training.consumers import EventSocket, EventSource
from training.webhooks.views import JobWebhooks

JOB = r"(?P<job_id>[^/]+)"

urlpatterns = [
    re_path(r"^/validate/?$", views.Validate.as_view(), name="training-validate"),
    re_path(r"^/start/?$", views.Start.as_view(), name="training-start"),
    re_path(r"^/stop/?$", views.Stop.as_view(), name="training-stop"),
    re_path(r"^/cancel/?$", views.Cancel.as_view(), name="training-cancel"),
    re_path(r"^/validation/run/?$", views.RunValidation.as_view(), name="training-validation-run"),
    re_path(r"^/checkpoint/run/?$", views.RunCheckpoint.as_view(), name="training-checkpoint-run"),
    re_path(r"^/status/?$", read_views.StatusView.as_view(), name="training-status"),
    re_path(r"^/events/?$", read_views.EventsView.as_view(), name="training-events"),
    re_path(r"^/events/stream/?$", read_views.StreamView.as_view(), name="training-stream"),
    re_path(r"^/checkpoints/?$", read_views.CheckpointsView.as_view(), name="training-checkpoints"),
    re_path(r"^/checkpoints/validate/(?P<name>[^/]+)/?$", read_views.CheckpointVerdict.as_view(), name="training-checkpoint-validate"),
    re_path(r"^/jobs/?$", read_views.JobList.as_view(), name="training-jobs"),
    re_path(rf"^/jobs/{JOB}/?$", read_views.JobDetail.as_view(), name="training-job"),
    re_path(rf"^/jobs/{JOB}/log/?$", read_views.JobLog.as_view(), name="training-job-log"),
    re_path(rf"^/jobs/{JOB}/media/(?P<index>[0-9]+)/(?P<place>[0-9]+)/?$", read_views.JobMedia.as_view(), name="training-job-media"),
    re_path(rf"^/jobs/{JOB}/grid\.png/?$", pictures.JobGrid.as_view(), name="training-job-grid"),
    re_path(rf"^/jobs/{JOB}/curves\.svg/?$", pictures.JobCurves.as_view(), name="training-job-curves"),
    re_path(rf"^/jobs/{JOB}/webhooks/?$", JobWebhooks.as_view(), name="training-job-webhooks"),
    re_path(r"^/queue/?$", read_views.Queue.as_view(), name="training-queue"),
]

STREAM = r"^api/training/events/stream/?$"
# Channels' applications are no views, but its router finds them through the same patterns.
websocket_urlpatterns = [re_path(STREAM, EventSocket.as_asgi())]
http_stream_patterns = [re_path(STREAM, EventSource.as_asgi())]
