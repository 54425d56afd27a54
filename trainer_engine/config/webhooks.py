"""Parses ``webhook_config``: the webhooks that events are posted to."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from trainer_engine.config.json_fields import WrongValue, entries_of, parse_bool, read_json
from trainer_engine.config.secrets import HIDDEN, hidden_address
from trainer_engine.contract.errors import Problem, errors_in
from trainer_engine.contract.events import Severity
from trainer_engine.contract.files import read_document

OPTION = "webhook_config"
KINDS = ("raw", "discord", "slack", "template")
ADDRESS = {"raw": "callback_url", "discord": "webhook_url", "slack": "webhook_url", "template": "callback_url"}
"""Type of a webhook -> the field with its URL."""
CHATS = ("discord", "slack")
"""Types whose messages people read."""
LOG_LEVELS = {
    "debug": Severity.DEBUG,
    "info": Severity.INFO,
    "warning": Severity.WARNING,
    "error": Severity.ERROR,
    "critical": Severity.ERROR,
}
"""``log_level`` -> the lowest severity that is posted. The highest severity of an event is error."""
ORDER = list(Severity)
FIELDS = ("webhook_type", "callback_url", "webhook_url", "log_level", "ssl_no_verify", "auth_token", "message_prefix", "secret", "template")
PLACEHOLDERS = ("title", "message", "body", "type", "severity", "job_id", "index", "timestamp", "prefix", "auth_token")
"""Placeholders of a template."""
MOST_TARGETS = 20


@dataclass(frozen=True)
class WebhookTarget:
    """One webhook that events are posted to."""

    kind: str
    """``raw`` (the event as JSON), ``discord``, ``slack``, or ``template`` (custom text)."""
    url: str
    log_level: str = "info"
    ssl_no_verify: bool = False
    auth_token: str = ""
    """Sent in the header X-API-Key, or in a template with its placeholder."""
    message_prefix: str = ""
    """Text in front of messages of Discord, Slack and templates."""
    secret: str = ""
    """Key of the signature; empty for unsigned posts."""
    template: str = ""
    place: int = field(default=0, compare=False)
    """Index of its entry in ``webhook_config``, from 0."""

    def wants(self, severity: str) -> bool:
        """Whether events of this severity are posted."""
        return ORDER.index(Severity(severity)) >= ORDER.index(LOG_LEVELS[self.log_level])

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def shown(self) -> dict[str, Any]:
        """Returns the fields with secrets hidden, including the path and the query of the URL, where services put keys."""
        address = hidden_address(self.url, path_is_password=True)
        hidden = {name: HIDDEN for name in ("auth_token", "secret") if getattr(self, name)}
        return {**self.as_dict(), "url": address, **hidden}

    @property
    def has_secrets(self) -> bool:
        return self.shown() != self.as_dict()

    @property
    def holds_hidden(self) -> bool:
        """Whether a secret of it is ``***`` instead of its value."""
        return HIDDEN in self.url or HIDDEN in (self.auth_token, self.secret)


def parse_webhooks(document: object, where: str = OPTION) -> tuple[list[WebhookTarget], list[Problem]]:
    """Returns the webhooks in a list or a single object, and every problem with them."""
    entries, problems = entries_of(document, where, "Webhooks", MOST_TARGETS)
    targets: list[WebhookTarget] = []
    for number, entry in enumerate(entries):
        found = list(_problems_of(entry, f"{where}[{number}]"))
        problems += found
        if not errors_in(found):
            targets.append(_target(entry, number))
    return targets, problems


def parse_webhook_text(text: str, where: str = OPTION) -> tuple[list[WebhookTarget], list[Problem]]:
    """Parses webhooks from JSON text like ``parse_webhooks``. Empty text has none."""
    if not text.strip():
        return [], []
    document, problems = read_json(text, where)
    return ([], problems) if problems else parse_webhooks(document, where)


def _kind_of(entry: Mapping[str, Any]) -> str:
    return str(entry.get("webhook_type", "")).strip().lower()


def _problems_of(entry: Mapping[str, Any], where: str) -> Iterator[Problem]:
    for name in entry:
        if name not in FIELDS:
            yield Problem.error(f"{where}.{name}", "unknown_field", f"There is no field {name!r}.", expected=", ".join(FIELDS))
    kind = _kind_of(entry)
    if kind not in KINDS:
        message = "webhook_type is missing or not one of the types."
        yield Problem.error(f"{where}.webhook_type", "not_a_choice", message, got=entry.get("webhook_type"), expected=", ".join(KINDS))
        return
    yield from _address_problems(entry, kind, where)
    level = str(entry.get("log_level") or "info").lower()
    if level not in LOG_LEVELS:
        message = "log_level is not one of the levels."
        yield Problem.error(f"{where}.log_level", "not_a_choice", message, got=entry.get("log_level"), expected=", ".join(LOG_LEVELS))
    try:
        parse_bool(entry.get("ssl_no_verify") or False)
    except WrongValue as wrong:
        yield Problem.error(f"{where}.ssl_no_verify", wrong.code, f"ssl_no_verify {wrong}.", got=entry.get("ssl_no_verify"))
    for name in ("auth_token", "message_prefix", "secret"):
        yield from _text_problems(entry.get(name), f"{where}.{name}")
    token = str(entry.get("auth_token") or "")
    if not token.isascii() or token != token.strip():
        message = "auth_token is sent in a header: it must be ASCII text without spaces at its ends."
        yield Problem.error(f"{where}.auth_token", "not_text", message, expected="ASCII text")
    yield from _template_problems(entry, kind, where)


def _text_problems(value: object, where: str) -> Iterator[Problem]:
    if value is not None and not (isinstance(value, str) and value.isprintable()):
        yield Problem.error(where, "not_text", "This is not a single line of text.", got=type(value).__name__, expected="text")


def _address_problems(entry: Mapping[str, Any], kind: str, where: str) -> Iterator[Problem]:
    name = ADDRESS[kind]
    url = entry.get(name)
    expected = "a URL that begins with https:// or http://"
    if not url:
        yield Problem.error(f"{where}.{name}", "missing", f"A webhook of the type {kind} needs {name}.", expected=expected)
        return
    if HIDDEN in str(url):
        return  # the stored URL was checked when it was stored
    try:
        parts = urlsplit(str(url))
        is_right = isinstance(url, str) and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_right = is_right and url.isascii() and url.isprintable() and " " not in url
    except ValueError:
        is_right = False
    if not is_right:
        yield Problem.error(
            f"{where}.{name}",
            "not_an_address",
            f"{name} is not a valid URL.",
            got=hidden_address(url, path_is_password=True),
            expected=expected,
        )


def _template_problems(entry: Mapping[str, Any], kind: str, where: str) -> Iterator[Problem]:
    template, where = entry.get("template"), f"{where}.template"
    expected = f"text with placeholders such as {', '.join('{' + name + '}' for name in PLACEHOLDERS)}"
    if kind != "template":
        if template:
            yield Problem.note(where, "no_effect", "template has an effect only on webhooks of the type template.")
        return
    if not isinstance(template, str) or not template.strip() or any("\ud800" <= character <= "\udfff" for character in template):
        yield Problem.error(where, "missing", "A webhook of the type template needs a template.", got=template, expected=expected)
        return
    try:
        fields = [(name, f"{spec or ''}{conversion or ''}") for _, name, spec, conversion in string.Formatter().parse(template)]
    except ValueError as error:
        message = f"The template is not valid: {error}. Write a literal brace twice."
        yield Problem.error(where, "not_a_template", message, got=template, expected=expected)
        return
    wrong = sorted({name for name, form in fields if name is not None and (name not in PLACEHOLDERS or form)})
    for name in wrong:
        message = f"There is no placeholder {{{name}}} of this form. Write a literal brace twice."
        yield Problem.error(where, "unknown_placeholder", message, got=name, expected=expected)
    if not wrong and template.lstrip().startswith(("{{", "[{{")) and not is_json_template(template):
        message = "The template looks like JSON but is not valid JSON when it is filled in; it is posted as plain text."
        yield Problem.warning(where, "not_json", message, got=template, hint="put text in quotes, and write every brace of the JSON twice")


def is_json_template(template: str) -> bool:
    """Whether a template gives a JSON object or list when its placeholders are filled in."""
    try:
        document = read_document(template.format_map({**dict.fromkeys(PLACEHOLDERS, "text"), "index": "0"}))
    except ValueError:
        return False
    return isinstance(document, (dict, list))


def _target(entry: Mapping[str, Any], place: int) -> WebhookTarget:
    kind = _kind_of(entry)
    return WebhookTarget(
        kind=kind,
        url=str(entry[ADDRESS[kind]]),
        log_level=str(entry.get("log_level") or "info").lower(),
        ssl_no_verify=parse_bool(entry.get("ssl_no_verify") or False),
        auth_token=entry.get("auth_token") or "",
        message_prefix=entry.get("message_prefix") or "",
        secret=entry.get("secret") or "",
        template=entry.get("template") or "" if kind == "template" else "",
        place=place,
    )
