"""Rules of how a network computes: attention, its masks, its packages and devices, and the options of its layers."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers.models.attention_dispatch import _HUB_KERNELS_REGISTRY, AttentionBackendName, _AttentionBackendRegistry

from tests.helpers.models import options_with
from trainer_engine.config.attention import KERNEL_PUBLISHER, LATER, MECHANISMS, SYNONYMS, AttentionMechanism
from trainer_engine.config.families import specs
from trainer_engine.config.options import REGISTRY
from trainer_engine.config.parse import check_options
from trainer_engine.config.rules.device import device_problems
from trainer_engine.contract.errors import Level, Problem

GIVEN = {"model_type": "lora", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 100, "num_train_epochs": 0}
OPTIONS = (
    *("attention_mechanism", "sageattention_usage", "unet_attention_slice", "enable_chunked_feed_forward"),
    *("feed_forward_chunk_size", "fuse_qkv_projections", "dynamo_backend", "dynamo_mode", "dynamo_dynamic"),
    *("dynamo_fullgraph", "dynamo_use_regional_compilation"),
)
FORMAT = [
    "diffusers",
    "xformers",
    "sla",
    "sageattention",
    "sageattention-int8-fp16-triton",
    "sageattention-int8-fp16-cuda",
    "sageattention-int8-fp8-cuda",
    "flash-attn",
    "flash-attn-hub",
    "flash-attn-2",
    "flash-attn-varlen-hub",
    "flash-attn-3",
    "flash-attn-3-hub",
    "flash-attn-3-varlen",
    "flash-attn-3-varlen-hub",
    "flash-attn-4-hub",
    "flex",
    "metal-flash-attention",
    "metal-flash-attention-int8",
    "metal-flash-attention-int4",
    "native",
    "cudnn",
    "native-efficient",
    "native-flash",
    "native-math",
    "native-npu",
    "native-xla",
]


def problems_of(family: str, **values: Any) -> list[Problem]:
    """Problems of these options alone."""
    found = check_options({**GIVEN, "model_family": family, **values})[1]
    return [problem for problem in found if problem.option in OPTIONS]


def on(device: str, capability: tuple[int, int] | None = None, **values: Any) -> list[Problem]:
    found = device_problems(options_with(model_family="sdxl", **values), device, capability)
    return [problem for problem in found if problem.option == "attention_mechanism"]


def test_every_word_of_the_format_is_known() -> None:
    assert set(FORMAT) == {*MECHANISMS, *SYNONYMS, *LATER}
    assert REGISTRY["attention_mechanism"].choices == tuple(MECHANISMS)


@pytest.mark.parametrize("row", [row for row in MECHANISMS.values() if row.backend], ids=lambda row: row.name)
def test_every_mechanism_is_a_backend_of_the_library(row: AttentionMechanism) -> None:
    backend = AttentionBackendName(row.backend)
    assert backend in _AttentionBackendRegistry.list_backends()
    kernel = _HUB_KERNELS_REGISTRY.get(backend)
    assert row.kernel == (kernel.repo_id if kernel else "")


def test_kernels_come_from_one_publisher_alone() -> None:
    assert {row.kernel.split("/")[0] for row in MECHANISMS.values() if row.kernel} == {KERNEL_PUBLISHER}


@pytest.mark.parametrize("usage", ["training", "training+inference"])
def test_sage_attention_is_refused_in_training(usage: str) -> None:
    (problem,) = problems_of("sdxl", attention_mechanism="sageattention", sageattention_usage=usage)
    assert (problem.option, problem.code, problem.got) == ("sageattention_usage", "no_backward", usage)
    assert problems_of("sdxl", attention_mechanism="sageattention") == []


def test_a_kernel_without_a_backward_pass_is_refused_with_the_one_that_has_it() -> None:
    (problem,) = problems_of("flux", attention_mechanism="flash-attn-3")
    assert problem.code == "no_backward" and "flash-attn-3-hub" in problem.hint


def test_options_of_sage_attention_without_it_are_noted() -> None:
    (note,) = problems_of("sdxl", sageattention_usage="training")
    assert (note.code, note.level) == ("no_effect", Level.NOTE)
    (note,) = problems_of("sdxl", attention_mechanism="sageattention", validation_disable=True)
    assert (note.option, note.code, note.level) == ("attention_mechanism", "no_effect", Level.NOTE)


@pytest.mark.parametrize("mechanism", [name for name, row in MECHANISMS.items() if "additive" not in row.masks and row.trains])
def test_mechanisms_without_masks_are_refused_for_a_family_that_always_needs_one(mechanism: str) -> None:
    problem = next(found for found in problems_of("pixart_sigma", attention_mechanism=mechanism) if found.code == "no_masks")
    assert problem.level is Level.ERROR and "native-efficient" in problem.expected and mechanism not in problem.expected.split(", ")


@pytest.mark.parametrize(
    ("mechanism", "refused"), [("flash-attn-hub", True), ("flash-attn-varlen-hub", False), ("native-efficient", False)]
)
def test_a_family_that_masks_on_request_refuses_only_then(mechanism: str, refused: bool) -> None:
    assert problems_of("flux", attention_mechanism=mechanism) == []
    found = problems_of("flux", attention_mechanism=mechanism, flux_attention_masked_training=True)
    assert [problem.code for problem in found] == (["no_masks"] if refused else [])


def test_flex_attention_needs_a_compiled_network() -> None:
    assert [found.code for found in problems_of("flux", attention_mechanism="flex")] == ["needs_compilation"]
    assert problems_of("flux", attention_mechanism="flex", dynamo_backend="inductor") == []


@pytest.mark.parametrize(
    ("family", "values", "codes"),
    [
        ("sdxl", {"unet_attention_slice": True}, []),
        ("flux", {"unet_attention_slice": True}, [("no_effect", Level.NOTE)]),
        ("sdxl", {"unet_attention_slice": True, "attention_mechanism": "native"}, [("two_mechanisms", Level.ERROR)]),
        ("sdxl", {"feed_forward_chunk_size": 8}, [("no_effect", Level.NOTE)]),
        ("sdxl", {"enable_chunked_feed_forward": True, "feed_forward_chunk_size": 8}, []),
        ("sdxl", {"enable_chunked_feed_forward": True, "feed_forward_chunk_size": 0}, [("out_of_range", Level.ERROR)]),
        ("flux", {"fuse_qkv_projections": True, "lora_type": "standard"}, []),
        (
            "flux",
            {"fuse_qkv_projections": True, "lora_type": "standard", "base_model_precision": "int8-quanto"},
            [("no_effect", Level.NOTE)],
        ),
        ("flux", {"fuse_qkv_projections": True, "lora_type": "lycoris"}, [("no_effect", Level.NOTE)]),
        ("flux", {"fuse_qkv_projections": True, "lora_type": "lycoris", "model_type": "full"}, []),
    ],
)
def test_options_of_layers(family: str, values: dict[str, Any], codes: list[Any]) -> None:
    assert [(problem.code, problem.level) for problem in problems_of(family, **values)] == codes


@pytest.mark.parametrize("family", specs())
def test_every_family_has_feed_forward_layers_and_repeated_blocks(family: str) -> None:
    problems = problems_of(family, enable_chunked_feed_forward=True)
    assert [problem.code for problem in problems] == ([] if specs()[family].has_feed_forward else ["no_effect"])
    assert specs()[family].has_feed_forward or family == "sana", "its layers see the neighbours of a token"
    assert specs()[family].repeated_blocks


@pytest.mark.parametrize("mechanism", [name for name, row in MECHANISMS.items() if "cpu" not in row.devices and name != "flash-attn-3"])
def test_a_cpu_run_refuses_mechanisms_of_gpus_and_names_its_own(mechanism: str) -> None:
    (problem,) = on("cpu", attention_mechanism=mechanism, sageattention_usage="inference", **COMPILED)
    assert (problem.code, problem.got, problem.expected) == (
        "lacked_by_device",
        mechanism,
        "one of diffusers, native, native-math, native-flash",
    )


COMPILED = {"dynamo_backend": "inductor"}


@pytest.mark.parametrize(("mechanism", "install"), [("xformers", "xformers>=0.0.29"), ("flash-attn", "flash-attn>=2.6.3")])
def test_a_missing_package_is_named_with_how_to_install_it(mechanism: str, install: str) -> None:
    (problem,) = on("cuda", (9, 0), attention_mechanism=mechanism, mixed_precision="bf16")
    assert problem.code == "not_installed" and install in problem.hint and mechanism not in problem.expected.split(", ")


@pytest.mark.parametrize(
    ("capability", "precision", "codes"),
    [
        ((8, 0), "bf16", []),
        (None, "bf16", []),
        ((7, 5), "bf16", ["lacked_by_device"]),
        ((9, 0), "no", ["needs_short_type"]),
        ((7, 5), "no", ["lacked_by_device", "needs_short_type"]),
    ],
)
def test_a_kernel_names_the_gpu_and_the_number_type_that_it_needs(capability: Any, precision: str, codes: list[str]) -> None:
    found = on("cuda", capability, attention_mechanism="native-flash", mixed_precision=precision)
    assert [problem.code for problem in found] == codes


@pytest.mark.parametrize(
    ("installed", "least", "enough"), [("2.6.3", "2.6.3", True), ("2.10.0.post2", "2.9", True), ("2.6", "2.6.3", False)]
)
def test_versions_are_compared_as_numbers(monkeypatch: pytest.MonkeyPatch, installed: str, least: str, enough: bool) -> None:
    monkeypatch.setattr("trainer_engine.config.attention.version", lambda _package: installed)
    assert AttentionMechanism(name="x", backend="flash", package="flash-attn", least=least).is_installed is enough


def test_a_cpu_run_takes_its_own_mechanisms_in_float32() -> None:
    for name in ("diffusers", "native", "native-math", "native-flash"):
        assert on("cpu", attention_mechanism=name) == []


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        ({"dynamo_use_regional_compilation": True}, [("dynamo_use_regional_compilation", "no_effect", Level.NOTE)]),
        ({"dynamo_mode": "reduce-overhead"}, [("dynamo_mode", "no_effect", Level.NOTE)]),
        ({"dynamo_mode": ""}, []),
        ({"dynamo_mode": "fast"}, [("dynamo_mode", "not_a_choice", Level.ERROR)]),
        ({**COMPILED, "dynamo_mode": "max-autotune", "dynamo_dynamic": True, "dynamo_fullgraph": True}, []),
        ({"dynamo_backend": "eager", "dynamo_mode": "max-autotune"}, [("dynamo_mode", "no_effect", Level.NOTE)]),
        ({"dynamo_backend": "tensorrt"}, [("dynamo_backend", "not_available", Level.ERROR)]),
        ({**COMPILED, "base_model_precision": "int8-quanto"}, []),
        ({**COMPILED, "base_model_precision": "int8-quanto", "dynamo_use_regional_compilation": True}, []),
    ],
)
def test_options_of_compilation(values: dict[str, Any], codes: list[Any]) -> None:
    assert [(problem.option, problem.code, problem.level) for problem in problems_of("sdxl", **values)] == codes


@pytest.mark.parametrize(("device", "missing"), [("cpu", "a C++ compiler"), ("cuda", "a C compiler")])
def test_a_missing_compiler_is_named_for_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, device: str, missing: str) -> None:
    options = options_with(model_family="sdxl", **COMPILED)
    monkeypatch.setenv("PATH", str(tmp_path))
    (problem,) = [found for found in device_problems(options, device) if found.option == "dynamo_backend"]
    assert (problem.code, problem.expected) == ("no_compiler", "no") and missing in problem.message
    traced = options_with(model_family="sdxl", dynamo_backend="eager")
    assert not [found for found in device_problems(traced, device) if found.option == "dynamo_backend"]
