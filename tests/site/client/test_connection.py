"""What the commands talk to, how they name runs, and what they make of refusals."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from simpletuner_site.client import connection, output
from simpletuner_site.client.connection import Api, Refused, Where, job_id, part
from simpletuner_site.client.watch import event_line, read_events
from simpletuner_site.server.state import write_server_state

JOBS = {
    "jobs": [
        {"job_id": "aaaa1111-0000-0000-0000-000000000000", "number": 12},
        {"job_id": "aaaa2222-0000-0000-0000-000000000000", "number": 2},
    ]
}


def api_of(monkeypatch: pytest.MonkeyPatch, answer: Callable[[httpx.Request], httpx.Response]) -> Api:
    """An API whose server is a function."""
    client = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://box:8001")
    monkeypatch.setattr(connection, "_client_of", lambda where: client)
    return Api(Where(Path("/home/me/train"), "http://box:8001"))


def test_a_run_is_named_by_number_id_or_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    api = api_of(monkeypatch, lambda request: httpx.Response(200, json=JOBS))
    assert job_id(api, None) is None and job_id(api, "") is None
    assert job_id(api, "12") == JOBS["jobs"][0]["job_id"]
    assert job_id(api, "AAAA2") == JOBS["jobs"][1]["job_id"]
    for wrong, words in (("3", "There is no run 3"), ("aaaa", "several runs"), ("zzz", "There is no run zzz")):
        with pytest.raises(Refused, match=words):
            job_id(api, wrong)


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (httpx.Response(422, json={"detail": "learning_rate is wrong.", "problems": []}), "learning_rate is wrong."),
        (httpx.Response(401, json={"detail": "needs its token"}), "set SIMPLETUNER_TOKEN"),
        (httpx.Response(502, text="<h1>Bad gateway</h1>"), "status 502"),
        (httpx.Response(500, json=["no", "object"]), "status 500"),
    ],
)
def test_a_refusal_keeps_the_reason_of_the_server(response: httpx.Response, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    api = api_of(monkeypatch, lambda request: response)
    with pytest.raises(Refused, match=words) as refused:
        api.post("/api/training/start", {"--seed": "1"})
    assert refused.value.status == response.status_code


def test_a_server_that_hangs_up_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang_up(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("connection reset", request=request)

    with pytest.raises(Refused, match="http://box:8001 does not answer: connection reset"):
        api_of(monkeypatch, hang_up).get("/api/training/status")


def test_an_address_that_is_none_is_refused() -> None:
    for address in ("http://[::1", "http://box:port"):
        with pytest.raises(Refused, match="no address"):
            Api(Where(Path("/x"), address))


def test_the_token_goes_to_the_named_server_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(connection.TOKEN, "a-token")
    client = connection._client_of(Where(Path("/x"), "http://box:8001"))
    assert client.headers["authorization"] == "Bearer a-token" and client.follow_redirects is False
    monkeypatch.delenv(connection.TOKEN)
    assert "authorization" not in connection._client_of(Where(Path("/x"), "http://localhost:8001")).headers


def test_a_name_cannot_leave_its_place_in_an_address() -> None:
    assert part("a/../b?c#d") == "a%2F..%2Fb%3Fc%23d"


# ---- events ----
def pages(events: list[dict[str, Any]], statuses: list[str]) -> Callable[[httpx.Request], httpx.Response]:
    """A server with these events, whose run has one status after the other."""
    left = list(statuses)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/training/events":
            since, limit = int(request.url.params["since_index"]), int(request.url.params["limit"])
            page = [event for event in events if event["index"] >= since][:limit]
            return httpx.Response(200, json={"events": page, "next_index": page[-1]["index"] + 1 if page else since})
        return httpx.Response(200, json={"status": left.pop(0) if len(left) > 1 else left[0]})

    return answer


def test_events_are_read_to_the_end_without_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simpletuner_site.client.watch.POLL_SECONDS", 0.0)
    events = [{"index": index, "type": "notification"} for index in range(1203)]
    for follow in (False, True):
        api = api_of(monkeypatch, pages(events, ["running", "running", "completed"]))
        assert [event["index"] for event in read_events(api, "x", 0, follow=follow)] == list(range(1203))
    assert [event["index"] for event in read_events(api, "x", 1200, follow=False)] == [1200, 1201, 1202]


def test_what_comes_between_the_last_page_and_the_end_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simpletuner_site.client.watch.POLL_SECONDS", 0.0)
    events = [{"index": 0, "type": "training.status"}]
    answer = pages(events, ["running", "completed"])

    def late(request: httpx.Request) -> httpx.Response:
        found = answer(request)
        if found.json().get("status") == "completed" and len(events) == 1:
            events.append({"index": 1, "type": "training.summary"})
        return found

    assert [event["index"] for event in read_events(api_of(monkeypatch, late), "x", 0, follow=True)] == [0, 1]


def test_an_event_is_one_line() -> None:
    base = {"index": 7, "timestamp": "2026-11-29T18:03:11+00:00"}
    said = event_line({**base, "type": "notification", "message": "two\nlines", "title": "x"})
    assert said == "     7 2026-11-29 18:03:11 UTC notification: two lines"
    stage = {"label": "Cache", "status": "running", "progress": {"current": 2, "total": 8}}
    assert event_line({**base, "type": "lifecycle.stage", "stage": stage}).endswith("Cache: running, 2 of 8")
    step = event_line({**base, "type": "training.progress", "data": {"step": 3, "total_steps": 9, "loss": 0.5}})
    assert step.endswith("step 3 of 9, loss 0.5")


# ---- output ----
def test_texts_of_users_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_line("[red]not red[/] [link=x]")
    output.print_table(("a",), [("[bold]x[/]",)])
    output.print_report({"problems": [{"option": "[b]o", "message": "[i]m", "hint": "[u]h", "expected": "[s]e"}]})
    printed = capsys.readouterr().out
    for text in ("[red]not red[/] [link=x]", "[bold]x[/]", "[b]o", "[i]m", "[u]h", "expected: [s]e"):
        assert text in printed


def test_one_problem_is_not_said_twice(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_refusal("It is wrong.", {"problems": [{"option": "x", "message": "It is wrong.", "hint": "do it right"}]})
    said = capsys.readouterr().err
    assert said.count("It is wrong.") == 1 and "do it right" in said
    output.print_refusal("Two are wrong.", {"problems": [{"option": name, "message": f"{name} is wrong."} for name in "xy"]})
    said = capsys.readouterr().err
    assert "x is wrong." in said and "y is wrong." in said


def test_an_empty_table_is_a_sentence_and_json_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("a",), [], empty="There are none.")
    output.print_json({"ä": [1]})
    printed = capsys.readouterr().out
    assert printed.startswith("There are none.\n") and json.loads(printed.partition("\n")[2]) == {"ä": [1]} and "ä" in printed
    assert isinstance(output.console(), Console)


def test_a_token_goes_to_no_server_that_nothing_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMPLETUNER_TOKEN", "a token of another server")
    monkeypatch.delenv("SIMPLETUNER_HOME", raising=False)
    monkeypatch.delenv("SIMPLETUNER_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(connection, "_answers", lambda address: True)
    guessed = connection.find(None, None)
    assert guessed.url == connection.USUAL_ADDRESS and "authorization" not in connection._client_of(guessed).headers
    named = connection.find(None, guessed.url)
    assert connection._client_of(named).headers["authorization"] == "Bearer a token of another server"
    asked = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(401, json={})), base_url=guessed.url)
    monkeypatch.setattr(connection, "_client_of", lambda where: asked)
    with pytest.raises(Refused, match="name it with SIMPLETUNER_URL or --url, and set SIMPLETUNER_TOKEN"):
        Api(guessed).get("/api/configs")


def test_no_proxy_is_asked_for_the_server_of_this_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").mkdir()
    monkeypatch.delenv("SIMPLETUNER_URL", raising=False)
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    write_server_state(tmp_path / "state", os.getpid(), "http://10.0.0.7:8001")
    found = connection.find(tmp_path, None)
    assert found.url == "http://10.0.0.7:8001" and not connection._client_of(found).trust_env
    assert connection._client_of(connection.find(tmp_path, "http://10.0.0.7:8001")).trust_env
