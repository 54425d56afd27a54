"""The API for the command line: of a running server, or of a home folder whose server does not run.

Without a server the same views answer in this process, so a command does the same in both cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from simpletuner_site import DEFAULT_PORT
from simpletuner_site.environment import read_command_environment
from simpletuner_site.server.state import read_server_state

ANSWER_SECONDS = 900.0
"""A start examines the datasets before it answers."""
USUAL_ADDRESS = f"http://localhost:{DEFAULT_PORT}"
PROBE_SECONDS = 1.0
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
TOKEN = "SIMPLETUNER_TOKEN"
ADDRESS = "SIMPLETUNER_URL"


class Refused(Exception):
    """The API refused a call, or cannot be reached; the message is its reason."""

    def __init__(self, detail: str, *, status: int = 0, body: Mapping[str, Any] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.body = body or {}


@dataclass(frozen=True)
class Where:
    """What a command talks to."""

    home: Path
    url: str = ""
    """Address of a server; empty for the files of ``home``."""
    is_guess: bool = False
    """Whether nothing names the server. Any account of this machine may listen at its port, so it gets no token."""
    is_here: bool = False
    """Whether it runs on this machine, so that no proxy of the environment leads to it."""

    @property
    def text(self) -> str:
        return self.url or f"the files of {self.home} (no server runs there)"


def find(home: Path | None, url: str | None) -> Where:
    """The named server, else the one that serves the home, else one at the usual address, else the home's files.

    The usual address is tried only if neither ``--home`` nor ``SIMPLETUNER_HOME`` is given and the working directory has no ``state/``: a
    server elsewhere on this machine must not answer for a home that is named or found.
    """
    given = read_command_environment()
    folder = (home or given.home).expanduser().absolute()
    if named := url or given.url:
        return Where(folder, named.rstrip("/"))
    running = read_server_state(folder / "state")
    if running is not None:
        return Where(folder, running.url, is_here=True)
    names_home = home is not None or given.names_home
    if not names_home and not (folder / "state").exists() and _answers(USUAL_ADDRESS):
        return Where(folder, USUAL_ADDRESS, is_guess=True, is_here=True)
    return Where(folder)


def _answers(address: str) -> bool:
    try:
        httpx.get(f"{address}/health", timeout=PROBE_SECONDS, trust_env=False)
    except httpx.HTTPError:
        return False
    return True


class Api:
    """Calls of the API. Every method raises Refused with the server's reason."""

    def __init__(self, where: Where) -> None:
        self.where = where
        self._client = _client_of(where)

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def get(self, path: str, **parameters: Any) -> Any:
        return self._call("GET", path, params={name: value for name, value in parameters.items() if value is not None})

    def post(self, path: str, body: Any = None) -> Any:
        return self._call("POST", path, json={} if body is None else body)

    def put(self, path: str, body: Any) -> Any:
        return self._call("PUT", path, json=body)

    def _call(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise Refused(f"{self.where.text} does not answer: {error}") from error
        try:
            body = response.json()
        except ValueError:
            body = {}
        if response.is_success:
            return body
        if not isinstance(body, dict):
            body = {}
        if response.status_code == 401:
            name = f" name it with {ADDRESS} or --url, and" if self.where.is_guess else ""
            raise Refused(f"{self.where.url} needs its token:{name} set {TOKEN}.", status=401)
        raise Refused(str(body.get("detail") or f"{method} {path}: status {response.status_code}"), status=response.status_code, body=body)


def _client_of(where: Where) -> httpx.Client:
    headers = {"Accept": "application/json"}
    if where.url:
        token = read_command_environment().token
        if token and not where.is_guess:
            headers["Authorization"] = f"Bearer {token}"
        try:
            # A proxy of the environment cannot reach this machine's own addresses, and would read the token.
            is_local = where.is_here or urlsplit(where.url).hostname in LOCAL_NAMES
            return httpx.Client(base_url=where.url, timeout=ANSWER_SECONDS, headers=headers, trust_env=not is_local)
        except (httpx.InvalidURL, ValueError) as error:
            raise Refused(f"{where.url} is no address of a server: {error}") from error
    return httpx.Client(transport=httpx.WSGITransport(_application(where.home)), base_url="http://localhost", headers=headers)


def _application(home: Path) -> Any:
    """Django in this process, for the home. Raises BadEnvironment, OSError."""
    from simpletuner_site.server.boot import boot
    from simpletuner_site.server.migrations_state import migrate_if_needed

    boot(home)
    migrate_if_needed()
    from django.core.wsgi import get_wsgi_application

    return get_wsgi_application()


def part(name: str) -> str:
    """A name as one part of a path."""
    return quote(name, safe="")


def job_id(api: Api, text: str | None) -> str | None:
    """The id of a run that is named by its number, its id or the beginning of that; None stands for the current or last run."""
    if not text:
        return None
    rows = api.get("/api/training/jobs")["jobs"]
    if text.isdecimal() and len(text) < 8:
        found = [row["job_id"] for row in rows if row["number"] == int(text)]
    else:
        found = [row["job_id"] for row in rows if row["job_id"].startswith(text.lower())]
    if len(found) == 1:
        return str(found[0])
    raise Refused(f"There is no run {text}; `simpletuner jobs` lists them." if not found else f"{text} begins the id of several runs.")
