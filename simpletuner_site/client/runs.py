"""Commands on runs: check, start, resume, status, jobs, stop, cancel, save, sample."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from environments.moments import moment_text
from simpletuner_site.client.connection import Api, Refused, job_id, part
from simpletuner_site.client.output import print_json, print_line, print_report, print_table
from simpletuner_site.train.run_screen import numbers_of
from trainer_engine.contract.errors import ExitCode

TO_RUN = "`simpletuner server` starts runs; without one, train with `simpletuner train --environment NAME`."


def check_run(api: Api, arguments: argparse.Namespace) -> int:
    """Check what a start would check. An environment that is not active is checked without its images."""
    name = arguments.name
    if name is not None and name != api.get("/api/configs/active")["name"]:
        if arguments.option:
            raise Refused(f"Options can be laid over the active environment only: simpletuner env activate {name}")
        return _check_stored(api, name, arguments)
    try:
        report = api.post("/api/training/validate", arguments.option)
    except Refused as refusal:
        if "valid" not in refusal.body:
            raise
        report = refusal.body
    if arguments.json:
        print_json(report)
    else:
        print_report(report)
        _print_verdict(report)
    return ExitCode.COMPLETED if report["valid"] else ExitCode.CONFIGURATION


def _check_stored(api: Api, name: str, arguments: argparse.Namespace) -> int:
    report = api.post(f"/api/configs/{part(name)}/validate")
    if arguments.json:
        print_json(report)
    else:
        print_report(report)
        for text in report["warnings"]:
            print_line(str(text), sign="[yellow]![/]")
        words = "its options and paths are valid; activate it to check its images, memory and disk" if report["is_valid"] else "not valid"
        print_line(f"{name}: {words}.", sign="[green]✓[/]" if report["is_valid"] else "[red]✗[/]")
    return ExitCode.COMPLETED if report["is_valid"] else ExitCode.CONFIGURATION


def _print_verdict(report: Mapping[str, Any]) -> None:
    if not report["valid"]:
        count = len(report["problems"])
        print_line(f"{count} problem{'s' if count != 1 else ''} in the way of a start.", sign="[red]✗[/]")
        return
    for one in report.get("understood", {}).get("datasets") or ():
        print_line(f"{one.get('id')}: {one.get('usable')} usable samples", sign="[blue]·[/]")
    print_line(str(report["detail"]))


def start_run(api: Api, arguments: argparse.Namespace) -> int:
    _needs_server(api)
    if arguments.name is not None and arguments.name != api.get("/api/configs/active")["name"]:
        api.post(f"/api/configs/{part(arguments.name)}/activate")
        if not arguments.json:
            print_line(f"{arguments.name} is active now.", sign="[blue]·[/]")
    return _started(api, "/api/training/start", arguments)


def resume_run(api: Api, arguments: argparse.Namespace) -> int:
    _needs_server(api)
    job = job_id(api, arguments.run_name) or _status(api, None)["job_id"]
    if job is None:
        raise Refused("There is no run to go on with.")
    return _started(api, f"/api/training/jobs/{job}/resume", arguments)


def _needs_server(api: Api) -> None:
    if not api.where.url:
        raise Refused(f"No server runs for {api.where.home}. {TO_RUN}")


def _started(api: Api, path: str, arguments: argparse.Namespace) -> int:
    try:
        started = api.post(path, arguments.option)
    except Refused as refusal:
        if "valid" not in refusal.body:
            raise
        if arguments.json:
            print_json(refusal.body)
        else:
            print_report(refusal.body)
            _print_verdict(refusal.body)
        return ExitCode.CONFIGURATION
    if arguments.json:
        print_json(started)
        return 0
    print_report(started)
    for change in started["changed"]:
        print_line(f"changed in the environment: {change['option']} {change['from']} -> {change['to']}", sign="[blue]·[/]")
    position = started["queue_position"]
    where = f"queued at position {position}" if position else "starting"
    number = next((row["number"] for row in api.get("/api/training/jobs")["jobs"] if row["job_id"] == started["job_id"]), "")
    print_line(f"Run {number} is {where}: {api.where.url}/runs/{number}  (simpletuner watch {number})")
    return 0


def _status(api: Api, job: str | None) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/api/training/jobs/{job}" if job else "/api/training/status")
    return found


def show_status(api: Api, arguments: argparse.Namespace) -> int:
    found = _status(api, job_id(api, arguments.run_name))
    if arguments.json:
        print_json(found)
        return 0
    info, progress = found["job_info"] or {}, found["progress"]
    if found["job_id"] is None:
        print_line(f"No run yet at {api.where.text}.", sign="[blue]·[/]")
        return 0
    sign = "[red]✗[/]" if found["status"] == "error" else "[green]✓[/]" if found["status"] == "completed" else "[blue]·[/]"
    print_line(f"{found['status']}: {info.get('environment') or found['job_id']}  {info.get('message') or ''}".rstrip(), sign=sign)
    if info.get("queue_position"):
        print_line(f"waits at position {info['queue_position']} of the queue", sign=" ")
    if progress:
        numbers = numbers_of({**progress, "seconds_per_step": progress["metrics"].get("seconds_per_step")})
        print_line(f"step {progress['step']} of {progress['total_steps']} ({progress['percent']:g} %)  {numbers}", sign=" ")
    for stage in (found["startup_progress"] or {}).values():
        if stage["status"] == "running":
            print_line(f"{stage['label']}: {stage['current']} of {stage['total']}", sign=" ")
    if info.get("hint"):
        print_line(str(info["hint"]), sign=" ")
    if info.get("checkpoint"):
        print_line(f"newest checkpoint: {info['checkpoint']}", sign=" ")
    return 0


def list_jobs(api: Api, arguments: argparse.Namespace) -> int:
    found = api.get("/api/training/jobs")
    if arguments.json:
        print_json(found)
        return 0
    rows = [
        (
            row["number"],
            row["status"],
            row["environment"],
            _steps(row),
            moment_text(row["started_at"] or row["created_at"]),
            row["message"],
        )
        for row in found["jobs"][: arguments.limit]
    ]
    print_table(("run", "status", "environment", "steps", "began", "message"), rows, empty="There are no runs yet.")
    return 0


def _steps(row: dict[str, Any]) -> str:
    return f"{row['step']}/{row['total_steps']}" if row["step"] else ""


def act_on_run(api: Api, arguments: argparse.Namespace) -> int:
    """``stop``, ``cancel``, ``save`` and ``sample``: one call each, on the current run or a named one."""
    named = job_id(api, arguments.run_name)
    answer = api.post(arguments.path, {"job_id": named} if named else {})
    if arguments.json:
        print_json(answer)
    else:
        print_line(str(answer["message"]), sign="[green]✓[/]" if answer.get("job_id") else "[blue]·[/]")
    return 0


def show_option(api: Api, arguments: argparse.Namespace) -> int:
    """One option in full, or those whose name or help has a word."""
    found = api.get("/api/options", family=arguments.family, flavour=arguments.flavour)["options"]
    word = (arguments.key or "").lstrip("-").lower().replace("-", "_")
    exact = [one for one in found if word in (one["name"], *one["aliases"])]
    matching = (
        exact or [one for one in found if word in one["name"]] or [one for one in found if arguments.key.lower() in one["help"].lower()]
    )
    if not matching:
        raise Refused(f"No option has {arguments.key} in its name or its help.")
    if arguments.json:
        print_json(matching)
    elif len(matching) == 1:
        _print_option(matching[0])
    else:
        print_table(("option", "default", "help"), [(one["name"], one["effective_default"], one["help"]) for one in matching])
    return 0


def _print_option(one: dict[str, Any]) -> None:
    rows = {
        "expected": one["expected"],
        "default": "required" if one["required"] else one["effective_default"] if one["effective_default"] is not None else "not set",
        "choices": ", ".join(one["choices"]),
        "bounds": ", ".join(f"{name} {value:g}" for name, value in one["bounds"].items()),
        "other names": ", ".join(one["aliases"]),
        "not available": ", ".join(one["not_available"]),
        "group": one["group"],
    }
    print_line(one["help"], sign=f"[bold]{one['name']}[/]:")
    print_table(("", ""), [(name, value) for name, value in rows.items() if value not in ("", None)])
