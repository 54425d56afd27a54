"""Components of a base model are found in folders, in the cache and on a hub."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, T5EncoderModel

from tests.helpers.forked import run_forked
from tests.helpers.hub_server import OTHER_ANSWERS, broken_hub, silent_hub
from tests.helpers.models import tiny_pixart
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache
from trainer_engine.weights.hub import Part, Source, find_part
from trainer_engine.weights.loading import load_text_encoder

LOOK = """
import sys
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.weights.hub import Source, find_part
try:
    part = find_part(Source(sys.argv[1], revision=sys.argv[2] or None), "transformer")
    print("FOUND", part.folder if part else None)
except ModelUnavailable as error:
    print("REFUSED", error.message, "|", error.hint)
"""


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for repositories that are gated or missing."""

    def do_GET(self) -> None:
        gated = "gated" in self.path
        codes = {"gated": "GatedRepo", "present": "RevisionNotFound", "entryless": "EntryNotFound"}
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", next((code for word, code in codes.items() if word in self.path), "RepoNotFound"))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass


LOOK_FOR_A_FILE = """
import sys
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.weights.hub import Source, find_file
try:
    print("FOUND", find_file(Source(sys.argv[1]), sys.argv[2]))
except ModelUnavailable as error:
    print("REFUSED", error.message, "|", error.hint)
"""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def look(repo: str, revision: str = "", code: str = LOOK, **environment: str) -> str:
    """In a process of its own: huggingface_hub reads its environment once."""
    printed = run_forked(code, repo, revision, place=Path(environment["HF_HOME"]), variables={"HF_HUB_OFFLINE": "", **environment})
    return next(line for line in printed.splitlines() if line.startswith(("FOUND", "REFUSED")))


def test_cached_repository_loads_offline(tmp_path: Path) -> None:
    snapshot = place_in_hub_cache(tiny_pixart(), "some-org/some-model", tmp_path)
    assert look("some-org/some-model", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1") == f"FOUND {snapshot / 'transformer'}"


def test_cached_repository_loads_if_the_hub_is_unreachable(tmp_path: Path) -> None:
    snapshot = place_in_hub_cache(tiny_pixart(), "some-org/some-model", tmp_path)
    assert look("some-org/some-model", HF_HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9") == f"FOUND {snapshot / 'transformer'}"


def test_offline_error_names_the_uncached_repository(tmp_path: Path) -> None:
    answer = look("some-org/some-model", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert answer.startswith("REFUSED The repository some-org/some-model is not in the Hugging Face cache")
    assert "HF_HUB_OFFLINE" in answer


def test_error_names_the_unreachable_hub(tmp_path: Path) -> None:
    answer = look("some-org/some-model", HF_HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9")
    assert answer.startswith(
        "REFUSED The repository some-org/some-model is not in the Hugging Face cache, and the hub could not be reached"
    )
    assert "HF_ENDPOINT" in answer


@pytest.mark.parametrize("behaviour", OTHER_ANSWERS)
def test_error_names_a_repository_behind_a_broken_hub(behaviour: str, tmp_path: Path) -> None:
    with broken_hub(OTHER_ANSWERS[behaviour]) as broken:
        answer = look("some-org/some-model", HF_HOME=str(tmp_path), HF_ENDPOINT=broken.url)
    assert answer.startswith("REFUSED The repository some-org/some-model is not in the Hugging Face cache, and ")
    is_other_server = behaviour in ("a login page", "other JSON")
    assert ("what answered is not the hub" in answer) is is_other_server
    assert "HF_ENDPOINT" in answer


def test_error_names_a_repository_behind_a_silent_hub(tmp_path: Path) -> None:
    code = LOOK.replace("try:", "from trainer_engine.weights import hub_client\nhub_client.ANSWER_SECONDS = 0.5\ntry:")
    with silent_hub() as silent:
        answer = look("some-org/some-model", code=code, HF_HOME=str(tmp_path), HF_ENDPOINT=silent.url)
    assert answer.startswith(
        "REFUSED The repository some-org/some-model is not in the Hugging Face cache, and the hub could not be reached"
    )


def test_gated_repository_has_a_hint(tmp_path: Path, hub: str) -> None:
    answer = look("some-org/gated-model", HF_HOME=str(tmp_path), HF_ENDPOINT=hub)
    assert answer.startswith("REFUSED The repository some-org/gated-model is gated.")
    assert "hf auth login" in answer


def test_error_names_the_missing_repository(tmp_path: Path, hub: str) -> None:
    answer = look("some-org/gone", HF_HOME=str(tmp_path), HF_ENDPOINT=hub)
    assert answer.startswith("REFUSED The repository some-org/gone does not exist, or is private.")


def test_error_names_the_missing_revision(tmp_path: Path, hub: str) -> None:
    answer = look("some-org/present", "v9", HF_HOME=str(tmp_path), HF_ENDPOINT=hub)
    assert answer.startswith("REFUSED The repository some-org/present has no revision v9.")


def test_invalid_repository_id_is_refused() -> None:
    with pytest.raises(ModelUnavailable, match="neither a repository id nor a folder") as caught:
        find_part(Source("a//b c"), "vae")
    assert "organisation/name" in caught.value.hint


def test_error_names_the_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="There is no folder .*gone"):
        find_part(Source(str(tmp_path / "gone")), "vae")


def test_find_part_returns_none_for_a_missing_component(tmp_path: Path) -> None:
    assert find_part(Source(str(tmp_path)), "vae") is None


def test_variant_is_used_if_the_component_has_it(tmp_path: Path) -> None:
    for part, names in {"vae": ["model.safetensors", "model.fp16.safetensors"], "transformer": ["model.safetensors"]}.items():
        (tmp_path / part).mkdir()
        for name in names:
            (tmp_path / part / name).write_bytes(name.encode())
    vae, transformer = (find_part(Source(str(tmp_path), variant="fp16"), name) for name in ("vae", "transformer"))
    assert vae is not None and transformer is not None
    assert (vae.variant, transformer.variant) == ("fp16", None)
    assert [path.name for path in vae.weights()] == ["model.fp16.safetensors"]
    assert [path.name for path in transformer.weights()] == ["model.safetensors"]


def test_find_file_returns_a_cached_file_or_names_the_missing_one(tmp_path: Path, hub: str) -> None:
    snapshot = place_in_hub_cache(tiny_pixart(), "some-org/some-model", tmp_path)
    here = {"HF_HOME": str(tmp_path), "code": LOOK_FOR_A_FILE}
    found = look("some-org/some-model", "transformer/config.json", HF_HUB_OFFLINE="1", **here)
    assert found == f"FOUND {snapshot / 'transformer' / 'config.json'}"
    absent = look("some-org/entryless", "style.safetensors", HF_ENDPOINT=hub, **here)
    assert absent.startswith("REFUSED The repository some-org/entryless holds no file style.safetensors.")
    gated = look("some-org/gated-model", "style.safetensors", HF_ENDPOINT=hub, **here)
    assert gated.startswith("REFUSED The repository some-org/gated-model is gated.")


def test_models_that_threads_load_at_once_leave_the_library_as_it_was() -> None:
    folder = tiny_pixart() / "text_encoder"
    part = Part(Source(str(folder)), folder)
    before = PreTrainedModel.tie_weights

    def load(_: int) -> PreTrainedModel:
        return load_text_encoder(T5EncoderModel, part, torch.float32)

    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(load, range(24)))
    assert PreTrainedModel.tie_weights is before
    assert all(model.encoder.embed_tokens.weight is model.shared.weight for model in models)
