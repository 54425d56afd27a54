"""Parses ``publishing_config``: the storage providers that a run is uploaded to. Standard library only."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from trainer_engine.config.json_fields import WrongValue, entries_of, parse_bool, read_json
from trainer_engine.config.secrets import HIDDEN
from trainer_engine.contract.errors import Problem, errors_in
from trainer_engine.contract.messages import Suggestions

OPTION = "publishing_config"
HUB = "hub"
S3, B2, AZURE, DROPBOX = "s3", "backblaze_b2", "azure_blob", "dropbox"
PROVIDERS = {
    **dict.fromkeys(("s3", "s3-compatible", "s3_compatible", "r2"), S3),
    **dict.fromkeys(("backblaze_b2", "b2"), B2),
    **dict.fromkeys(("azure_blob", "azure"), AZURE),
    "dropbox": DROPBOX,
}
"""Values of ``provider`` in a configuration -> the provider."""
S3_FIELDS = (
    *("bucket", "region", "access_key", "secret_key", "session_token", "profile", "endpoint_url", "public_base_url", "use_ssl"),
    *("request_headers", "force_single_part"),
)
FIELDS: Mapping[str, tuple[str, ...]] = {
    S3: S3_FIELDS,
    B2: S3_FIELDS,
    AZURE: ("container", "connection_string", "account_url", "account_name", "account_key", "public_base_url"),
    DROPBOX: ("token",),
}
"""Fields of each provider in addition to ``provider``, ``name`` and ``base_path``."""
ALIASES = {
    "type": "provider",
    "region_name": "region",
    "aws_access_key_id": "access_key",
    "aws_secret_access_key": "secret_key",
    "container_name": "container",
    "access_token": "token",
}
SECRET_FIELDS = (
    *("access_key", "aws_access_key_id", "secret_key", "aws_secret_access_key", "session_token"),
    *("connection_string", "account_key", "token", "access_token", "request_headers"),
)
"""Fields that are always hidden."""
ADDRESS_FIELDS = ("endpoint_url", "public_base_url", "account_url")
"""Fields with URLs, whose query may be a signature."""
PLACE_FIELDS = ("provider", "type", "region", "region_name", "use_ssl", "profile", "account_name")
"""Fields that, with the URLs, identify the machine that secrets are sent to."""
SWITCHES = ("use_ssl", "force_single_part")
LIBRARIES = {S3: "boto3", B2: "boto3", AZURE: "azure.storage.blob", DROPBOX: "dropbox"}
"""Provider -> Python package of its client. The hub's is always installed."""
MOST_TARGETS = 10
DEVELOPMENT_STORAGE = "http://127.0.0.1:10000/devstoreaccount1"
HIDDEN_SECRET = "hidden_secret"
REGION = re.compile(r"[A-Za-z0-9-]{1,64}")
ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


@dataclass(frozen=True)
class PublishTarget:
    """One provider that a run uploads to."""

    provider: str
    """``hub``, ``s3``, ``backblaze_b2``, ``azure_blob`` or ``dropbox``; ``http`` for a URL that is only read."""
    bucket: str = ""
    """Bucket, container of Azure, or repository on the hub."""
    name: str = ""
    """Name chosen by the user; empty if none."""
    base_path: str = ""
    """Folder at the provider, without slashes at its ends."""
    region: str = ""
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    profile: str = ""
    endpoint_url: str = ""
    public_base_url: str = ""
    use_ssl: bool = True
    request_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    force_single_part: bool = False
    connection_string: str = field(default="", repr=False)
    account_url: str = field(default="", repr=False)
    account_name: str = ""
    account_key: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    private: bool = True
    """Hub: whether a new repository is created as private."""
    takes_checkpoints: bool = True
    """Whether checkpoints are uploaded too, and not only the result of a finished run."""
    place: int = field(default=0, compare=False)
    """Index of its entry in ``publishing_config``, from 0."""

    @property
    def key(self) -> str:
        """Identifies the place that is uploaded to, independent of credentials."""
        account = self.account_name or _connection_fields(self.connection_string).get("accountname", "")
        host = urlsplit(self.endpoint_url or self.account_url).netloc or account
        return "/".join(part for part in (f"{self.provider}:", host, self.bucket, self.base_path) if part)

    @property
    def blob_address(self) -> str:
        """Azure: the URL that blobs are sent to. It may contain a signature."""
        fields = _connection_fields(self.connection_string)
        if not fields:
            return self.account_url or f"https://{self.account_name}.blob.core.windows.net"
        if fields.get("usedevelopmentstorage", "").lower() == "true":
            return DEVELOPMENT_STORAGE
        scheme, suffix = fields.get("defaultendpointsprotocol", "https"), fields.get("endpointsuffix", "core.windows.net")
        address = fields.get("blobendpoint") or f"{scheme}://{fields.get('accountname', '')}.blob.{suffix}"
        return address if "://" in address else f"https://{address}"

    @property
    def label(self) -> str:
        """Name to show to people."""
        return self.name or self.key

    def as_dict(self) -> dict[str, Any]:
        """Returns all fields, including secrets."""
        return asdict(self)


