"""How well an image shows what its prompt says, judged by CLIP (Radford et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.contract.files import read_small_json
from trainer_engine.families.modules import free_device_memory
from trainer_engine.runtime.reproducibility import preserve_training_state
from trainer_engine.weights.hub import Part, Source, find_model, loading
from trainer_engine.weights.loading import load_text_encoder, load_tokenizer

MODEL_TYPE = "clip"
PERCENT = 100.0


class ClipScorer:
    """Kept in the host's memory, and on the device only while it scores.

    It computes in float32 wherever it runs, so that scores of two runs can be compared.
    """

    def __init__(self, name: str, model: CLIPModel, processor: CLIPProcessor, device: torch.device) -> None:
        self.name = name
        self._model, self._processor, self._device = model, processor, device

    @classmethod
    def load(cls, name: str, device: torch.device) -> ClipScorer:
        """``name``: a repository id or a folder. Raises ModelUnavailable."""
        part = find_model(Source(name))
        _refuse_other_models(part)
        model = load_text_encoder(CLIPModel, part, torch.float32)
        return cls(name, model, load_tokenizer(CLIPProcessor, part), device)

    @property
    def longest(self) -> int:
        """Tokens of a prompt that the model reads, the two at its ends included."""
        return int(self._model.config.text_config.max_position_embeddings)

    def too_long(self, prompts: Iterable[str]) -> list[str]:
        """Those whose end the model does not see."""
        tokenizer = self._processor.tokenizer
        return [prompt for prompt in prompts if len(tokenizer(prompt, verbose=False)["input_ids"]) > self.longest]

    def scores(
        self,
        pairs: Sequence[tuple[Path, str]],
        on_image: Callable[[int, int], None] = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[float]:
        """The score of each image file for its prompt, from 0 to 100; fewer where ``should_stop`` ended it.

        max(100 cos(E_image, E_text), 0): CLIPScore of Hessel et al., 2021 (https://arxiv.org/abs/2104.08718), with the weight of 100 that
        torchmetrics gives it instead of the paper's 2.5. A prompt is cut to ``longest`` tokens.

        Global random states are as before afterwards. Raises OSError where a file is no image, and what networks raise.
        """
        found: list[float] = []
        with self._on_device(), preserve_training_state(self._model), torch.autocast(self._device.type, enabled=False):
            for file, prompt in pairs:
                if should_stop():
                    break
                found.append(self._score(file, prompt))
                on_image(len(found), len(pairs))
        return found

    def _score(self, file: Path, prompt: str) -> float:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        inputs = self._processor(text=[prompt], images=image, return_tensors="pt", truncation=True, max_length=self.longest)
        embeds = self._model(**inputs.to(self._device))
        cosine = torch.cosine_similarity(embeds.image_embeds, embeds.text_embeds)
        return PERCENT * float(cosine.clamp(min=0))

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        try:
            self._model.to(self._device)
            yield
        finally:
            self._model.to("cpu")
            free_device_memory(self._device)


def _refuse_other_models(part: Part) -> None:
    """The library would fill a foreign model's weights into this one's names, as far as they go."""
    with loading(part):
        found = read_small_json(part.folder / "config.json")
        kind = found.get("model_type") if isinstance(found, dict) else None
    if kind != MODEL_TYPE:
        raise ModelUnavailable(
            f"{part.source.name} is no CLIP model: its config.json says model_type {kind!r}.",
            hint="set pretrained_evaluation_model_name_or_path to one such as openai/clip-vit-large-patch14",
        )
