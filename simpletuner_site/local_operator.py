"""Who the admin takes the person at the keyboard for.

On loopback there is no login: whoever passes the guard may start runs through the API, so the admin asks for no more. Django's
admin needs a user to write its history under, and gets one that nobody can log in as.
"""

from __future__ import annotations

from collections.abc import Callable

from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.utils.functional import SimpleLazyObject

OPERATOR = "operator"
ADMIN = "/admin"


def local_operator() -> User:
    """The one account, made on first use: superuser, no password."""
    users = get_user_model()
    operator, _ = users.objects.get_or_create(
        username=OPERATOR,
        defaults={"is_staff": True, "is_superuser": True, "password": "!"},
    )
    return operator


class LocalOperatorMiddleware:
    """Lets the admin see the local operator; other pages know no users."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.path.startswith(ADMIN) and not request.user.is_authenticated:
            request.user = SimpleLazyObject(local_operator)  # type: ignore[assignment]
        return self.get_response(request)