def parse_publishing(document: object, where: str = OPTION) -> tuple[list[PublishTarget], list[Problem]]:
    """Returns the providers in a list or a single object, and every problem with them."""
    entries, problems = entries_of(document, where, "Storage providers", MOST_TARGETS)
    suggestions = Suggestions()
    targets: list[PublishTarget] = []
    for number, entry in enumerate(entries):
        place = f"{where}[{number}]"
        fields, found = _by_canonical_name(entry, place)
        found += _problems_of(fields, place, suggestions)
        problems += found
        if not errors_in(found):
            targets.append(_target(fields, number))
    keys = [target.key for target in targets]
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        problems.append(
            Problem.error(where, "same_place_twice", f"Two entries upload to the same place: {key}.", hint="remove one of them")
        )
    return targets, problems


def parse_publishing_text(text: str, where: str = OPTION) -> tuple[list[PublishTarget], list[Problem]]:
    """Parses providers from JSON text like ``parse_publishing``. Empty text has none. The text is never shown, since it may hold keys."""
    if not text.strip():
        return [], []
    document, problems = read_json(text, where)
    return ([], problems) if problems else parse_publishing(document, where)


def how_to_install(provider: str) -> str:
    """Returns the command that installs a provider's client. Packages are named like their modules, with hyphens."""
    return f"pip install {LIBRARIES[provider].replace('.', '-')}"


def is_installed(provider: str) -> bool:
    """Whether a provider's client is installed. It is not imported."""
    library = LIBRARIES.get(provider, "")
    try:
        return not library or importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def _by_canonical_name(entry: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[Problem]]:
    """Returns the fields by canonical name, without empty ones, and a problem for each field given twice."""
    fields: dict[str, Any] = {}
    problems = []
    for given, value in entry.items():
        name = ALIASES.get(str(given), str(given))
        if value is None or value == "":
            continue
        if name in fields and fields[name] != value:
            message = f"{name} is given twice, also as {given}, with different values."
            problems.append(Problem.error(f"{where}.{name}", "conflicting_values", message, hint="send one of them"))
        fields[name] = value
    return fields, problems


def _problems_of(fields: Mapping[str, Any], where: str, suggestions: Suggestions) -> Iterator[Problem]:
    provider = PROVIDERS.get(str(fields.get("provider", "")).strip().lower())
    if provider is None:
        words = ", ".join(sorted({*PROVIDERS.values()}))
        got = str(fields.get("provider", ""))
        hint = suggestions.nearest(got.lower(), PROVIDERS)
        code = "unknown_provider" if got else "missing"
        # A value that resembles no provider is not repeated: the user's other files use "type" for other things.
        shown = got if hint else None
        message = "provider is missing or not a known storage provider."
        yield Problem.error(f"{where}.provider", code, message, got=shown, expected=words, hint=hint)
        return
    allowed = ("provider", "name", "base_path", *FIELDS[provider])
    for name in fields:
        if name not in allowed:
            hint = suggestions.nearest(name, [*allowed, *ALIASES])
            message = f"{provider} has no field {name!r}."
            yield Problem.error(f"{where}.{name[:60]}", "unknown_field", message, expected=", ".join(allowed), hint=hint)
    for name, value in fields.items():
        if name in allowed:
            yield from _value_problems(name, value, f"{where}.{name}")
    yield from _missing(provider, fields, where)


