"""Names of environments that are made for runs started without one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from environments.create.names import LONGEST, is_name

FALLBACK = "run"
ROOM_FOR_NUMBER = 8


def name_for_run(values: Mapping[str, Any], taken: Iterable[str]) -> str:
    """The last part of ``output_dir`` as a name, with a number where it is taken."""
    names = {name.lower() for name in taken}
    last = PurePosixPath(str(values.get("output_dir", ""))).name
    base = re.sub(r"\.\.+", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", last)).lstrip("._-").rstrip(".")
    base = base[: LONGEST - ROOM_FOR_NUMBER].rstrip(".") or FALLBACK
    if not is_name(base):
        base = f"{FALLBACK}-{base}"
    name, number = base, 1
    while name.lower() in names:
        number += 1
        name = f"{base}-{number}"
    return name
