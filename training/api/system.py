"""``GET /api/system``: devices, memory, disks and versions of the machine that the server runs on."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

from django.conf import settings
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from training.api import schema
from training.engine import hardware, process
from training.engine.hardware import Space
from training.jobs import queue
from training.preflight.run import expected_device

PACKAGES = ("simpletuner", "django", "torch", "diffusers", "transformers", "accelerate", "peft", "lycoris-lora", "optimum-quanto")


class SpaceSerializer(serializers.Serializer[object]):
    """Memory, or a disk."""

    free_bytes = serializers.IntegerField()
    total_bytes = serializers.IntegerField()
    used_percent = serializers.FloatField()


class GpuSerializer(serializers.Serializer[object]):
    """A GPU that the driver lists; null where it does not report a value."""

    name = serializers.CharField()
    used_bytes = serializers.IntegerField()
    total_bytes = serializers.IntegerField()
    busy_percent = serializers.IntegerField(allow_null=True)
    temperature_celsius = serializers.IntegerField(allow_null=True)
    driver = serializers.CharField()


class CpuSerializer(serializers.Serializer[object]):
    """The processor."""

    name = serializers.CharField(allow_blank=True)
    cores = serializers.IntegerField()
    load = serializers.FloatField(help_text="Of the last minute.")


class SystemSerializer(serializers.Serializer[object]):
    """The machine."""

    device = serializers.ChoiceField(choices=["cuda", "mps", "cpu"], help_text="What a run computes on.")
    gpus = GpuSerializer(many=True)
    cpu = CpuSerializer()
    memory = SpaceSerializer()
    disk = SpaceSerializer(allow_null=True, help_text="Of the server's home; null if it cannot be reached.")
    slots = serializers.IntegerField(help_text="Runs that train at a time.")
    running = serializers.IntegerField(help_text="Runs that hold a slot.")
    python = serializers.CharField()
    system = serializers.CharField()
    versions = serializers.DictField(child=serializers.CharField(allow_null=True), help_text="Package -> version; null if not installed.")


class System(APIView):
    """The machine that the server runs on."""

    @schema.described("system", "Devices, memory, disk and versions of the machine", SystemSerializer)
    def get(self, request: Request) -> Response:
        disk = hardware.disk(settings.HOME)
        return Response(
            {
                "device": expected_device(process.passed_environment()),
                "gpus": [asdict(gpu) for gpu in hardware.DRIVER.gpus()],
                "cpu": asdict(hardware.cpu()),
                "memory": _space(hardware.memory()),
                "disk": None if disk is None else _space(disk),
                "slots": settings.SLOTS,
                "running": queue.occupied().count(),
                "python": platform.python_version(),
                "system": platform.platform(terse=True),
                "versions": hardware.versions(PACKAGES),
            }
        )


def _space(space: Space) -> dict[str, Any]:
    return {**asdict(space), "used_percent": round(space.used_percent, 1)}
