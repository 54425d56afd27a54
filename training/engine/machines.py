"""The machines that share a run, and which ones may.

Machines of a run trust one another completely: they exchange pickled objects, so each can run programs on the others. The server's operator
therefore lists those that a run may name, and without a list a run stays on one machine.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer_engine.config.options.run import DistributedOptions

MACHINES_VARIABLE = "SIMPLETUNER_MACHINES"
"""Environment variable with the machines that runs may share, for the server."""


@dataclass(frozen=True)
class Machines:
    """The machines that share a run, and which of them this is."""

    count: int = 1
    rank: int = 0
    """Number of this machine; 0 is the one to which the others connect."""
    main_ip: str = "127.0.0.1"
    main_port: int = 29500

    @classmethod
    def of(cls, options: DistributedOptions) -> Machines:
        return cls(options.num_machines, options.machine_rank, options.main_process_ip, options.main_process_port)


ONE_MACHINE = Machines()


@dataclass(frozen=True)
class MachineRule:
    """The machines that may be machine 0 of a run: host names, addresses and networks (``10.0.0.0/24``)."""

    allowed: tuple[str, ...] = ()
    is_open: bool = False
    """Whether every machine may: in a user's own shell."""

    def refusal(self, machines: Machines) -> str:
        """Returns why a run may not be shared like this, as a sentence, or an empty text."""
        if machines.count <= 1 or self.is_open or any(_matches(machines.main_ip, one) for one in self.allowed):
            return ""
        return f"Machine 0 of this run is {machines.main_ip}, which is not among the machines that runs of this server may share."

    @property
    def hint(self) -> str:
        """What to do about a refusal."""
        return f"start the server with {MACHINES_VARIABLE} and the addresses of the machines"


def _matches(host: str, allowed: str) -> bool:
    """Whether a host is the allowed one. A name is compared as it is, since whoever answers for it may change its address."""
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(allowed)
    except ValueError:
        return host.lower().rstrip(".") == allowed.lower()


def wrong_machines(allowed: Iterable[str]) -> list[str]:
    """Returns the entries of a list that are neither a network nor the name of a machine."""
    return [one for one in allowed if not (_is_network(one) or all(part and part.replace("-", "a").isalnum() for part in one.split(".")))]


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True
