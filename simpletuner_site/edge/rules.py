"""What the headers of a request decide, for the edge and for the application alike."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from simpletuner_site.edge.refusals import Refusal, too_long
from simpletuner_site.security.guard import Guard, Scope, announced_bytes


@dataclass(frozen=True)
class RequestRules:
    """Who may talk, and how much."""

    guard: Guard
    longest_body_bytes: int

    def refusal(self, scope: Scope) -> Refusal | None:
        """Why the request is refused before anything of its body is read; None where it may pass."""
        reason = self.guard.refusal(scope)
        if reason:
            return Refusal(HTTPStatus.FORBIDDEN, reason)
        if announced_bytes(scope) > self.longest_body_bytes:
            return too_long(self.longest_body_bytes)
        return None
