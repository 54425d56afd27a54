"""The stores that a run is uploaded to, and the addresses that one is resumed from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.models import options_with
from trainer_engine.config.destinations import hub_target, run_name
from trainer_engine.config.options.secrets import for_engine, hide_options, secrets_of
from trainer_engine.config.parse import check_options
from trainer_engine.config.publishing import FIELDS, SECRET_FIELDS, PublishTarget, parse_publishing, parse_publishing_text
from trainer_engine.config.resuming.remote_checkpoint import NotReachable, is_remote, locate
from trainer_engine.config.secrets import HIDDEN
from trainer_engine.contract.checkpoint_files import check_manifest

S3 = {"provider": "s3", "bucket": "trained"}
KEYS = {"access_key": "AKIASECRET", "secret_key": "SECRETsecret"}
AZURE = {"provider": "azure", "container_name": "trained", "connection_string": "AccountName=me;AccountKey=SECRETkey"}


def codes(document: object) -> set[tuple[str, str]]:
    return {(problem.option, problem.code) for problem in parse_publishing(document)[1]}


def one(**entry: Any) -> PublishTarget:
    targets, problems = parse_publishing(entry)
    assert problems == []
    return targets[0]


def test_every_spelling_of_a_store_and_of_its_fields_is_understood() -> None:
    short = one(type="s3-compatible", bucket="trained", region_name="eu", aws_access_key_id="a", aws_secret_access_key="b", use_ssl="no")
    assert short == one(provider="S3", bucket="trained", region="eu", access_key="a", secret_key="b", use_ssl=False)
    assert one(provider="b2", bucket="trained", region="us-west-004").endpoint_url == "https://s3.us-west-004.backblazeb2.com"
    assert one(**AZURE).bucket == "trained"
    assert one(provider="dropbox", access_token="t", base_path="/").base_path == ""
    assert one(**S3, base_path="/a//b/").base_path == "a/b"


def test_a_list_and_one_object_and_their_text_are_the_same() -> None:
    assert parse_publishing(S3) == parse_publishing([S3]) == parse_publishing_text(json.dumps(S3))
    assert parse_publishing_text("") == ([], [])


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"provider": "s4", "bucket": "b"}, ("provider", "unknown_provider")),
        ({"bucket": "b"}, ("provider", "missing")),
        ({"provider": "s3"}, ("bucket", "missing")),
        ({**S3, "buckte": "x"}, ("buckte", "unknown_field")),
        ({**S3, "use_ssl": "maybe"}, ("use_ssl", "not_a_boolean")),
        ({**S3, "endpoint_url": "ftp://x"}, ("endpoint_url", "not_an_address")),
        ({**S3, "endpoint_url": "https://me:password@x"}, ("endpoint_url", "not_an_address")),
        ({**S3, "endpoint_url": "https://x/?signature=1"}, ("endpoint_url", "not_an_address")),
        ({**S3, "region": 7}, ("region", "not_text")),
        ({**S3, "region": "evil.example/x"}, ("region", "not_a_region")),
        ({**S3, "request_headers": HIDDEN}, ("request_headers", "hidden_secret")),
        ({**S3, "request_headers": ["x"]}, ("request_headers", "not_headers")),
        ({**S3, "request_headers": {"X-A": "b\r\nX-Evil: c"}}, ("request_headers", "not_headers")),
        ({**S3, "base_path": "a/../b"}, ("base_path", "leads_outside")),
        ({**S3, "access_key": "a"}, ("secret_key", "incomplete")),
        ({**S3, **KEYS, "secret_key": HIDDEN}, ("secret_key", "hidden_secret")),
        ({**S3, **KEYS, "aws_secret_access_key": "another"}, ("secret_key", "conflicting_values")),
        ({"provider": "b2", "bucket": "bb"}, ("region", "missing")),
        ({"provider": "azure", "container": "cc"}, ("connection_string", "missing")),
        ({"provider": "azure", "container": "cc", "account_name": "mine"}, ("account_key", "missing")),
        ({"provider": "azure", "container": "cc", "account_name": "evil.example/x", "account_key": "k"}, ("account_name", "not_a_name")),
        ({"provider": "dropbox"}, ("token", "missing")),
        ({"provider": "dropbox", "token": "t", "bucket": "b"}, ("bucket", "unknown_field")),
    ],
)
def test_what_is_wrong_is_named_by_its_field(entry: dict[str, Any], problem: tuple[str, str]) -> None:
    assert (f"publishing_config[0].{problem[0]}", problem[1]) in codes([entry])


@pytest.mark.parametrize(
    ("fields", "address"),
    [
        ({"account_name": "mine", "account_key": "k"}, "https://mine.blob.core.windows.net"),
        ({"account_url": "https://mine.example/?sig=s"}, "https://mine.example/?sig=s"),
        ({"connection_string": "AccountName=mine;AccountKey=k"}, "https://mine.blob.core.windows.net"),
        (
            {"connection_string": "DefaultEndpointsProtocol=http;AccountName=mine;AccountKey=k;EndpointSuffix=example"},
            "http://mine.blob.example",
        ),
        ({"connection_string": "blobendpoint=http://10.0.0.7:9/mine;AccountName=mine;AccountKey=k"}, "http://10.0.0.7:9/mine"),
        ({"connection_string": "BlobEndpoint=mine.example;SharedAccessSignature=s"}, "https://mine.example"),
        ({"connection_string": "UseDevelopmentStorage=true"}, "http://127.0.0.1:10000/devstoreaccount1"),
    ],
)
def test_the_address_that_blobs_go_to_is_known(fields: dict[str, str], address: str) -> None:
    target = one(provider="azure", container="trained", **fields)
    assert target.blob_address == address
    azure = pytest.importorskip("azure.storage.blob").BlobServiceClient
    if "AccountName" in target.connection_string:
        string = target.connection_string.replace("=k", "=aw==")
        assert azure.from_connection_string(string).url.rstrip("/") == address


def test_everything_that_is_wrong_is_said_at_once_with_the_nearest_name() -> None:
    _, problems = parse_publishing([{"provider": "s33", "bucket": "b"}, {**S3, "regoin": "eu", "use_ssl": 3, "force_single_part": "x"}])
    assert len(problems) == 4
    assert {problem.hint for problem in problems} >= {"did you mean s3?", "did you mean region?"}


def test_lists_that_make_no_sense_are_refused() -> None:
    assert codes("s3") == codes(["s3"]) == {("publishing_config", "not_an_object")}
    assert codes([S3] * 11) == {("publishing_config", "too_many")}
    assert codes([S3, {**S3, "name": "again"}]) == {("publishing_config", "same_place_twice")}
    assert parse_publishing_text("{'a'}")[1][0].code == "not_json"


def test_no_secret_is_said_shown_or_handed_to_the_run_folder() -> None:
    secret = [
        {**S3, **KEYS, "session_token": "SECRETtoken", "request_headers": {"X-Key": "SECRETheader"}},
        {"provider": "azure", "container": "cc", "account_url": "https://me.blob.core.windows.net/?sig=SECRETsig"},
        AZURE,
        {"provider": "dropbox", "token": "SECRETdropbox", "bad": "x"},
    ]
    text = json.dumps(secret)
    targets, problems = parse_publishing(secret)
    told, handed = hide_options({"publishing_config": text, "seed": 7}), for_engine(secrets_of({"publishing_config": text, "seed": 7}))
    everything = [hide_options({"--publishing_config": text}), told, [problem.as_dict() for problem in problems], repr(targets)]
    assert "SECRET" not in repr([*everything, [target.key for target in targets], [target.label for target in targets]])
    assert json.loads(handed["SIMPLETUNER_SECRETS"]) == {"publishing_config": text}
    assert for_engine(secrets_of({"publishing_config": "config/publishing.json"})) == {}
    assert hide_options({"publishing_config": '[{"token": "SECRET"'}) == {"publishing_config": HIDDEN}


def test_every_secret_field_is_a_field_of_some_store() -> None:
    known = {name for fields in FIELDS.values() for name in fields}
    spelled = {"aws_access_key_id", "aws_secret_access_key", "access_token"}
    assert set(SECRET_FIELDS) <= known | spelled


def test_a_place_keeps_its_key_when_its_credentials_change() -> None:
    assert one(**S3, **KEYS).key == one(**S3).key != one(**S3, base_path="other").key
    assert one(**AZURE).key != one(**{**AZURE, "connection_string": "AccountName=you;AccountKey=k"}).key


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"hub_model_id": "me/my-model"}, "my-model"),
        ({"tracker_project_name": "flowers 2"}, "flowers-2"),
        ({"output_dir": "/data/output/roses/"}, "roses"),
    ],
)
def test_a_run_is_called_by_its_repository_project_or_folder(values: dict[str, str], name: str) -> None:
    assert run_name(options_with(**values)) == name


def test_the_hub_takes_checkpoints_only_when_asked_to() -> None:
    assert hub_target(options_with()) is None
    plain = hub_target(options_with(push_to_hub=True, hub_model_id="me/model"))
    assert plain is not None and plain.private and not plain.takes_checkpoints and plain.bucket == "me/model"
    both = hub_target(options_with(push_to_hub=True, push_checkpoints_to_hub=True, model_card_private=False))
    assert both is not None and both.takes_checkpoints and not both.private


def test_addresses_lead_to_the_stores_that_the_configuration_names() -> None:
    targets, _ = parse_publishing([{**S3, "public_base_url": "https://files.example.com/base?x=1"}, AZURE])
    assert locate("s3://trained/a/checkpoint-5", targets).provider == targets[0]
    assert locate("r2://trained/checkpoint-5", targets).path == "checkpoint-5"
    web = locate("https://files.example.com/base/run%201/checkpoint-5", targets)
    assert (web.provider.provider, web.provider.endpoint_url, web.path) == ("http", "https://files.example.com/base", "run 1/checkpoint-5")
    hub = locate("hf://me/model/checkpoint-5", [])
    assert (hub.provider.provider, hub.provider.bucket, hub.name) == ("hub", "me/model", "checkpoint-5")


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("s3://other/checkpoint-5", "unknown_store"),
        ("https://elsewhere.example.com/checkpoint-5", "unknown_store"),
        ("https://files.example.com.evil.com/checkpoint-5", "unknown_store"),
        ("https://files.example.com/../checkpoint-5", "not_an_address"),
        ("s3://trained/%2e%2e/checkpoint-5", "not_an_address"),
        ("s3://trained/checkpoint-5?versionId=1", "not_an_address"),
        ("https://me:password@files.example.com/checkpoint-5", "not_an_address"),
        ("ftp://trained/checkpoint-5", "not_an_address"),
        ("file:///etc/checkpoint-5", "not_an_address"),
        ("s3://trained/latest", "not_a_checkpoint"),
        ("hf://me/checkpoint-5", "not_an_address"),
        ("https://[bad/checkpoint-5", "not_an_address"),
    ],
)
def test_other_addresses_are_refused(address: str, code: str) -> None:
    targets, _ = parse_publishing({**S3, "public_base_url": "https://files.example.com"})
    assert is_remote(address)
    with pytest.raises(NotReachable) as refused:
        locate(address, targets)
    assert refused.value.code == code


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\\b", "a//b", "./a", "manifest.json", "a\0b", ""])
def test_a_manifest_with_a_path_that_leads_elsewhere_is_none(name: str) -> None:
    manifest = {"version": 1, "step": 5, "files": {name: {"sha256": "0" * 64, "size": 1}}}
    with pytest.raises(ValueError, match="files"):
        check_manifest(manifest)


def test_stores_that_are_written_out_are_checked_with_the_other_options() -> None:
    given = {"model_family": "flux", "model_type": "lora", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}

    def told(**values: Any) -> set[tuple[str, str]]:
        return {(problem.option, problem.code) for problem in check_options({**given, **values})[1]}

    assert ("publishing_config[0].acces_key", "unknown_field") in told(publishing_config=json.dumps([{**S3, "acces_key": "A"}]))
    assert ("publishing_config", "not_json") in told(publishing_config="s3://bucket/x")
    shown = hide_options({"publishing_config": json.dumps([{**S3, **KEYS, "request_headers": {"X-Key": "k"}}, AZURE])})
    assert not [option for option, _ in told(**shown) if option.startswith("publishing_config")]
    assert ("resume_from_checkpoint", "password_in_address") in told(resume_from_checkpoint="https://me:pw@host/checkpoint-5")
