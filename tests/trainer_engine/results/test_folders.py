from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtSigmaPipeline
from safetensors.torch import load_file, save_file

from tests.helpers.fresh_process import run_without_project
from tests.helpers.models import tiny_family, tiny_pixart
from trainer_engine.results.folders import UNFINISHED, whole_folder

GENERATE = """
import torch
from diffusers import PixArtSigmaPipeline
pipeline = PixArtSigmaPipeline.from_pretrained(sys.argv[1])
image = pipeline("a red circle", width=64, height=64, num_inference_steps=2, use_resolution_binning=False, clean_caption=False,
                 generator=torch.Generator().manual_seed(0)).images[0]
print("generated", image.size, pipeline.transformer.dtype)
"""


def saved(folder: Path, **values: Any) -> Path:
    """The pipeline of a run in which every weight moved a little."""
    family = tiny_family(**values)
    denoiser = family.load_network()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.01)
    family.save_pipeline(folder / "pipeline", denoiser)
    return folder / "pipeline"


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
def test_a_process_without_this_project_generates_with_the_result(tmp_path: Path) -> None:
    output = run_without_project(GENERATE, str(saved(tmp_path)), place=tmp_path)
    assert output.strip().endswith("generated (64, 64) torch.float32")


def test_the_transformer_is_the_trained_one_and_the_rest_is_the_base_models(tmp_path: Path) -> None:
    pipeline, base = saved(tmp_path), tiny_pixart()
    trained, before = weights_in(pipeline), weights_in(base)
    assert all(torch.allclose(trained[name], tensor + 0.01) for name, tensor in before.items())
    for part in ("vae", "text_encoder", "tokenizer"):
        for path in (base / part).iterdir():
            assert (pipeline / part / path.name).read_bytes() == path.read_bytes()


def test_weights_are_saved_in_the_type_they_were_trained_in(tmp_path: Path) -> None:
    pipeline = saved(tmp_path, mixed_precision="bf16", optimizer="adamw_bf16")
    assert {tensor.dtype for tensor in weights_in(pipeline).values()} == {torch.bfloat16}
    assert "torch_dtype=torch.bfloat16" in (pipeline / "README.md").read_text()


def test_a_pipeline_without_its_text_encoder_loads_and_its_card_names_it(tmp_path: Path) -> None:
    folder = saved(tmp_path, save_text_encoder=False)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model_index.json", "scheduler", "transformer", "vae"]
    pipeline = PixArtSigmaPipeline.from_pretrained(folder)
    assert pipeline.text_encoder is None
    assert pipeline.tokenizer is None
    assert "NOT included" in (folder / "README.md").read_text()


def test_the_scheduler_states_what_was_learned(tmp_path: Path) -> None:
    config = json.loads((saved(tmp_path, prediction_type="v_prediction") / "scheduler/scheduler_config.json").read_text())
    assert config["prediction_type"] == "v_prediction"
    assert config["_class_name"] == "DPMSolverMultistepScheduler"


def test_an_older_pipeline_is_replaced_completely(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/stale.bin").write_bytes(b"old")
    saved(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
    assert not (tmp_path / "pipeline/stale.bin").exists()


def test_a_failure_while_writing_leaves_the_older_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/kept").write_text("old")
    with pytest.raises(OSError, match="disk"), whole_folder(tmp_path / "pipeline") as beside:
        (beside / "half").write_text("new")
        raise OSError("disk")
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
    assert [path.name for path in (tmp_path / "pipeline").iterdir()] == ["kept"]


def test_changing_a_text_file_of_the_result_leaves_the_base_model_alone(tmp_path: Path) -> None:
    base = shutil.copytree(tiny_pixart(), tmp_path / "base")
    before = (base / "vae/config.json").read_text()
    pipeline = saved(tmp_path / "run", pretrained_model_name_or_path=str(base))
    with (pipeline / "vae/config.json").open("a") as stream:
        stream.write("\n")
    assert (base / "vae/config.json").read_text() == before
    assert (base / "vae/diffusion_pytorch_model.safetensors").stat().st_nlink == 2


def test_weights_of_a_variant_are_saved_under_the_plain_name(tmp_path: Path) -> None:
    base = shutil.copytree(tiny_pixart(), tmp_path / "base")
    for part, name in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model"), ("transformer", "diffusion_pytorch_model")):
        plain = base / part / f"{name}.safetensors"
        halves = {key: tensor.half() for key, tensor in load_file(plain).items()}
        save_file(halves, base / part / f"{name}.fp16.safetensors", metadata={"format": "pt"})
        plain.unlink()
    pipeline = saved(tmp_path / "run", pretrained_model_name_or_path=str(base), variant="fp16")
    assert PixArtSigmaPipeline.from_pretrained(pipeline).vae.config.latent_channels == 4
    assert (pipeline / "vae/diffusion_pytorch_model.safetensors").exists()


def test_the_card_names_base_model_and_settings(tmp_path: Path) -> None:
    card = (saved(tmp_path, learning_rate="2e-5") / "README.md").read_text()
    assert f'base_model: "{tiny_pixart()}"' in card
    assert "learning rate: 2e-05" in card
    assert "PixArtSigmaPipeline.from_pretrained" in card


def test_the_next_result_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    left = tmp_path / f".pipeline.{UNFINISHED}abc"
    left.mkdir()
    (left / "half").write_text("of a large file")
    with whole_folder(tmp_path / "pipeline") as beside:
        (beside / "whole").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
