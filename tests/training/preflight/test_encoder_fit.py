"""Autoencoders of other families, and CLIP with fewer layers than ``clip_skip`` asks for: refused by ``validate`` and by the engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models import tiny_model
from tests.trainer_engine.families.test_specs import family_of
from tests.training.preflight.test_model_parts import BASE, FAMILIES, every_family, model
from trainer_engine.config.components import VAE
from trainer_engine.config.encoder_fit import CLIP_SKIP, clip_skip_problem, foreign_autoencoder, missing_clip_layers
from trainer_engine.config.families import specs
from trainer_engine.config.parse import check_options
from trainer_engine.contract.errors import InvalidOptions, ModelUnavailable
from trainer_engine.families.common.clip_prompts import ClipFamily

WITH_CLIP = [name for name in FAMILIES if specs()[name].prompts.clip_folders]
SCALED = [name for name in FAMILIES if specs()[name].latents.scaling]


@every_family
def test_the_spec_states_the_autoencoder_that_the_small_model_has(tmp_path: Path, name: str) -> None:
    whole = model(tmp_path, name)
    config, latents = whole.config("vae"), whole.spec.latents
    assert config["_class_name"] in latents.autoencoder_classes
    assert (latents.scaling is None) == ("scaling_factor" not in config)
    assert latents.scaling is None or latents.scaling.shift == pytest.approx(config.get("shift_factor") or 0.0)


@every_family
def test_the_autoencoder_of_another_family_is_refused(tmp_path: Path, name: str) -> None:
    own = model(tmp_path, name)
    latents = own.spec.latents
    for other in FAMILIES:
        theirs = specs()[other].latents
        alike = latents.autoencoder_classes == theirs.autoencoder_classes and latents.channels == theirs.channels
        found = own.problems(**{VAE: str(tiny_model(other))})
        assert [(one.option, one.code) for one in found] == ([] if alike else [(VAE, "other_autoencoder")]), other
        if not alike:
            assert found[0].message.endswith(f"which is not the autoencoder of {own.spec.title}.")
            assert own.spec.repository(None) in found[0].hint
            with pytest.raises(ModelUnavailable, match="which is not the autoencoder of"):
                own.finder(**{VAE: str(tiny_model(other))}).find("vae")


@every_family
def test_the_autoencoder_in_the_base_model_is_named_by_its_option(tmp_path: Path, name: str) -> None:
    own = model(tmp_path, name)
    other = next(one for one in FAMILIES if specs()[one].latents.autoencoder_classes != own.spec.latents.autoencoder_classes)
    shutil.rmtree(own.folder / "vae")
    shutil.copytree(tiny_model(other) / "vae", own.folder / "vae")
    assert own.codes() == [(BASE, "other_autoencoder")]


@pytest.mark.parametrize("name", SCALED)
def test_one_of_the_same_class_is_known_by_the_scale_of_another_family(tmp_path: Path, name: str) -> None:
    own = model(tmp_path, name)
    latents = own.spec.latents
    alike = (specs()[one].latents for one in SCALED)
    for scaling in {one.scaling for one in alike if one.channels == latents.channels and one.scaling} | {latents.scaling}:
        assert scaling is not None
        own.change("vae", lambda config, it=scaling: config.update(scaling_factor=it.factor, shift_factor=it.shift or None))  # type: ignore[misc]
        assert own.codes() == ([] if scaling == latents.scaling else [(BASE, "other_autoencoder")])
    own.change("vae", lambda config: config.update(scaling_factor=0.9))
    assert own.codes() == [], "somebody's own autoencoder"


def test_an_old_autoencoder_that_states_no_scale_has_the_one_that_diffusers_takes(tmp_path: Path) -> None:
    for name, codes in (("sd1x", []), ("sdxl", [(BASE, "other_autoencoder")])):
        own = model(tmp_path, name)
        own.change("vae", lambda config: config.pop("scaling_factor"))
        assert own.codes() == codes


@pytest.mark.parametrize(
    "strange",
    [
        {"latent_channels": "four"},
        {"latent_channels": True},
        {"block_out_channels": 4},
        {"block_out_channels": []},
        {"scaling_factor": "small"},
        {"scaling_factor": None, "shift_factor": []},
        {"_class_name": 7},
    ],
)
def test_what_is_no_number_is_not_judged(tmp_path: Path, strange: dict[str, Any]) -> None:
    own = model(tmp_path, "sdxl")
    own.change("vae", lambda config: config.update(strange))
    assert foreign_autoencoder(own.options().model, own.spec, tmp_path) is None


@pytest.mark.parametrize(
    ("latents", "fits"), [((32, [8] * 4), True), ((16, [8] * 4), False), ((32, [8] * 6), False), ((128, [8] * 5), True)]
)
def test_squares_of_cells_may_be_put_together_as_channels(tmp_path: Path, latents: tuple[int, list[int]], *, fits: bool) -> None:
    own = model(tmp_path, "flux2")
    own.change("vae", lambda config: config.update(latent_channels=latents[0], block_out_channels=latents[1]))
    assert own.codes() == ([] if fits else [(BASE, "other_autoencoder")])


# ---- layers of CLIP ----


@every_family
def test_the_spec_names_the_encoders_of_which_the_family_skips_layers(name: str) -> None:
    family, prompts = family_of(specs()[name]), specs()[name].prompts
    if isinstance(family, ClipFamily):
        outputs = family.clip_outputs
        assert set(outputs) == set(prompts.clip_folders)
        assert {output.penultimate for output in outputs.values()} == {prompts.reads_penultimate}
    else:
        assert prompts.clip_folders == (("text_encoder",) if name == "flux" else ())


@pytest.mark.parametrize("name", WITH_CLIP)
def test_a_layer_before_the_first_is_refused_before_a_start_and_in_the_words_of_the_engine(tmp_path: Path, name: str) -> None:
    own = model(tmp_path, name)
    layers, read_from = own.config("text_encoder")["num_hidden_layers"], own.spec.prompts.reads_penultimate
    most = layers - 1 - read_from
    assert own.codes(**{CLIP_SKIP: most}) == []
    [problem] = own.problems(**{CLIP_SKIP: most + 1})
    assert (problem.option, problem.code, problem.expected) == (CLIP_SKIP, "too_many", f"at most {most}")
    with pytest.raises(InvalidOptions) as refused:
        family_of(own.spec, **{CLIP_SKIP: most + 1}).encode_prompts([""])
    assert list(refused.value.problems) == [problem]


def test_the_text_encoder_with_the_fewest_layers_decides(tmp_path: Path) -> None:
    own = model(tmp_path, "sdxl")
    own.state("text_encoder", "num_hidden_layers", 12)
    own.state("text_encoder_2", "num_hidden_layers", 3)
    assert [one.expected for one in missing_clip_layers(own.options(clip_skip=11).model, own.spec, tmp_path)] == ["at most 1"]
    shutil.rmtree(own.folder / "text_encoder_2")
    assert [one.expected for one in missing_clip_layers(own.options(clip_skip=11).model, own.spec, tmp_path)] == ["at most 10"]


@pytest.mark.parametrize(("skip", "layers", "penultimate", "is_fine"), [(0, 1, False, True), (1, 1, False, False), (0, 1, True, False)])
def test_layers_are_counted_from_the_one_that_is_read(skip: int, layers: int, *, penultimate: bool, is_fine: bool) -> None:
    assert (clip_skip_problem(skip, layers, penultimate=penultimate) is None) is is_fine


@every_family
def test_a_family_without_clip_says_that_nothing_is_skipped(name: str) -> None:
    _, problems = check_options({"model_family": name, "model_type": "lora", CLIP_SKIP: 1})
    found = [(one.code, one.level.value) for one in problems if one.option == CLIP_SKIP]
    assert found == ([] if name in WITH_CLIP else [("no_effect", "note")])
