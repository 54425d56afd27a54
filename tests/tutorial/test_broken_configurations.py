"""What is broken is refused by ``validate`` and ``start``, in HTML and in JSON, each problem by its name; nothing is left behind."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.live_server import LiveServer, start_server
from tests.helpers.models import place_tiny_model
from tests.helpers.pictures import generate_images

REPOSITORY = "terminusresearch/pixart-900m-1024-ft-v0.6"
Datasets = list[dict[str, Any]]


@dataclass(frozen=True)
class Broken:
    """One thing that is wrong. ``form`` lies over a valid form (None leaves an option out), ``data`` changes valid datasets."""

    option: str
    """What the problem's ``option`` holds."""
    code: str
    form: dict[str, str | None]
    data: Callable[[Datasets], Any] | None = None


def form(option: str, code: str, **values: str | None) -> Broken:
    return Broken(option, code, values)


def images(option: str, code: str, **fields: Any) -> Broken:
    """A field of the image set is wrong."""
    return Broken(option, code, {}, lambda datasets: [{**datasets[0], **fields}, *datasets[1:]])


def data(option: str, code: str, change: Callable[[Datasets], Any]) -> Broken:
    return Broken(option, code, {}, change)


BROKEN = [
    form("model_family", "missing", model_family=None),
    form("model_family", "unknown_family", model_family="pixelart"),
    form("model_family", "not_available", model_family="hunyuanvideo"),
    form("model_type", "missing", model_type=None),
    form("model_type", "not_a_choice", model_type="half"),
    form("model_type", "not_a_choice", model_type="loras"),
    form("model_flavour", "unknown_flavour", model_flavour="900M-2048"),
    form("output_dir", "missing", output_dir=None),
    form("output_dir", "missing", output_dir=""),
    form("data_backend_config", "missing", data_backend_config=None),
    form("data_backend_config", "", data_backend_config="nowhere/multidatabackend.json"),
    form("data_backend_config", "", data_backend_config="/etc/passwd"),
    form("output_dir", "", output_dir="/proc/output"),
    form("max_train_steps", "no_length", max_train_steps="0"),
    form("num_train_epochs", "two_lengths", num_train_epochs="3"),
    form("max_train_steps", "not_a_whole_number", max_train_steps="many"),
    form("max_train_steps", "out_of_range", max_train_steps="-5"),
    form("learning_rate", "not_a_number", learning_rate="fast"),
    form("learning_rate", "out_of_range", learning_rate="7"),
    form("train_batch_size", "out_of_range", train_batch_size="0"),
    form("gradient_accumulation_steps", "out_of_range", gradient_accumulation_steps="0"),
    form("optimizer", "not_a_choice", optimizer="adamw_bf61"),
    form("optimizer", "not_available", optimizer="soap"),
    form("optimizer", "", optimizer="bnb-adamw8bit"),
    form("logging_dir", "outside_output", logging_dir="../elsewhere"),
    form("lr_scheduler", "not_a_choice", lr_scheduler="cosinus"),
    form("mixed_precision", "not_available", mixed_precision="fp8"),
    form("base_model_precision", "cannot_be_trained", base_model_precision="int8-quanto"),
    form("base_model_precision", "cannot_be_trained", base_model_precision="nf4-bnb"),
    form("lora_rank", "rank_too_large", model_type="lora", lora_rank="64"),
    form("peft_lora_target_modules", "nothing_matched", model_type="lora", peft_lora_target_modules='["nowhere"]'),
    form("use_dora", "needs_exact_weights", model_type="lora", use_dora="true", base_model_precision="int8-quanto"),
    form("base_model_precision", "not_for_family", model_type="lora", base_model_precision="fp8-quanto"),
    form("lycoris_config", "not_found", model_type="lora", lora_type="lycoris", lycoris_config="nowhere.json"),
    form("init_lora", "not_found", model_type="lora", init_lora="nowhere"),
    form("report_to", "unknown_tracker", report_to="comet_ml"),
    form("crepa_enabled", "not_available", crepa_enabled="true"),
    form("gradient_checkpointing", "not_a_boolean", gradient_checkpointing="perhaps"),
    form("validation_resolution", "not_a_size", validation_resolution="1001x7"),
    form("validation_guidance", "out_of_range", validation_guidance="99"),
    form("optimizer_beta2", "incomplete", optimizer_beta1="0.9"),
    form("lerning_rate", "unknown_option", lerning_rate="0.1"),
    form("resume_from_checkpoint", "no_such_checkpoint", resume_from_checkpoint="checkpoint-99"),
    form("accelerate_config", "", accelerate_config="nowhere.yaml"),
    form("pretrained_model_name_or_path", "", pretrained_model_name_or_path="/data/not/there"),
    images("caption_strategy", "not_a_choice", caption_strategy="guess"),
    images("caption_strategy", "not_available", caption_strategy="webshart"),
    images("crop_style", "not_a_choice", crop_style="spiral"),
    images("crop_aspect", "", crop=True, crop_aspect="closest"),
    images("crop", "not_a_boolean", crop="perhaps"),
    images("instance_data_dir", "not_found", instance_data_dir="{place}/nowhere"),
    images("instance_data_dir", "missing", instance_data_dir=""),
    images("resolution", "looks_like_pixels", resolution=1024, resolution_type="area"),
    images("resolution_type", "not_a_choice", resolution_type="megapixel"),
    images("target_downsample_size", "incomplete", maximum_image_size=512),
    images("instance_prompt", "missing", caption_strategy="instanceprompt"),
    images("crop_stile", "unknown_field", crop_stile="random"),
    images("type", "not_available", type="webshart"),
    images("dataset_type", "not_for_family", dataset_type="video"),
    images("text_embeds", "", text_embeds="nobody"),
    images("repeats", "out_of_range", repeats=-1),
    images("", "", minimum_image_size=4000),
    data("dataloader", "", lambda datasets: {"not": "a list"}),
    data("dataloader", "", lambda datasets: []),
    data("dataloader", "", lambda datasets: ["text"]),
    data("dataloader", "", lambda datasets: datasets[1:]),
    data("id", "", lambda datasets: [datasets[0], *datasets]),
    data("id", "missing", lambda datasets: [{**datasets[0], "id": " "}, datasets[1]]),
    data("default", "", lambda datasets: [*datasets, {**datasets[1], "id": "second"}]),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    generate_images(folder / "images", count=8, size=(80, 80))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    home, hub = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("hub")
    place_tiny_model(hub, REPOSITORY)
    with start_server(home, environment={"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}) as live:
        yield live


def valid_form(place: Path) -> dict[str, str]:
    return {
        "--model_family": "pixart_sigma",
        "--model_type": "full",
        "--pretrained_model_name_or_path": REPOSITORY,
        "--output_dir": str(place / "output"),
        "--data_backend_config": str(place / "multidatabackend.json"),
        "--train_batch_size": "2",
        "--max_train_steps": "3",
        "--num_train_epochs": "0",
        "--resolution": "64",
        "--mixed_precision": "no",
    }


def valid_datasets(place: Path) -> Datasets:
    return [
        {"id": "pictures", "type": "local", "dataset_type": "image", "instance_data_dir": str(place / "images")},
        {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": str(place / "cache")},
    ]


def lay_out(broken: Broken | None, place: Path) -> dict[str, str]:
    """Write the dataloader file and return the form."""
    datasets: Any = valid_datasets(place)
    if broken and broken.data:
        datasets = json.loads(json.dumps(broken.data(datasets)).replace("{place}", str(place)))
    (place / "multidatabackend.json").write_text(json.dumps(datasets))
    fields: dict[str, str | None] = {**valid_form(place), **{f"--{name}": value for name, value in (broken.form if broken else {}).items()}}
    return {name: value for name, value in fields.items() if value is not None}


def traces(server: LiveServer, place: Path) -> set[str]:
    """Every file and folder that a request could have left."""
    roots = (server.home / "config", server.home / "state" / "runs", place)
    return {str(path) for root in roots if root.exists() for path in root.rglob("*")}


def test_the_configuration_below_the_table_is_valid(server: LiveServer, place: Path) -> None:
    answer = server.post("/api/training/validate", data=lay_out(None, place))
    assert answer.status_code == 200, answer.text
    assert "Configuration Valid" in answer.text


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: f"{broken.option}-{broken.code}")
def test_a_broken_configuration_is_refused_by_name_everywhere_and_leaves_nothing(server: LiveServer, place: Path, broken: Broken) -> None:
    fields = lay_out(broken, place)
    before = traces(server, place)
    for path, title in (("/api/training/validate", "Validation Failed"), ("/api/training/start", "Cannot Start Training")):
        as_json = server.post(path, data=fields, headers={"Accept": "application/json"})
        assert as_json.status_code == 422, as_json.text
        problems = as_json.json()["problems"]
        assert as_json.json()["detail"]
        named = [problem for problem in problems if broken.option in problem["option"] and broken.code in problem["code"]]
        assert named, problems
        assert all(problem["message"] and (problem["expected"] or problem["hint"]) for problem in named), named

        as_html = server.post(path, data=fields)
        assert as_html.status_code == 422
        assert "alert alert-danger" in as_html.text
        assert title in as_html.text
        assert as_html.text.count("<li>") >= len(problems)
        assert html.escape(named[0]["message"], quote=False) in html.unescape(as_html.text) or named[0]["message"] in html.unescape(
            as_html.text
        )
    assert traces(server, place) == before
    assert server.get("/api/training/jobs").json()["count"] == 0


def test_all_that_is_wrong_is_reported_at_once(server: LiveServer, place: Path) -> None:
    fields = {
        **lay_out(None, place),
        "--learning_rate": "fast",
        "--optimizer": "adam?",
        "--seed": "-3",
        "--nonsense": "1",
        "--model_type": "",
    }
    answer = server.post("/api/training/validate", data=fields, headers={"Accept": "application/json"})
    named = {problem["option"] for problem in answer.json()["problems"]}
    assert named >= {"learning_rate", "optimizer", "seed", "nonsense", "model_type"}


def test_validate_escapes_typed_markup(server: LiveServer, place: Path) -> None:
    answer = server.post("/api/training/validate", data={**lay_out(None, place), "--optimizer": "<b onmouseover=alert(1)>"})
    assert answer.status_code == 422
    assert "<b onmouseover" not in answer.text


def test_broken_images_are_named_and_left_out(server: LiveServer, place: Path) -> None:
    fields = lay_out(None, place)
    picture = next((place / "images").glob("*.png"))
    torn = picture.with_name("torn.png")
    torn.write_bytes(picture.read_bytes()[:-40])
    empty = picture.with_name("empty.jpg")
    empty.write_bytes(b"")
    try:
        answer = server.post("/api/training/validate", data=fields)
        assert answer.status_code == 200
        assert "torn.png" in answer.text
        assert "empty.jpg" in answer.text
    finally:
        torn.unlink()
        empty.unlink()
