"""No value of an option, a body or an address ends in an error of the server."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import pytest
from django.urls import URLResolver, get_resolver
from rest_framework.test import APIClient

from tests.helpers.hostile import BODIES, TEXTS, as_json
from tests.helpers.jobs import make_job
from tests.training.conftest import Training
from trainer_engine.config.datasets.names import known_names
from trainer_engine.config.options import REGISTRY
from trainer_engine.config.options.registry import not_available

JSON, FORM = "application/json", "application/x-www-form-urlencoded"
NOT_STREAMING = 426
Place = TypeVar("Place")
TOGETHER = 16
OPTIONS = [*REGISTRY, *not_available()]
DEEP = [name for name, spec in REGISTRY.items() if spec.kind in ("str", "json", "mapping") and not spec.choices]
"""Options whose text gets past the parser, to code that opens, resolves, compiles or computes."""
QUERIES = ["config_type", "include_metadata", "since_index", "limit", "job_id", "media", "output_dir", "format", "last_event_id", "size"]
LYCORIS_KEYS = ["algo", "multiplier", "linear_dim", "linear_alpha", "factor", "constraint", "block_size", "dropout", "apply_preset"]
PRESET_KEYS = ["target_module", "target_name", "exclude_name", "module_algo_map", "name_algo_map", "use_fnmatch"]


class Failures:
    """Collects answers of 5xx, so that one run names all of them."""

    def __init__(self) -> None:
        self.client = APIClient(raise_request_exception=False)
        self.found: Counter[str] = Counter()
        self.calls = 0

    def call(self, method: str, address: str, body: str | bytes | None = None, *, name: str, kind: str = JSON, **headers: Any) -> Any:
        keywords: dict[str, Any] = {"HTTP_ACCEPT": JSON, "HTTP_HOST": "localhost", **headers}
        if body is not None:
            keywords["content_type"] = kind
        answer = self.client.generic(method, address, body or "", **keywords)
        self.calls += 1
        if answer.status_code >= 500 and answer.status_code != NOT_STREAMING:
            _, error, trace = getattr(answer, "exc_info", None) or (None, answer.content[:200], None)
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
            self.found[f"{name}: {type(error).__name__} {str(error)[:80]} {where}"] += 1
        return answer


@pytest.fixture
def failures(caplog: pytest.LogCaptureFixture) -> Iterator[Failures]:
    caplog.set_level(logging.CRITICAL, logger="django.request")
    collected = Failures()
    yield collected
    assert collected.calls
    assert collected.found == Counter()


def document(pairs: dict[str, str]) -> str:
    """A JSON object of raw JSON values."""
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in pairs.items()) + "}"


def complete(training: Training) -> dict[str, str]:
    return {name.lstrip("-"): json.dumps(value) for name, value in training.form.items() if not name.startswith("__")}


def spread(places: Sequence[Place], share: int) -> Iterator[tuple[Place, str]]:
    """(place, JSON value): every place with one value in ``share``, at most as many as there are places, so that each is sent somewhere."""
    values, share = as_json(), min(share, len(places))
    for number, place in enumerate(places):
        yield from ((place, value) for value in values[number % share :: share])


def send_options(training: Training, failures: Failures, share: int) -> None:
    form = complete(training)
    adapter = {"model_type": '"lora"', "lora_type": '"lycoris"', "lycoris_config": '"config/lycoris.json"'}
    for number, (option, value) in enumerate(spread(DEEP, share)):
        changed = document({**form, **(adapter if option == "lycoris_config" else {}), option: value})
        failures.call("POST", "/api/training/validate", changed, name=f"validate {option}")
        if number % 8 == 0:
            failures.call("PUT", "/api/configs/demo", f'{{"config":{changed}}}', name=f"put {option}")
            failures.call("POST", "/api/training/start", changed, name=f"start {option}")


def send_plain_options(training: Training, failures: Failures, share: int) -> None:
    """Numbers, switches and choices: the parser looks at each of them, whatever else is wrong."""
    form = complete(training)
    plain = [name for name in OPTIONS if name not in DEEP]
    groups = [plain[start : start + TOGETHER] for start in range(0, len(plain), TOGETHER)]
    for group, value in spread(groups, share):
        changed = document({**form, **dict.fromkeys(group, value)})
        failures.call("POST", "/api/training/validate", changed, name=f"validate {group[0]}...")


def send_adapters(training: Training, failures: Failures, share: int) -> None:
    good = {"algo": '"lokr"', "multiplier": "1", "linear_dim": "4", "linear_alpha": "1"}
    for key, value in spread(LYCORIS_KEYS, share):
        failures.call("POST", "/api/configs/lycoris/validate", document({**good, key: value}), name=f"lycoris {key}")
    for key, value in spread(PRESET_KEYS, share):
        for shape in (value, f"[{value}]", f'{{"FeedForward":{value}}}', f"{{{value}:{{}}}}", f'{{"ff":{{"dim":{value}}}}}'):
            preset = f"{{{json.dumps(key)}:{shape}}}"
            failures.call("POST", "/api/configs/lycoris/validate", document({**good, "apply_preset": preset}), name=f"lycoris {key}")


def send_datasets(training: Training, failures: Failures, share: int) -> None:
    """What a person writes into the datasets file."""
    path = training.home / "config" / "datasets.json"
    entries = json.loads(path.read_text())
    form = document(complete(training))
    for place, value in spread(sorted(known_names()), share):
        raw = "{" + ",".join([json.dumps(entries[0])[1:-1], f"{json.dumps(place)}:{value}"]) + "}"
        path.write_text(f"[{raw},{json.dumps(entries[1])}]")
        failures.call("POST", "/api/training/validate", form, name=f"dataset {place}")


def addresses() -> Iterator[str]:
    """Every address of the API, a part in braces where a name stands."""

    def walk(resolver: URLResolver, above: str) -> Iterator[str]:
        for entry in resolver.url_patterns:
            text = above + re.sub(r"\(\?P<\w+>[^)]*\)", "{}", str(entry.pattern)).replace("/?", "").strip("^$").replace("\\", "")
            yield from walk(entry, text) if isinstance(entry, URLResolver) else [text]

    yield from (f"/{one.removeprefix('/')}" for one in walk(get_resolver(), "") if not one.lstrip("/").startswith("admin"))


def send_addresses(training: Training, failures: Failures, share: int) -> None:
    job = make_job(training.home)
    found = list(addresses())
    for (address, query), text in spread_texts(list(product(found, QUERIES)), share):
        named = address.replace("{}", str(job.pk) if "/jobs/" in address else "demo")
        failures.call("GET", f"{named}?{query}={quote(text.encode('utf-8', 'surrogatepass'))}", name=f"GET {address}?{query}")
    for (address, method), text in spread_texts(list(product(found, ("GET", "POST", "PUT", "DELETE"))), share):
        if "{}" in address:
            filled = address.replace("{}", quote(text.encode("utf-8", "surrogatepass"), safe=""))
            failures.call(method, filled, "{}" if method != "GET" else None, name=f"{method} {address}")


def spread_texts(places: Sequence[Place], share: int) -> Iterator[tuple[Place, str]]:
    """(place, text): every place with one text in ``share``, and at least one."""
    texts = [text for text in dict.fromkeys(TEXTS) if len(text) < 8_000] + ["\ud800", "\udcff"]
    for number, place in enumerate(places):
        yield from ((place, text) for text in texts[number % min(share, len(texts)) :: share])


def send_bodies(training: Training, failures: Failures, share: int) -> None:
    """Bodies that are no JSON or no form at all, to every address, in every declared type and in some that are not."""
    types = (
        JSON,
        "application/json; charset=utf-16",
        "multipart/form-data",
        "multipart/form-data; boundary=" + "b" * 300,
        FORM,
        "text/plain",
        "",
    )
    for address in addresses():
        named = address.replace("{}", "demo")
        for number, body in enumerate(BODIES):
            for kind in types if share == 1 else types[number % len(types) :][:1]:
                for method in ("POST", "PUT"):
                    failures.call(method, named, body, kind=kind, name=f"{method} {address} {kind[:30]} {body[:20]!r}")


def send_everything(training: Training, failures: Failures, share: int) -> None:
    """One value for every option at once."""
    for value in [value for value in as_json() if len(value) < 1_000][::share]:
        everything = dict.fromkeys(OPTIONS, value)
        failures.call("POST", "/api/training/validate", document(everything), name=f"all options {value[:30]}")


FAST = {
    send_options: 128,
    send_plain_options: 32,
    send_adapters: 24,
    send_datasets: 128,
    send_addresses: 400,
    send_bodies: 32,
    send_everything: 8,
}
"""Fast tests send each place one value in so many; between them the places get every value."""
WHOLE = {send_options: 1, send_plain_options: 1, send_adapters: 2, send_datasets: 4, send_addresses: 8, send_bodies: 1, send_everything: 1}


def test_every_value_is_sent_to_some_place() -> None:
    for places, send in ((DEEP, send_options), (sorted(known_names()), send_datasets), (PRESET_KEYS, send_adapters)):
        assert {value for _, value in spread(list(places), FAST[send])} == set(as_json())


@pytest.mark.parametrize(("send", "share"), FAST.items(), ids=lambda one: getattr(one, "__name__", None))
def test_no_value_ends_in_an_error_of_the_server(send: Any, share: int, training: Training, failures: Failures) -> None:
    failures.call("POST", "/api/configs/environments", '{"name":"demo","model_family":"pixart_sigma"}', name="setup")
    send(training, failures, share)


@pytest.mark.faults
@pytest.mark.parametrize(("send", "share"), WHOLE.items(), ids=lambda one: getattr(one, "__name__", None))
def test_no_value_anywhere_ends_in_an_error_of_the_server(send: Any, share: int, training: Training, failures: Failures) -> None:
    failures.call("POST", "/api/configs/environments", '{"name":"demo","model_family":"pixart_sigma"}', name="setup")
    send(training, failures, share)


def test_no_form_ends_in_an_error_of_the_server(training: Training, failures: Failures) -> None:
    fields = "&".join(f"{quote(one)}={quote(other)}" for one, other in zip(TEXTS[:60], TEXTS[60:120], strict=True))
    for body in (fields, "&".join(["a=1"] * 6_000), "%ED%A0%80=%ED%A0%80", "=" * 500, "&" * 500, "--seed=" + "9" * 5_000):
        for call in ("validate", "start", "stop", "cancel", "checkpoints", "validation/run"):
            failures.call("POST", f"/api/training/{call}", body, kind=FORM, name=f"form {call}")


def test_no_header_ends_in_an_error_of_the_server(training: Training, failures: Failures) -> None:
    form = document(complete(training))
    for text in [text for text in TEXTS if text.isprintable() and text.isascii()][::2]:
        failures.call("GET", "/api/training/status", name="accept", HTTP_ACCEPT=text)
        failures.call("POST", "/api/training/validate", "{}", name="content type", kind=text)
        failures.call("POST", "/api/training/start", form.replace("20", "0"), name="key", HTTP_IDEMPOTENCY_KEY=text)
