"""Base models whose parts are missing, of another family, or do not fit one another: for every family, by ``validate`` and the engine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checked_runs import checked, refusal
from tests.helpers.models import options_with, tiny_model
from trainer_engine.config.components import spec_of_run
from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.part_fit import VOCABULARIES, foreign_network, unfit_encoders
from trainer_engine.config.text_states import TextStates, stated_number, stated_width
from trainer_engine.contract.errors import ModelUnavailable, Problem
from trainer_engine.weights.loading import PartFinder
from training.preflight.base_model import HubSettings
from training.preflight.model_files import model_problems

BASE = "pretrained_model_name_or_path"
FAMILIES = sorted(specs())
STATES = [(name, states) for name in FAMILIES for states in specs()[name].prompts.states]
STACKED = [(name, states) for name, states in STATES if states.layers]
PARTS = [(name, folder) for name in FAMILIES for folder in specs()[name].base_folders]
every_family = pytest.mark.parametrize("name", FAMILIES)
every_part = pytest.mark.parametrize(("name", "folder"), PARTS, ids="-".join)
every_state = pytest.mark.parametrize(("name", "states"), STATES, ids=[f"{name}-{states.width}" for name, states in STATES])
every_stack = pytest.mark.parametrize(("name", "states"), STACKED, ids=[name for name, _ in STACKED])


@dataclass(frozen=True)
class Model:
    """A copy of the small model of a family, in which a test may damage what it likes."""

    folder: Path
    family: str
    flavour: str | None = None

    @property
    def spec(self) -> FamilySpec:
        return specs()[self.family]

    @property
    def network(self) -> str:
        return self.spec.components[self.spec.network].folder

    def options(self, **values: Any) -> TrainingOptions:
        return options_with(**{"model_family": self.family, "model_flavour": self.flavour, BASE: str(self.folder), **values})

    def problems(self, **values: Any) -> list[Problem]:
        options = self.options(**values)
        hub = HubSettings(cache=self.folder / "hub", endpoint="http://127.0.0.1:1", token=None, is_offline=True)
        return list(model_problems(options, spec_of_run(options.model, self.spec), hub))

    def codes(self, **values: Any) -> list[tuple[str, str]]:
        return [(problem.option, problem.code) for problem in self.problems(**values)]

    def config(self, part: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / part / "config.json").read_text())
        return found

    @property
    def index(self) -> dict[str, Any]:
        """``model_index.json``; empty if the model has none."""
        path = self.folder / "model_index.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def change(self, part: str, change: Callable[[dict[str, Any]], None]) -> None:
        document = self.config(part)
        change(document)
        path = self.folder / part / "config.json"
        path.unlink()  # it is a link to the file of the model that other tests share
        path.write_text(json.dumps(document))

    def state(self, part: str, key: str, value: int) -> None:
        """Write a number where the configuration of a text encoder has it."""
        self.change(part, lambda document: document.get("text_config", document).update({key: value}))

    def finder(self, **values: Any) -> PartFinder:
        """What finds parts in the engine."""
        options = self.options(**values)
        return PartFinder(options.model, spec_of_run(options.model, self.spec))


def model(place: Path, name: str, **how: Any) -> Model:
    return Model(Path(shutil.copytree(tiny_model(name, **how), place / name, copy_function=os.link)), name)


def other_families(name: str) -> Iterator[str]:
    """Families whose network has another class, the next one of the alphabet first."""
    at = FAMILIES.index(name)
    for other in (*FAMILIES[at + 1 :], *FAMILIES[:at]):
        if not set(specs()[other].network_classes) & set(specs()[name].network_classes):
            yield other


@every_family
def test_a_whole_model_is_accepted(tmp_path: Path, name: str) -> None:
    whole = model(tmp_path, name)
    assert whole.codes() == []
    assert whole.config(whole.network)["_class_name"] in whole.spec.network_classes
    assert whole.spec.prompts.states, "every family says what it reads of its text encoders"


@every_part
def test_a_pipeline_without_a_part_is_refused_by_the_name_of_the_part(tmp_path: Path, name: str, folder: str) -> None:
    damaged = model(tmp_path, name)
    shutil.rmtree(damaged.folder / folder)
    if folder in damaged.spec.prompts.optional_folders:
        assert damaged.codes() == [] and damaged.finder().find_if_present(folder) is None
        return
    [problem] = damaged.problems()
    assert (problem.option, problem.code) == (BASE, "component_missing")
    assert problem.message == f"{damaged.folder} has no folder {folder}."
    with pytest.raises(ModelUnavailable, match=f"has no folder {folder}"):
        damaged.finder().find(folder)


@every_family
def test_all_missing_parts_are_named_at_once(tmp_path: Path, name: str) -> None:
    damaged = model(tmp_path, name)
    for folder in ("vae", "text_encoder"):
        shutil.rmtree(damaged.folder / folder)
    [problem] = damaged.problems()
    assert problem.message.endswith("has no folder vae and no text_encoder.")


@every_family
def test_the_network_of_another_family_is_refused_by_its_class(tmp_path: Path, name: str) -> None:
    mixed = model(tmp_path, name)
    other = next(other_families(name))
    theirs = model(tmp_path / "theirs", other)
    shutil.rmtree(mixed.folder / mixed.network)
    shutil.copytree(theirs.folder / theirs.network, mixed.folder / mixed.network)
    [problem] = mixed.problems()
    assert (problem.option, problem.code) == (BASE, "other_model")
    assert theirs.config(theirs.network)["_class_name"] in problem.message and mixed.spec.title in problem.message
    assert f"set model_family={other}" in problem.hint or len([one for one in FAMILIES if one in problem.hint]) > 1
    with pytest.raises(ModelUnavailable) as raised:
        mixed.finder().find(mixed.network)
    assert raised.value.message == problem.message


@every_family
def test_a_tokenizer_without_a_vocabulary_is_refused(tmp_path: Path, name: str) -> None:
    damaged = model(tmp_path, name)
    folder = damaged.spec.prompts.tokenizer_folders[0]
    files = [path for pattern in VOCABULARIES for path in (damaged.folder / folder).glob(pattern)]
    for path in files:
        path.unlink()
    assert files
    [problem] = damaged.problems()
    assert (problem.option, problem.code) == (BASE, "no_vocabulary") and folder in problem.message
    with pytest.raises(ModelUnavailable) as raised:
        damaged.finder().find(folder)
    assert raised.value.message == problem.message


@pytest.mark.parametrize("name", ["sd1x", "sd2x", "sdxl"])
def test_a_unet_that_projects_its_prompts_is_refused_where_prompts_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    mixed = model(tmp_path, name)
    mixed.change("unet", lambda config: config.update(encoder_hid_dim=4096, encoder_hid_dim_type="text_proj"))
    [problem] = mixed.problems()
    assert (problem.option, problem.code) == (BASE, "other_model") and "encoder_hid_dim_type=text_proj" in problem.message
    with pytest.raises(ModelUnavailable, match="a model that projects its prompts"):
        mixed.finder().find("unet")


@pytest.mark.parametrize("stated", [True, False])
def test_a_unet_without_a_projection_of_prompts_is_refused_where_prompts_are_projected(tmp_path: Path, stated: bool) -> None:
    """Nothing else tells it apart: the states of a text encoder may have the width that its attention takes."""
    mixed = model(tmp_path, "kolors")

    def unprojected(config: dict[str, Any]) -> None:
        for key in ("encoder_hid_dim", "encoder_hid_dim_type"):
            config.pop(key)
        config.update(dict.fromkeys(("encoder_hid_dim", "encoder_hid_dim_type")) if stated else {})

    mixed.change("unet", unprojected)
    [problem] = mixed.problems()
    assert (problem.option, problem.code) == (BASE, "other_model") and "takes prompts as they are" in problem.message
    with pytest.raises(ModelUnavailable, match="a model that takes prompts as they are"):
        mixed.finder().find("unet")


@every_state
def test_a_text_encoder_of_another_width_is_refused(tmp_path: Path, name: str, states: TextStates) -> None:
    misfit = model(tmp_path, name)
    for folder in states.folders:
        size = stated_number(misfit.config(folder), states.size)
        assert size is not None, "the small model states its width under the key of the published ones"
        misfit.state(folder, states.size, 2 * size)
    found = [problem for problem in misfit.problems() if states.width in problem.message]
    assert [(problem.option, problem.code) for problem in found] == [(BASE, "other_width")]
    wanted = stated_width(misfit.config(states.reader or misfit.network), states.width)
    assert wanted is not None
    assert found[0].got == str(2 * wanted) and found[0].expected == f"{wanted} numbers"
    for part in (states.folders[0], states.reader or misfit.network):
        with pytest.raises(ModelUnavailable, match="numbers of the text encoder"):
            misfit.finder().find(part)


@every_stack
def test_a_text_encoder_with_too_few_layers_is_refused(tmp_path: Path, name: str, states: TextStates) -> None:
    shallow = model(tmp_path, name)
    layers = states.layers_of(shallow.spec.default_flavour, shallow.index)
    assert layers
    [folder] = states.folders
    shallow.state(folder, states.depth, max(layers))
    assert shallow.codes() == []
    shallow.state(folder, states.depth, max(layers) - 1)
    [problem] = shallow.problems()
    assert (problem.option, problem.code, problem.got) == (BASE, "too_few_layers", str(max(layers) - 1))
    with pytest.raises(ModelUnavailable, match=f"State {max(layers)} of text_encoder"):
        shallow.finder().find(folder)


LISTED = [([1, 2, 3], None), ([1, 2], "other_layers"), ([1, 2, 9], "too_few_layers"), ("all", "bad_layers")]


@pytest.mark.parametrize(("layers", "code"), LISTED)
def test_the_layers_that_a_pipeline_states_are_checked(tmp_path: Path, layers: Any, code: str | None) -> None:
    stated = model(tmp_path, "krea2")
    document = stated.index | {"text_encoder_select_layers": layers}
    (stated.folder / "model_index.json").unlink()
    (stated.folder / "model_index.json").write_text(json.dumps(document))
    assert [found for _, found in stated.codes()] == ([code] if code else [])


def test_the_text_encoder_of_a_flavour_is_its_own(tmp_path: Path) -> None:
    folder = model(tmp_path, "flux2", flavour="dev").folder
    dev, klein = Model(folder, "flux2", "dev"), Model(folder, "flux2", "klein-9b")
    assert dev.codes() == []
    [problem] = klein.problems()
    assert (problem.option, problem.code) == (BASE, "other_encoder")
    assert problem.message.endswith("is a mistral3; the text encoder of Flux.2 klein-9b is a qwen3.")
    with pytest.raises(ModelUnavailable, match="is a mistral3"):
        klein.finder().find("text_encoder")
    dev.state("text_encoder", "num_hidden_layers", 29)
    assert dev.codes() == [(BASE, "too_few_layers")]


@pytest.mark.parametrize("name", ["chroma", "flux", "pixart_sigma", "sd3", "wan"])
def test_a_t5_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    mixed = model(tmp_path, name)
    folder = mixed.spec.prompts.t5_folder
    kind = "t5" if name == "wan" else "umt5"
    mixed.change(folder, lambda config: config.update(model_type=kind))
    assert mixed.codes() == [(BASE, "other_encoder")]


def test_a_refiner_has_no_first_text_encoder(tmp_path: Path) -> None:
    refiner = model(tmp_path, "sdxl", refiner=True)
    assert Model(refiner.folder, "sdxl", "refiner-1.0").codes() == []
    assert Model(refiner.folder, "sdxl", "base-1.0").codes() == [(BASE, "component_missing")]


def test_the_option_of_the_part_that_was_exchanged_is_named(tmp_path: Path) -> None:
    mixed, other = model(tmp_path, "chroma"), model(tmp_path / "other", "chroma")
    other.change("text_encoder", lambda config: config.update(d_model=48))
    t5 = "pretrained_t5_model_name_or_path"
    assert mixed.codes(**{t5: str(other.folder)}) == [(t5, "other_width")]
    other.change("transformer", lambda config: config.update(joint_attention_dim=48))
    network = "pretrained_transformer_model_name_or_path"
    assert mixed.codes(**{network: str(other.folder)}) == [(network, "other_width")]
    assert mixed.codes(**{network: str(other.folder), t5: str(other.folder)}) == []
    assert mixed.codes(**{network: str(model(tmp_path / "flux", "flux").folder)}) == [(network, "other_model")]


@every_family
def test_what_is_not_stated_is_not_judged(tmp_path: Path, name: str) -> None:
    silent = model(tmp_path, name)
    for part in silent.spec.components.values():
        silent.change(part.folder, lambda config: config.clear())
    options = silent.options().model
    assert foreign_network(options, silent.spec, tmp_path) is None
    assert list(unfit_encoders(options, silent.spec, tmp_path)) == []
    silent.change(
        silent.network,
        lambda config: config.update(_class_name=["no", "name"], **{one.width: "wide" for one in silent.spec.prompts.states}),
    )
    assert foreign_network(options, silent.spec, tmp_path) is None
    assert list(unfit_encoders(options, silent.spec, tmp_path)) == []


@pytest.mark.parametrize("name", ["krea2", "flux3"])
def test_validate_as_a_whole_refuses_a_misfit_once(tmp_path: Path, name: str) -> None:
    misfit = model(tmp_path, name)
    misfit.state("text_encoder", "hidden_size", 48)
    problem = refusal(checked(tmp_path, model_family=name, model=str(misfit.folder)))
    assert (problem.option, problem.code) == (BASE, "other_width")


@pytest.mark.parametrize(("stated", "named"), [(True, ""), (False, "model_flavour=schnell"), (None, "")])
def test_the_network_of_a_flavour_with_other_inputs_is_refused(stated: bool | None, named: str, tmp_path: Path) -> None:
    folder = tmp_path / "model" / "transformer"
    folder.mkdir(parents=True)
    guided = {} if stated is None else {"guidance_embeds": stated}
    (folder / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel", **guided}))
    (tmp_path / "model" / "model_index.json").write_text("{}")
    spec = replace(specs()["flux"], flavour_networks={"dev": {"guidance_embeds": True}, "schnell": {"guidance_embeds": False}})
    model = options_with(model_family="flux", model_flavour="dev", pretrained_model_name_or_path=str(tmp_path / "model")).model
    problem = foreign_network(model, spec, tmp_path)
    assert (problem.code, problem.hint) == ("other_flavour", f"set {named}") if problem is not None else not named
