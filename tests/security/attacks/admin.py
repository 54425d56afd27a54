"""The admin, where every visitor is the operator."""

from __future__ import annotations

import itertools
import re
import time

import httpx

from tests.security.target import Target

FIELDS = ("name", "config", "created_at", "description", "tags", "id", "status", "job__id", "revisions__config", "password", "__class__")
LOOKUPS = ("", "__contains", "__range", "__year", "__regex", "__iregex", "__in", "__isnull", "__gt", "__week_day", "__search", "__x")
VALUES = ("x", "-1", "", "99999999999999999999", "%00", "1,2", "(a%2B)%2B%24", "%ED%A0%80")


def _csrf(page: httpx.Response) -> str:
    found = re.search(r'csrfmiddlewaretoken" value="([^"]*)"', page.text)
    return found.group(1) if found else ""


def attack_schedule_a_function(target: Target) -> list[str]:
    """A schedule of django-q2 names any function of Python."""
    canary = target.canary("schedule")
    with target.client(headers={}) as client:
        page = client.get("/admin/django_q/schedule/add/")
        form = {
            "csrfmiddlewaretoken": _csrf(page),
            "name": "x",
            "func": "subprocess.getoutput",
            "args": f"'touch {canary}'",
            "schedule_type": "O",
            "repeats": "1",
            "next_run_0": "2020-01-01",
            "next_run_1": "00:00:00",
            "minutes": "",
            "hook": "",
            "kwargs": "",
            "cron": "",
            "cluster": "",
            "intended_date_kwarg": "",
        }
        answer = client.post("/admin/django_q/schedule/add/", data=form)
    if page.status_code == 404 and answer.status_code >= 400:
        return []
    deadline = time.monotonic() + 40
    while not canary.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    return ["a scheduled function ran" if canary.exists() else f"the schedule form answers {page.status_code}"]


def attack_pages_of_other_packages(target: Target) -> list[str]:
    """Models that are not the project's own have no page."""
    paths = [
        f"/admin/{one}/" for one in ("django_q", "django_q/ormq", "django_q/success", "django_q/failure", "auth", "auth/user", "auth/group")
    ]
    return [f"{path} answers {code}" for path in paths if (code := target.server.get(path).status_code) == 200]


def attack_lock_the_operator_out(target: Target) -> list[str]:
    """The operator's account loses its rights."""
    with target.client(headers={}) as client:
        client.get("/admin/")
        page = client.get("/admin/auth/user/1/change/")
        dates = {f"{name}_{part}": "" for name in ("last_login", "date_joined") for part in (0, 1)}
        dates |= {"date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"}
        client.post("/admin/auth/user/1/change/", data={"csrfmiddlewaretoken": _csrf(page), "username": "operator", **dates})
        left = client.get("/admin/", follow_redirects=True)
    return [] if left.status_code == 200 and "/login/" not in str(left.url) else [f"the admin is locked: {left.url}"]


def attack_lookups(target: Target) -> list[str]:
    """Query strings of lists: any field, any lookup, any value."""
    through = []
    with target.client(10) as client:
        for model in ("environments/environment", "training/job"):
            for field, lookup, value in itertools.product(FIELDS, LOOKUPS, VALUES):
                path = f"/admin/{model}/?{field}{lookup}={value}"
                try:
                    code = client.get(path).status_code
                except httpx.TransportError as error:
                    return [*through, f"{path}: {error!r}"]
                if code >= 500:
                    through.append(f"{path} answers {code}")
    return through


def attack_pattern_in_a_lookup(target: Target) -> list[str]:
    """SQLite matches ``__regex`` with Python's engine, in the server's process."""
    name = target.environment()
    stored = target.get(f"/api/configs/{name}").json()["config"]
    target.put(f"/api/configs/{name}", {"name": name, "config": stored, "description": "a" * 47 + "!"})
    try:
        target.client(10).get("/admin/environments/environment/?description__regex=(a%2B)%2B$")
    except httpx.TimeoutException:
        return ["a pattern in the query string freezes the server"]
    return []


def attack_webhooks_of_the_admin(target: Target) -> list[str]:
    """The pages of stored targets: without their token, to closed addresses, over other files, and to make a page run a script."""
    evil, hook = "'\"></textarea><script>alert(1)</script>", "http://127.0.0.1:9/hook"
    form = {"targets": "1", "0-webhook_type": "raw", "0-log_level": "info", "0-address": hook, "name": "attack"}
    through = []
    with target.client(headers={}) as client:
        if client.post("/admin/webhooks", data=form).status_code != 403:
            through.append("a form without its token is taken")
        form["csrfmiddlewaretoken"] = _csrf(client.get("/admin/webhooks"))
        for address in ("http://169.254.169.254/latest", "file:///etc/passwd", "http://[fe80::1]/", f"javascript:{evil}", evil):
            answer = client.post("/admin/webhooks", data=form | {"0-address": address})
            if answer.status_code != 422 or "<script>alert" in answer.text:
                through.append(f"the address {address} answers {answer.status_code}")
        for name in ("../attack", "..", ".hidden", "a/b", "a\x00b", evil):
            answer = client.post("/admin/webhooks", data=form | {"name": name})
            if answer.status_code != 422 or "<script>alert" in answer.text:
                through.append(f"the name {name!r} answers {answer.status_code}")
        told = {
            "0-auth_token": "canary-of-a-token",
            "0-message_prefix": evil,
            "0-template": f"{{message}} {evil}",
            "0-webhook_type": "template",
        }
        client.post("/admin/webhooks", data=form | told)
        environment = target.environment()
        pages = [client.get("/admin/webhooks/attack"), client.get(f"/admin/webhooks?environment={environment}")]
        pages.append(client.get("/admin/environments/environment/1/change/"))
        for page in pages:
            if "<script>alert" in page.text or "canary-of-a-token" in page.text or hook in page.text:
                through.append(f"{page.url} shows a secret or runs a script")
        if pages[0].status_code != 200:
            through.append("the targets of the attack were not stored, so nothing was shown")
    return through
