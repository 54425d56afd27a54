"""The metadata of a card: what the hub reads, and what it must not be told."""

from __future__ import annotations

from tests.helpers.models import options_with
from trainer_engine.config.families import specs
from trainer_engine.results.model_card import NOT_FOR_ALL, model_card_head, model_card_notices, named_base

FLUX, PIXART = specs()["flux"], specs()["pixart_sigma"]
LOCAL = "/data/models/my-base"


def test_the_card_names_the_license_of_known_weights() -> None:
    schnell = options_with(model_family="flux", model_type="lora", model_flavour="schnell", pretrained_model_name_or_path=None)
    assert "license: apache-2.0" in model_card_head(schnell, FLUX, "black-forest-labs/FLUX.1-schnell", ["lora"], is_adapter=True)
    assert not [line for line in model_card_head(schnell, FLUX, "somebody/else", ["lora"]) if line.startswith("license")]


def test_a_published_card_hides_the_machine_and_warns() -> None:
    at_home, published = options_with(), options_with(push_to_hub=True, model_card_note="Roses only.")
    assert f'base_model: "{LOCAL}"' in model_card_head(at_home, PIXART, LOCAL, []) and model_card_notices(at_home) == []
    text = "\n".join(
        [*model_card_head(published, PIXART, LOCAL, [], is_adapter=True), *model_card_notices(published), named_base(published, LOCAL)]
    )
    assert LOCAL not in text and "base_model" not in text and "my-base" in text
    assert NOT_FOR_ALL in text and "Roses only." in text
    safe = options_with(push_to_hub=True, model_card_safe_for_work=True)
    assert NOT_FOR_ALL not in "\n".join([*model_card_head(safe, PIXART, LOCAL, []), *model_card_notices(safe)])
