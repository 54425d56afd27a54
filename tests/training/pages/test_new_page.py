"""``/new``: one form leads from images to a run, and says what is wrong with it before anything is written."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.test import Client

from environments.models import Environment
from tests.helpers.pictures import generate_images
from tests.training.conftest import write_model
from tests.training.pages.test_run_page import EVIL, Elements
from trainer_engine.config.families import specs
from training.models import Job
from training.pages import card
from training.pages.card import PROCESSOR, find_choice, model_choices, options_for
from training.pages.lora_table import BEGIN, COMMAND, END, table

pytestmark = pytest.mark.django_db
PIXART = "pixart_sigma/900M-1024-v0.6"


@pytest.fixture
def sent(home: Path) -> dict[str, Any]:
    """A form that leads to a run."""
    generate_images(home / "datasets/cats", count=4, size=(64, 64))
    return {
        "name": "cats",
        "model": PIXART,
        "images": "datasets/cats",
        "trigger_word": "sks cat",
        "memory": PROCESSOR,
        "weights": str(write_adaptable_model(home / "model")),
        "resolution": 64,
        "steps": 20,
        "act": "start",
    }


def write_adaptable_model(folder: Path) -> Path:
    """A model as far as the web looks at one, with a layer that an adapter can change."""
    write_model(folder)
    layer = {"dtype": "F32", "shape": [20, 50], "data_offsets": [0, 4000]}
    header = json.dumps({"transformer_blocks.0.attn1.to_q.weight": layer}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(4000)
    (folder / "transformer/diffusion_pytorch_model.safetensors").write_bytes(content)
    return folder


def post(client: Client, form: dict[str, Any]) -> tuple[Any, list[str]]:
    client.cookies.pop("messages", None)
    answer = client.post("/new", form)
    return answer, [str(message) for message in get_messages(answer.wsgi_request)]


def refused(client: Client, form: dict[str, Any]) -> str:
    """The page that shows the form again; nothing was written."""
    answer, _ = post(client, form)
    assert answer.status_code == 422, answer
    assert not Environment.objects.exists()
    page = answer.content.decode()
    Elements(page)
    return page


def test_a_filled_form_starts_a_run_and_leads_to_it(home: Path, client: Client, sent: dict[str, Any]) -> None:
    answer, says = post(client, sent)
    assert Job.objects.exists(), says
    job = Job.objects.get()
    assert answer.status_code == 302 and answer["Location"] == f"/runs/{job.number}"
    environment = Environment.objects.get()
    expected = {
        "model_family": "pixart_sigma",
        "model_type": "lora",
        "mixed_precision": "no",
        "optimizer": "torch-adamw",
        "max_train_steps": 20,
        "lr_warmup_steps": 2,
        "validation_step_interval": 5,
        "validation_prompt": "a photograph of sks cat",
        "validation_resolution": "64x64",
        "learning_rate": 1e-4,
    }
    assert {name: environment.config[name] for name in expected} == expected
    images = json.loads((home / "config/cats/multidatabackend.json").read_text())[0]
    assert (images["instance_data_dir"], images["instance_prompt"], images["resolution"]) == ("datasets/cats", "sks cat", 64)
    assert (job.environment, job.options["max_train_steps"]) == ("cats", 20)


def test_an_environment_can_be_written_without_a_start(client: Client, sent: dict[str, Any]) -> None:
    answer, says = post(client, {**sent, "act": "write"})
    assert answer["Location"] == "/environments/cats" and "Nothing was started" in says[0]
    assert Environment.objects.exists() and not Job.objects.exists()


def test_what_cannot_be_started_yet_leads_to_the_environment(home: Path, client: Client, sent: dict[str, Any]) -> None:
    answer, says = post(client, {**sent, "weights": "somebody/else"})
    assert answer["Location"] == "/environments/cats" and not Job.objects.exists()
    assert "cannot be started yet" in says[0] and any("somebody/else" in text for text in says[1:])


def test_the_page_has_the_model_its_needs_and_its_licence(client: Client, home: Path) -> None:
    page = client.get("/new").content.decode()
    Elements(page)
    assert "19 GB in 8 bits" in page and "black-forest-labs/FLUX.1-dev" in page
    assert '<script type="module" src="/static/training/forms.js">' in page and "style=" not in page and "onclick" not in page


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"name": ""}, "required"),
        ({"name": "../x"}, "cannot be the name of an environment"),
        ({"name": "import"}, "word of the API"),
        ({"images": "datasets/none"}, "does not exist"),
        ({"images": "/etc"}, "system folder"),
        ({"images": "state"}, "own state"),
        ({"model": "flux/none"}, "Select a valid choice"),
        ({"model": "flux/dev", "memory": 8}, "needs 11 GB"),
        ({"memory": "much"}, "Select a valid choice"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"resolution": 10_000}, "less than or equal to 4096"),
        ({"trigger_word": "x" * 201}, "at most 200 characters"),
        ({"weights": "/etc/passwd"}, "system folder"),
    ],
)
def test_what_is_wrong_is_shown_at_its_field(client: Client, sent: dict[str, Any], changed: dict[str, Any], text: str) -> None:
    page = refused(client, {**sent, **changed})
    assert text in page and 'role="alert"' in page
    kept = "datasets/cats" if "images" not in changed else "sks cat"
    assert kept in page, "what was typed is still there"


def test_nothing_that_is_typed_becomes_markup(client: Client, sent: dict[str, Any]) -> None:
    page = refused(client, {**sent, "name": EVIL, "images": EVIL, "trigger_word": EVIL, "weights": EVIL})
    assert "<script>alert" not in page and "<img" not in page


def test_a_name_that_is_taken_is_refused(client: Client, sent: dict[str, Any]) -> None:
    post(client, {**sent, "act": "write"})
    answer, _ = post(client, sent)
    assert answer.status_code == 422 and "already an environment" in answer.content.decode()
    assert not Job.objects.exists()


def test_every_choice_has_a_family_and_an_estimate() -> None:
    assert {choice.family for choice in model_choices()} >= {"flux", "sdxl", "z_image", "pixart_sigma"}
    for choice in model_choices():
        spec = specs()[choice.family]
        assert choice.flavour in spec.flavours and choice.flavour not in spec.needs_references
        needs = [fit.gib for fit in choice.fits]
        assert needs and needs == sorted(needs, reverse=True) and min(needs) > 0 and find_choice(choice.key) is choice


@pytest.mark.parametrize(
    ("gib", "precision"), [(80, "no_change"), (32, "no_change"), (24, "int8-quanto"), (12, "nf4-bnb"), (8, None), (6, None)]
)
def test_the_best_precision_that_fits_is_chosen(gib: int, precision: str | None) -> None:
    choice = find_choice("flux/dev")
    assert choice is not None
    options = options_for(choice, gib)
    assert (options["base_model_precision"] if options else None) == precision
    assert options_for(choice, PROCESSOR) == {"mixed_precision": "no", "base_model_precision": "no_change", "optimizer": "torch-adamw"}


def test_text_encoders_are_quantised_where_encoding_captions_decides() -> None:
    choice = find_choice(PIXART)
    assert choice is not None
    assert options_for(choice, 12) == {"base_model_precision": "no_change", "gradient_checkpointing": True}
    small = options_for(choice, 8)
    assert small == {"base_model_precision": "no_change", "text_encoder_1_precision": "int8-quanto", "gradient_checkpointing": True}


def test_images_are_encoded_one_at_a_time_where_encoding_them_decides() -> None:
    choice = find_choice("sana/sana1.0-600m-1024")
    assert choice is not None
    usual = {"base_model_precision": "no_change", "gradient_checkpointing": True}
    assert options_for(choice, 16) == usual
    assert options_for(choice, 8) == {**usual, "vae_batch_size": 1}
    assert [fit.gib for fit in choice.fits] == sorted((fit.gib for fit in choice.fits), reverse=True)


def test_the_table_of_the_page_for_newcomers_is_up_to_date() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/lora.md").read_text(encoding="utf-8")
    shown = page.split(BEGIN)[1].split(END)[0].strip()
    assert shown == "\n".join(table()), f"{COMMAND} prints the table"


def test_the_card_of_this_machine_is_preselected(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def __init__(self, *sizes: float) -> None:
            self.sizes = sizes

        def gpus(self) -> list[Any]:
            return [type("Gpu", (), {"total_bytes": int(size * 2**30)})() for size in self.sizes]

    for sizes, found in (((), PROCESSOR), ((23.99,), 24), ((24, 11.9), 12), ((139.8,), 96), ((140.5,), 141), ((2,), 6)):
        monkeypatch.setattr(card.hardware, "DRIVER", Driver(*sizes))
        assert card.card_here() == found
