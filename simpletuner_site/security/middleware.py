"""Django middleware: the local operator as the user of the admin, and a content security policy on every page.

There is no login on loopback: whoever passes the guard may start runs through the API, so the admin asks for no more. Django's
admin needs a user for its history, and gets an account that nobody can log in to.
"""

from __future__ import annotations

from collections.abc import Callable

from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpRequest, HttpResponse
from django.utils.functional import SimpleLazyObject

OPERATOR = "operator"
FLAGS = {"is_active": True, "is_staff": True, "is_superuser": True}
ADMIN = "/admin"


def local_operator() -> User:
    """The one account, created on first use: a superuser without a password.

    Its flags are restored on every use, because nobody could log in to do so.
    """
    users = get_user_model()
    operator, _ = users.objects.get_or_create(username=OPERATOR, defaults={**FLAGS, "password": "!"})
    if any(getattr(operator, name) is not value for name, value in FLAGS.items()):
        users.objects.filter(pk=operator.pk).update(**FLAGS)
        operator.refresh_from_db()
    return operator


def may_do_all(user: User | AnonymousUser) -> bool:
    """Whether this user of a session may see every page of the admin."""
    return user.is_authenticated and all(getattr(user, name) for name in FLAGS)


class LocalOperatorMiddleware:
    """Makes the local operator the user of the admin; other pages have no users."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.path.startswith(ADMIN) and not may_do_all(request.user):
            request.user = SimpleLazyObject(local_operator)  # type: ignore[assignment]
        return self.get_response(request)


POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline'",  # Swagger UI and ReDoc use inline scripts
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)


class ContentPolicyMiddleware:
    """Adds the header to every answer of Django."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response
