"""The scores themselves, and the loading of the model that gives them."""

from __future__ import annotations

import gc
import json
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from tests.helpers.forked import run_forked
from tests.helpers.pictures import generate_images
from tests.helpers.scoring import score_by_hand, tiny_clip
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.evaluation.clip_scores import ClipScorer
from trainer_engine.media import write_picture
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache
from trainer_engine.tiny_models.text import make_tiny_clip

CPU = torch.device("cpu")
LONG = "a very long prompt about a dog " * 20
PROMPTS = ("a cat", "A photo of a red circle, on wood", "x", "7 owls!", LONG)
LOAD = """
import sys, torch
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.evaluation.clip_scores import ClipScorer
try:
    scorer = ClipScorer.load(sys.argv[1], torch.device("cpu"))
    print("SCORED", scorer.scores([(sys.argv[2], "a cat")])[0])
except ModelUnavailable as error:
    print("REFUSED", error.message, "|", error.hint)
"""


def test_a_clip_has_the_score_of_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("#c03030", "#3030c0", "#30c030")]
    gif, first, last = tmp_path / "clip.gif", tmp_path / "first.png", tmp_path / "last.png"
    write_picture(tmp_path, "clip", frames)
    frames[0].save(first)
    frames[2].save(last)
    of_clip, of_first, of_last = ClipScorer.load(str(tiny_clip()), CPU).scores([(file, "a cat") for file in (gif, first, last)])
    assert of_clip == of_first != of_last


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_with(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(address, names of the files that were fetched) of a hub that has the folder as ``some-org/clip``."""
    fetched: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            files = sorted(folder.iterdir())
            tree = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name} for file in files]
            about = {"id": "some-org/clip", "sha": COMMIT, "siblings": [{"rfilename": file.name} for file in files]}
            file = folder / path.rpartition("/")[2]
            content = file.read_bytes() if "/resolve/" in path else json.dumps(tree if "/tree/" in path else about).encode()
            self.send_response(200)
            headers = {"Content-Type": "application/json", "Content-Length": str(len(content))}
            for name, value in {**headers, "ETag": f'"{file.name}"', "X-Repo-Commit": COMMIT}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)
                fetched.extend([file.name] if "/resolve/" in path else [])

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", fetched
    server.shutdown()


def pictures(place: Path) -> list[Path]:
    generate_images(place / "images", count=3, size=(96, 64))
    return sorted((place / "images").glob("*.png"))


def load_elsewhere(name: str, image: Path, **environment: str) -> str:
    """In a process of its own: huggingface_hub reads its environment once."""
    printed = run_forked(LOAD, name, str(image), place=image.parent, variables={"HF_HUB_OFFLINE": "", **environment})
    return next(line for line in printed.splitlines() if line.startswith(("SCORED", "REFUSED")))


def test_scores_equal_the_cosine_of_the_two_towers(tmp_path: Path) -> None:
    pairs = [(image, prompt) for image in pictures(tmp_path) for prompt in PROMPTS]
    scores = ClipScorer.load(str(tiny_clip()), CPU).scores(pairs)
    by_hand = [score_by_hand(tiny_clip(), image, prompt) for image, prompt in pairs]
    assert scores == pytest.approx(by_hand, abs=1e-3)
    assert min(scores) == 0.0 and len({round(score, 3) for score in scores}) > 3


def test_a_prompt_that_is_too_long_is_reported_and_truncated(tmp_path: Path) -> None:
    scorer = ClipScorer.load(str(tiny_clip()), CPU)
    fits = "a" * 75
    assert scorer.longest == 77 and scorer.too_long(["a cat", fits, fits + "b", LONG]) == [fits + "b", LONG]
    image = pictures(tmp_path)[0]
    (whole, more) = scorer.scores([(image, LONG), (image, LONG + "and more")])
    assert whole == more


def test_transparent_and_grey_images_are_scored_as_colours(tmp_path: Path) -> None:
    grey = Image.effect_noise((64, 64), 90)
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").save(tmp_path / "colours.png")
    grey.convert("RGBA").save(tmp_path / "clear.png")
    scores = ClipScorer.load(str(tiny_clip()), CPU).scores([(path, "x") for path in sorted(tmp_path.glob("*.png"))])
    assert len(set(scores)) == 1


def test_random_states_stay_and_the_model_does_not_learn(tmp_path: Path) -> None:
    before, python = torch.random.get_rng_state(), random.getstate()
    scorer = ClipScorer.load(str(tiny_clip()), CPU)
    assert torch.equal(before, torch.random.get_rng_state())
    scorer.scores([(image, "a cat") for image in pictures(tmp_path)], on_image=lambda done, total: torch.rand(3).fill_(random.random()))
    assert torch.equal(before, torch.random.get_rng_state()) and random.getstate() == python
    assert not any(parameter.requires_grad for parameter in scorer._model.parameters()) and not scorer._model.training


def live_tensors() -> tuple[int, int]:
    """(how many, bytes)"""
    gc.collect()
    found = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    return len(found), sum(one.nbytes for one in found)


def test_scoring_leaves_no_tensor_behind(tmp_path: Path) -> None:
    pairs = [(image, "a cat") for image in pictures(tmp_path)]
    scorer = ClipScorer.load(str(tiny_clip()), CPU)
    before = live_tensors()
    scorer.scores(pairs)
    assert live_tensors() == before


def test_the_model_is_on_the_device_only_while_it_scores(tmp_path: Path) -> None:
    """A device without memory stands for the accelerator: what computes on it fails, and the weights come back all the same."""
    scorer = ClipScorer.load(str(tiny_clip()), torch.device("meta"))
    before = {name: tensor.clone() for name, tensor in scorer._model.state_dict().items()}
    moves: list[str] = []
    moved = scorer._model.to

    def to(device: torch.device | str) -> CLIPModel:
        moves.append(str(device))
        return moved("cpu")

    scorer._model.to = to  # type: ignore[method-assign, assignment]
    with pytest.raises((RuntimeError, NotImplementedError)):
        scorer.scores([(pictures(tmp_path)[0], "a cat")])
    assert moves == ["meta", "cpu"]
    assert all(torch.equal(before[name], tensor) for name, tensor in scorer._model.state_dict().items())


def test_scoring_stops_between_images_on_request(tmp_path: Path) -> None:
    images = pictures(tmp_path)
    done: list[int] = []
    scorer = ClipScorer.load(str(tiny_clip()), CPU)
    scores = scorer.scores([(image, "x") for image in images], lambda count, total: done.append(count), lambda: len(done) == 2)
    assert len(scores) == 2 and done == [1, 2]


def test_a_file_that_is_no_image_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(OSError, match="broken.png"):
        ClipScorer.load(str(tiny_clip()), CPU).scores([(tmp_path / "broken.png", "x")])


def damaged(place: Path, how: str) -> Path:
    folder = shutil.copytree(tiny_clip(), place / how.replace(" ", "-"))
    config = json.loads((folder / "config.json").read_text())
    if how == "another model":
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "siglip"}))
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "other sizes":
        (folder / "config.json").write_text(json.dumps({**config, "projection_dim": 8}))
    elif how == "a tensor less":
        tensors = load_file(folder / "model.safetensors")
        del tensors["logit_scale"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    elif how == "no weights":
        (folder / "model.safetensors").unlink()
    elif how == "no processor":
        (folder / "processor_config.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("another model", "no CLIP model.*siglip"),
        ("no config", "could not be loaded"),
        ("other sizes", "could not be loaded"),
        ("a tensor less", "lacks 1 weights, among them logit_scale"),
        ("no weights", "holds no weights in safetensors"),
        ("no processor", "could not be loaded"),
    ],
)
def test_a_folder_without_a_complete_clip_model_is_refused(how: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=words):
        ClipScorer.load(str(damaged(tmp_path, how)), CPU)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="There is no folder"):
        ClipScorer.load(str(tmp_path / "nowhere"), CPU)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = damaged(tmp_path, "no weights")
    torch.save(CLIPModel.from_pretrained(tiny_clip()).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelUnavailable, match="pytorch_model.bin holds the only weights here, and they are not safetensors"):
        ClipScorer.load(str(folder), CPU)


def test_a_processor_with_code_of_its_own_is_refused_without_a_question(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_clip(), tmp_path / "clip")
    document = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({**document, "auto_map": {"AutoImageProcessor": "code.Processor"}}))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Processor: pass\n")
    with pytest.raises(ModelUnavailable, match="auto_map"):
        ClipScorer.load(str(folder), CPU)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_cached_repository_is_loaded_offline(tmp_path: Path) -> None:
    image = pictures(tmp_path)[0]
    place_in_hub_cache(tiny_clip(), "some-org/clip", tmp_path / "hf")
    answer = load_elsewhere("some-org/clip", image, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1")
    # Another process and another file: the weights may lie in memory in another way, and kernels round by that.
    assert float(answer.removeprefix("SCORED ")) == pytest.approx(
        ClipScorer.load(str(tiny_clip()), CPU).scores([(image, "a cat")])[0], rel=1e-5
    )


@pytest.mark.parametrize("pickled", [False, True])
def test_only_safetensors_of_a_repository_are_fetched(pickled: bool, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_clip(), tmp_path / "there")
    for name in ("pytorch_model.bin", "tf_model.h5"):
        (folder / name).write_bytes(b"of another library")
    if pickled:
        (folder / "model.safetensors").unlink()
    image = pictures(tmp_path)[0]
    with hub_with(folder) as (address, fetched):
        answer = load_elsewhere("some-org/clip", image, HF_HOME=str(tmp_path / "hf"), HF_ENDPOINT=address, HF_HUB_DISABLE_XET="1")
    if pickled:
        assert answer.startswith("REFUSED some-org/clip holds no weights in safetensors.")
    else:
        here = ClipScorer.load(str(tiny_clip()), CPU).scores([(image, "a cat")])[0]
        # Another process may lay the weights out differently in memory, and its kernels round differently then.
        assert float(answer.removeprefix("SCORED ")) == pytest.approx(here, abs=1e-3)
    weights = [name for name in fetched if not name.endswith((".json", ".txt"))]
    assert weights == ([] if pickled else ["model.safetensors"])


def test_the_error_names_a_repository_that_cannot_be_fetched(tmp_path: Path) -> None:
    answer = load_elsewhere("some-org/clip", tmp_path, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert answer.startswith("REFUSED The repository some-org/clip is not in the Hugging Face cache")
    assert "HF_HUB_OFFLINE" in answer


def test_the_same_seed_makes_the_same_small_model(tmp_path: Path) -> None:
    one, other = make_tiny_clip(tmp_path / "one"), make_tiny_clip(tmp_path / "other", seed=1)
    assert (one / "model.safetensors").read_bytes() == (tiny_clip() / "model.safetensors").read_bytes()
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
