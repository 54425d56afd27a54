"""A network of the attack's own: addresses of inner services on loopback, and a name server whose answers change."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import sys
import tempfile
import threading
from pathlib import Path
from typing import NoReturn

METADATA = "169.254.169.254"
PRIVATE = "10.66.0.1"
PUBLIC = "93.184.215.14"
REBINDING = "rebinding.test"
MARK = "SIMPLETUNER_TEST_ISOLATED"
NAMES = {"metadata.test": METADATA, "private.test": PRIVATE}
NAME_SERVER = ("127.0.0.1", 53)


def is_isolated() -> bool:
    """Whether this process lives in the network that ``enter`` makes."""
    return os.environ.get(MARK) == "1"


def can_isolate() -> bool:
    """Whether this account may make a network of its own."""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and all(shutil.which(tool) for tool in ("unshare", "ip", "mount"))


def enter(arguments: list[str]) -> NoReturn:
    """Become this program inside a network and a mount namespace of its own."""
    resolver = Path(tempfile.mkdtemp(prefix="simpletuner-names-")) / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    real = os.path.realpath("/etc/resolv.conf")
    script = (
        f"ip link set lo up && ip addr add {METADATA}/32 dev lo && ip addr add {PRIVATE}/32 dev lo && "
        f'mount --bind {resolver} {real} && rm -r {resolver.parent} && exec "$@"'
    )
    command = ["unshare", "--net", "--mount", "sh", "-c", script, "sh", sys.executable, "-m", "tests.security", *arguments]
    os.execvpe(command[0], command, {**os.environ, MARK: "1"})


class NameServer(threading.Thread):
    """Answers questions for IPv4 addresses: ``REBINDING`` is public at the first question and private from then on."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.asked = 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(NAME_SERVER)

    def run(self) -> None:
        while True:
            question, client = self.socket.recvfrom(512)
            self.socket.sendto(self.answer(question), client)

    def answer(self, question: bytes) -> bytes:
        """One A record, or none (RFC 1035, section 4)."""
        labels, position = [], 12
        while question[position]:
            labels.append(question[position + 1 : position + 1 + question[position]].decode("latin-1").lower())
            position += question[position] + 1
        name, asked = ".".join(labels), question[12 : position + 5]
        address = self.meaning(name) if question[position + 1 : position + 3] == b"\0\1" else ""
        header = question[:2] + struct.pack(">HHHHH", 0x8180 if address else 0x8183, 1, bool(address), 0, 0)
        record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(address) if address else b""
        return header + asked + record

    def meaning(self, name: str) -> str:
        if name != REBINDING:
            return NAMES.get(name, "")
        self.asked += 1
        return PUBLIC if self.asked % 4 in (1, 2) else PRIVATE
