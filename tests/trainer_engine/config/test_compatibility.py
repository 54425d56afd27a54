"""The report of compatibility: every obstacle of a foreign configuration by its kind, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from trainer_engine.config.compatibility import RANKS, Compatibility, check_compatibility
from trainer_engine.config.options.hints import HINTS
from trainer_engine.config.options.refused import Reason, refusal_of
from trainer_engine.config.options.registry import not_available

HERE = {
    "--model_family": "pixart_sigma",
    "--model_type": "full",
    "--model_flavour": "900M-1024-v0.6",
    "--data_backend_config": "multidatabackend.json",
    "--output_dir": "output/x",
    "--max_train_steps": 100,
    "--optimizer": "adamw_bf16",
}
ELSEWHERE = {**HERE, "--model_family": "ltxvideo2", "--model_type": "lora", "--model_flavour": "2.0-dev", "--lora_type": "standard"}
DATASETS = [
    {"id": "pictures", "type": "local", "instance_data_dir": "/of/another/machine", "caption_strategy": "filename"},
    {"id": "text", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text"},
]


def obstacles(report: Compatibility) -> list[tuple[str, str, str]]:
    return [(one.reason, one.problem.option, one.problem.code) for one in report.obstacles]


def test_a_configuration_of_a_family_that_is_here_starts() -> None:
    report = check_compatibility(HERE, DATASETS)
    assert report.starts and report.has_family and report.family == "pixart_sigma"
    assert (report.options, report.datasets) == (len(HERE), 2)


def test_paths_of_another_machine_are_no_obstacle() -> None:
    assert check_compatibility({**HERE, "--output_dir": "/nowhere/at/all", "cache_dir_vae": "/nor/here"}, DATASETS).starts


def test_a_missing_family_is_the_only_obstacle_of_an_otherwise_good_configuration() -> None:
    assert obstacles(check_compatibility(ELSEWHERE, DATASETS)) == [("family", "model_family", "not_available")]


def test_options_of_the_missing_family_are_not_listed_beside_it() -> None:
    report = check_compatibility({**ELSEWHERE, "ltx2_intrinsic_conditioning": True, "audio_channels": 3}, DATASETS)
    assert obstacles(report) == [("family", "model_family", "not_available")]


def test_options_of_another_family_stand_in_the_way_of_a_family_that_is_here() -> None:
    report = check_compatibility({**HERE, "ltx2_intrinsic_conditioning": True}, DATASETS)
    assert obstacles(report) == [("family", "ltx2_intrinsic_conditioning", "not_available")]


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("trust_remote_code", True, "unsafe"),
        ("accelerate_extra_args", "--debug", "unsafe"),
        ("delete_nsfw_images", True, "unsafe"),
        ("crepa_enabled", True, "research"),
        ("twinflow_enabled", "true", "research"),
        ("distillation_method", "dcm", "research"),
        ("peft_lora_mode", "singlora", "research"),
        ("enable_watermark", True, "not_offered"),
        ("max_upscale_threshold", 0.2, "not_offered"),
        ("no_such_option", 1, "unknown"),
        ("learning_rate", "fast", "setting"),
        ("train_batch_size", 0, "setting"),
        ("model_family", "my_own", "family"),
        ("snr_gamma", -1, "setting"),
    ],
)
def test_each_obstacle_has_its_reason(option: str, value: Any, reason: str) -> None:
    report = check_compatibility({**HERE, f"--{option}": value}, DATASETS)
    assert [(kind, name) for kind, name, _ in obstacles(report)] == [(reason, option)]


def test_obstacles_are_ranked_by_reason() -> None:
    given = {**ELSEWHERE, "--learning_rate": "x", "--nonsense": 1, "--trust_remote_code": True, "--crepa_enabled": True}
    reasons = [one.reason for one in check_compatibility(given, DATASETS).obstacles]
    assert reasons == ["family", "research", "unsafe", "unknown", "setting"]
    assert sorted(reasons, key=RANKS.index) == reasons


def test_a_missing_option_and_a_contradiction_are_settings() -> None:
    given = {name: value for name, value in HERE.items() if name != "--output_dir"}
    report = check_compatibility({**given, "--num_train_epochs": 3}, DATASETS)
    assert [(kind, code) for kind, _, code in obstacles(report)] == [("setting", "missing"), ("setting", "two_lengths")]


def test_fields_of_datasets_are_reported_with_their_place() -> None:
    datasets = [{**DATASETS[0], "audio": {"sample_rate": 1}}, {**DATASETS[1], "colour": "red"}]
    found = obstacles(check_compatibility(HERE, datasets))
    assert ("family", "dataloader[0].audio", "not_available") in found
    assert ("unknown", "dataloader[1].colour", "unknown_field") in found


@pytest.mark.parametrize("datasets", [{}, "text", 7, [], [3]])
def test_a_file_that_holds_no_datasets_is_an_obstacle(datasets: object) -> None:
    assert {kind for kind, _, _ in obstacles(check_compatibility(HERE, datasets))} == {"setting"}


def test_datasets_are_read_with_the_defaults_of_usable_options_beside_wrong_ones() -> None:
    report = check_compatibility({**HERE, "--learning_rate": "x", "--resolution": "big"}, DATASETS)
    assert [name for _, name, _ in obstacles(report)] == ["learning_rate", "resolution"]


def test_hints_are_notes_and_no_obstacles() -> None:
    report = check_compatibility({**HERE, "--offload_during_startup": True}, DATASETS)
    assert report.starts and "offload_during_startup" in [note.option for note in report.notes]


def test_a_report_is_json_of_one_shape() -> None:
    shown = check_compatibility(ELSEWHERE, None).as_dict()
    assert set(shown) == {"starts", "family", "options", "datasets", "obstacles", "notes"}
    assert shown["family"] == {"name": "ltxvideo2", "available": False} and shown["datasets"] is None
    assert set(shown["obstacles"][0]) == {"reason", "option", "code", "message", "got", "expected", "hint"}


def test_every_refused_option_says_what_it_is_for() -> None:
    for name in not_available():
        refusal = refusal_of(name)
        assert refusal.about and not refusal.about.endswith("."), name


def test_only_options_of_distribution_and_epochs_are_refused_as_not_implemented_yet() -> None:
    bare = {name for name in not_available() if name not in HINTS and refusal_of(name).reason is Reason.LATER}
    later = {"deepspeed_config", "slider_lora_target"}
    assert {name for name in bare if not name.startswith(("fsdp_", "context_parallel_"))} <= later


def test_no_option_is_both_a_hint_and_refused_for_a_reason() -> None:
    assert {name for name in HINTS if refusal_of(name).reason is not Reason.LATER} == set()


def test_assistants_routes_and_offsets_of_a_configuration_are_accepted() -> None:
    route = {"selection_ratio": 0.5, "start_layer_idx": 2, "end_layer_idx": -2}
    foreign = {
        **HERE,
        "--model_family": "flux",
        "--model_type": "lora",
        "--model_flavour": "schnell",
        "--assistant_lora_strength": 0.9,
        "--assistant_lora_inference_strength": 0.1,
        "--tread_config": {"routes": [route]},
    }
    pictures, texts = DATASETS
    report = check_compatibility(foreign, [{**pictures, "timestep_sampling_offset": -0.3}, texts])
    assert obstacles(report) == [] and report.starts
    assert obstacles(check_compatibility({**foreign, "--disable_assistant_lora": "true"}, DATASETS)) == []


@pytest.mark.parametrize("flavour", ["i2v-14b-2.2-high", "flf2v-14b-2.1", "ti2v-5b-2.2", "vace-14b-2.1"])
def test_a_flavour_that_is_another_model_is_named_like_a_family(flavour: str) -> None:
    given = {**ELSEWHERE, "--model_family": "wan", "--model_flavour": flavour}
    assert obstacles(check_compatibility(given, DATASETS)) == [("family", "model_flavour", "not_available")]


def test_a_flavour_that_nobody_knows_is_a_setting() -> None:
    given = {**ELSEWHERE, "--model_family": "wan", "--model_flavour": "t2v-9000b"}
    assert obstacles(check_compatibility(given, DATASETS)) == [("setting", "model_flavour", "unknown_flavour")]


def test_a_request_to_delete_files_is_a_note_that_nothing_is_deleted() -> None:
    given = {**HERE, "--delete_problematic_images": True, "--delete_unwanted_images": "true"}
    report = check_compatibility(given, [{**DATASETS[0], "delete_problematic_images": True}, DATASETS[1]])
    assert report.starts
    wanted = {"delete_problematic_images", "delete_unwanted_images", "dataloader[0].delete_problematic_images"}
    said = {note.option: note.message for note in report.notes if note.option in wanted}
    assert set(said) == wanted and all("nothing is deleted" in text for text in said.values())