def _value_problems(name: str, value: object, where: str) -> Iterator[Problem]:
    if name in SECRET_FIELDS and value == HIDDEN:
        message = f"{HIDDEN} stands for a hidden {name}; it is not the {name} itself."
        yield Problem.error(where, HIDDEN_SECRET, message, expected=f"the {name}")
        return
    if name in SWITCHES:
        try:
            parse_bool(value)
        except WrongValue as wrong:
            yield Problem.error(where, wrong.code, f"{name} {wrong}.", got=value, expected="true or false")
    elif name == "request_headers":
        fits = isinstance(value, Mapping) and all(_is_header(key, item) for key, item in value.items())
        if not fits:
            yield Problem.error(
                where, "not_headers", "request_headers must be an object of header names and texts.", got=type(value).__name__
            )
    elif not isinstance(value, str) or not value.isprintable():
        yield Problem.error(where, "not_text", "This is not a single line of text.", got=type(value).__name__, expected="text")
    elif name == "region" and not REGION.fullmatch(value):
        yield Problem.error(where, "not_a_region", "region is not a valid region name.", got=value, expected="letters, digits and dashes")
    elif name == "account_name" and not ACCOUNT.fullmatch(value):
        expected = "3 to 24 lower-case letters and digits"
        yield Problem.error(where, "not_a_name", "account_name is not a valid account name.", got=value, expected=expected)
    elif name in ADDRESS_FIELDS and not _is_address(value):
        expected = "a URL that begins with https:// or http://, without a password in it"
        yield Problem.error(where, "not_an_address", f"{name} is not a valid URL.", expected=expected)
    elif name == "endpoint_url" and set("?#") & set(value):
        message = "endpoint_url must not have a query or a fragment."
        yield Problem.error(where, "not_an_address", message, expected="a URL that ends with its host, port or path")
    elif name in ("bucket", "container") and not BUCKET.fullmatch(value):
        expected = "letters, digits, dots, dashes and underscores"
        yield Problem.error(where, "not_a_name", f"This is not a valid name of a {name}.", got=value, expected=expected)
    elif name == "base_path" and ".." in value.replace("\\", "/").split("/"):
        yield Problem.error(where, "leads_outside", "base_path contains '..'.", got=value, expected="a folder at the provider")


def _is_header(name: object, value: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9-]+", name) is not None and isinstance(value, str) and value.isprintable()


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and parts.username is None
    except ValueError:
        return False
    return fits and text.isascii() and " " not in text


def _missing(provider: str, fields: Mapping[str, Any], where: str) -> Iterator[Problem]:
    needed = {AZURE: "container", DROPBOX: "token"}.get(provider, "bucket")
    if needed not in fields:
        yield Problem.error(f"{where}.{needed}", "missing", f"{provider} needs {needed}.", expected=f"the {needed}")
    if provider in (S3, B2):
        for name, other in (("access_key", "secret_key"), ("secret_key", "access_key")):
            if name not in fields and other in fields:
                yield Problem.error(f"{where}.{name}", "incomplete", f"{other} is given without {name}.", expected="both or neither")
        if provider == B2 and "endpoint_url" not in fields and "region" not in fields:
            message = "backblaze_b2 needs endpoint_url or region."
            yield Problem.error(f"{where}.region", "missing", message, expected="such as us-west-004")
    if provider == AZURE and not any(name in fields for name in ("connection_string", "account_url", "account_name")):
        message = "azure_blob needs connection_string, account_url, or account_name with account_key."
        yield Problem.error(f"{where}.connection_string", "missing", message, expected="one of the three")
    elif provider == AZURE and not fields.keys() & {"connection_string", "account_key"} and "?" not in str(fields.get("account_url", "")):
        message = "azure_blob has no credentials: account_key, connection_string, or an account_url with a signature."
        yield Problem.error(f"{where}.account_key", "missing", message, expected="the account's key")


def _connection_fields(text: str) -> dict[str, str]:
    """Returns the fields of an Azure connection string: name in lower case -> value."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip().lower(): value.strip() for name, sign, value in pairs if sign}


def _target(fields: Mapping[str, Any], place: int) -> PublishTarget:
    provider = PROVIDERS[str(fields["provider"]).strip().lower()]
    values = {name: value for name, value in fields.items() if name not in ("provider", "container", "base_path", *SWITCHES)}
    if provider == B2:
        values.setdefault("endpoint_url", f"https://s3.{fields.get('region')}.backblazeb2.com")
    return PublishTarget(
        provider=provider,
        base_path="/".join(part for part in str(fields.get("base_path", "")).split("/") if part),
        use_ssl=parse_bool(fields.get("use_ssl", True)),
        force_single_part=parse_bool(fields.get("force_single_part", False)),
        place=place,
        **{"bucket": fields.get("container", ""), **values},
    )
