"""Regular expressions that never end."""

from __future__ import annotations

import json

import httpx
from PIL import Image

from tests.security.target import Target

HANG = "([a-z_.0-9]+)+!$"
OTHERS = (
    "(a|a)*$x" * 3,
    "(.*.*)*!",
    "(?:(?:[a-z]+)*\\.?)*[A-Z]{3}!",
    "a{99999999999}",
    "(" * 200 + ")" * 200,
    "(?P<a>x)(?P=a)" * 40,
    "[" * 500,
)


def attack_patterns_of_an_adapter(target: Target) -> list[str]:
    """Names of an adapter file are patterns, which are compared with a thousand layers."""
    through = []
    for number, pattern in enumerate((HANG, *OTHERS)):
        for preset in (
            {"target_name": [pattern]},
            {"target_module": ["Attention"], "exclude_name": [pattern]},
            {"name_algo_map": {pattern: {"algo": "lokr"}}},
        ):
            config = {"algo": "lokr", "multiplier": 1, "linear_dim": 4, "linear_alpha": 1, "apply_preset": preset}
            name = target.environment(model_type="lora", lora_type="lycoris", lycoris_config=f"own-{number}/lycoris_config.json")
            try:
                with target.client(30) as client:
                    client.post("/api/configs/lycoris/validate", json=config)
                    client.put(f"/api/configs/environments/{name}/lycoris", json=config)
                    client.post(f"/api/configs/{name}/activate")
                    client.post("/api/training/validate", data={})
            except httpx.TransportError as error:
                through.append(f"{pattern[:30]!r} in {next(iter(preset))}: {error!r}")
                target.revive()
    return through


def attack_filters_of_captions(target: Target) -> list[str]:
    """Entries of caption_filter_list are patterns, which are compared with every caption."""
    through = []
    folder = target.place / "captioned"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    (folder / "a.txt").write_text("a" * 5_000 + "b")
    images = {"id": "captioned", "instance_data_dir": str(folder), "cache_dir_vae": str(target.place / "c"), "caption_strategy": "textfile"}
    for number, pattern in enumerate((HANG, *OTHERS)):
        texts = {"id": "t", "dataset_type": "text_embeds", "cache_dir": str(target.place / "t"), "caption_filter_list": [f"s/{pattern}/x/"]}
        file = target.place / f"filters-{number}.json"
        file.write_text(json.dumps([images, texts]))
        try:
            with target.client(30) as client:
                client.post("/api/training/validate", data=target.form("filtered", data_backend_config=str(file)))
                client.get("/api/training/status", timeout=5)
        except httpx.TransportError as error:
            through.append(f"{pattern[:30]!r} in caption_filter_list: {error!r}")
            target.revive()
    return through
