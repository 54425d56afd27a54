"""Which machines sources may connect to: by the rule of webhooks and uploads, no internal one."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from trainer_engine.config.addresses import addresses_in, closed_because

MOST_TRIED = 4
"""How many addresses of one name are tried."""


class AddressRefused(OSError):
    """An address must not be connected to. The message says why; trying again is useless."""


@dataclass(frozen=True)
class Reach:
    """Which machines sources may connect to. Link-local and metadata addresses are always closed."""

    private: bool = False
    """Whether private networks are open, which only the server's operator decides."""

    def addresses(self, host: str, port: int) -> list[str]:
        """Returns addresses of a host, in the order in which to try them.

        Raises AddressRefused if any of them is closed, OSError if the name cannot be resolved.
        """
        try:
            found = addresses_in(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except UnicodeError as error:
            raise AddressRefused(f"{host[:80]!r} is no host name") from error
        for address in found:
            reason = closed_because(address, private=self.private)
            if reason:
                raise AddressRefused(f"{host} is {address}, {reason}")
        return list(dict.fromkeys(map(str, found)))[:MOST_TRIED]
