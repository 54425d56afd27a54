"""Prints ``docs/http.md``: every call of the HTTP API, from the schema that the server publishes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand
from drf_spectacular.generators import SchemaGenerator

COMMAND = "python manage.py api_page > docs/http.md"
INTRODUCTION = f"""# The HTTP API

Every call of the server, printed from its schema by `{COMMAND}`.
`/docs` shows the same with every field and lets you try it; `/openapi.json` is for programs that generate a client. A browser shows each
address as a form.

- Addresses work with and without a slash at their end.
- Names of options and fields work with and without leading dashes, in forms and in JSON. A `config` in an answer has dashes:
  `--learning_rate`.
- `validate`, `start`, `cancel` and `resume` of runs answer with a piece of HTML, and with JSON for `Accept: application/json` or
  `?format=json`.
- An error has a status of 400 or above and says everything that is wrong:
  `{{"detail": "...", "problems": [{{"option", "code", "message", "got", "expected", "hint"}}]}}`.
- Secrets are shown as `***`. A request that sends `***` back keeps the secret that is stored.
- `Idempotency-Key` on `start` and `resume`: the same key gives the same job again.
- Changes of an environment are revisions: `revisions` lists them, `diff` compares two, `restore` brings one back, also after a deletion.
- A queued run keeps the paths of the files that it was accepted with: rename an environment when none of its runs waits.
- Files of a run are downloaded in parts where a `Range` header asks for it: `curl -C - -O` goes on where it broke. At most 8 at a time; a
  client that stops reading is cut off.
"""
TITLES = {"configurations": "Environments", "training": "Runs"}
METHODS = ("get", "post", "put", "delete")


def page() -> Iterator[str]:
    """Yields the lines of the page."""
    calls = SchemaGenerator().get_schema(request=None, public=True)["paths"]  # type: ignore[no-untyped-call]
    yield INTRODUCTION
    for tag, title in TITLES.items():
        yield f"## {title}\n"
        yield "| call | what it does | parameters |"
        yield "|---|---|---|"
        for address, methods in sorted(calls.items()):
            yield from (_row(method, address, methods[method]) for method in METHODS if tag in methods.get(method, {}).get("tags", ()))
        yield ""


def _row(method: str, address: str, operation: dict[str, Any]) -> str:
    given = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query" and one["name"] != "format"]
    return f"| `{method.upper()} {address}` | {operation['summary']} | {', '.join(f'`{name}`' for name in given)} |"


class Command(BaseCommand):
    help = "Print docs/http.md."

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write("\n".join(page()).rstrip())
