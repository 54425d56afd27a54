"""A family that uses every seam at once: see the fields of its spec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from trainer_engine.families.odd.components import OddComponents
from trainer_engine.families.odd.spec import SPEC

from trainer_engine.config.options import TrainingOptions
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.base import Family
from trainer_engine.families.common.autoencoder import ClipAutoencoder
from trainer_engine.families.common.pipeline_folder import CopiedPart, plan_of, write_pipeline
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import Conditions, PromptBatch, PromptEmbedding, SampleFacts, StepInputs
from trainer_engine.runtime.devices import Devices

BOUNDARY = 0.5
"""Noise levels from here on belong to the first network."""


class Odd(Family):
    """A prompt is ``{"embeds": (T, D)}``: its tokens, and one more that holds the mean colour of the reference images.

    Prompts of a batch are padded to the longest of them, and the network gets a mask of what is no padding.
    """

    spec = SPEC
    parts: OddComponents
    prompts_see_references = True

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self.parts = OddComponents(options.model)
        self.autoencoder = ClipAutoencoder(lambda: self.parts.load_video_vae(None), devices.device, options.autoencoder)

    def text_fingerprint(self, hashes: FileHashes) -> str:
        return self.parts.find("text_encoder").fingerprint(hashes)

    def encode_images(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        return self.autoencoder.encode(pixels.unsqueeze(2), exact=exact)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        encoder, tokenizer = self.parts.load_text_encoder(torch.float32), self.parts.load_tokenizer()
        seen = [list(images) for images in references] or [[] for _ in prompts]
        found = []
        for prompt, images in zip(prompts, seen, strict=True):
            tokens = tokenizer(prompt, max_length=SPEC.prompts.token_limit, truncation=True, return_tensors="pt")
            states = encoder(tokens.input_ids).last_hidden_state[0]
            colour = torch.stack([image.mean(dim=(1, 2)) for image in images]).mean(dim=0) if images else torch.zeros(3)
            found.append({"embeds": torch.cat([states, colour.repeat(states.shape[-1])[None, : states.shape[-1]]])})
        return found

    def free_encoders(self) -> None:
        self.autoencoder.free()

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        """``embeds`` (B, T, D) and ``mask`` (B, T), 1 for tokens of the prompt and 0 after its end."""
        embeds = [prompt["embeds"] for prompt in prompts]
        pad = nn.utils.rnn.pad_sequence
        return {"embeds": pad(embeds, batch_first=True), "mask": pad([embed.new_ones(len(embed)) for embed in embeds], batch_first=True)}

    def conditions(self, samples: Sequence[SampleFacts], generators: Sequence[torch.Generator] | None = None) -> Conditions:
        return {"edges": torch.tensor([[float(edge) / 100 for edge in sample.original_size] for sample in samples])}

    def load_component(self, name: str, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        return self.parts.load_expert(name, dtype, folder)

    def token_count(self, latent_shape: Sequence[int]) -> int:
        return latent_shape[1] * latent_shape[2] * latent_shape[3]

    def predict(self, network: nn.Module, inputs: StepInputs) -> Tensor:
        embeds, mask = inputs.prompts["embeds"], inputs.prompts["mask"]
        edges = inputs.conditions.get("edges", torch.zeros(len(embeds), 2))
        width = embeds.shape[-1]
        text = {
            "encoder_hidden_states": torch.cat([embeds, edges.repeat(1, width)[:, None, :width].to(embeds)], dim=1),
            "encoder_attention_mask": torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1),
        }
        levels, names = inputs.timesteps * 1000, ("transformer", "transformer_2")
        outputs = [network(name, inputs.noisy_latents, timestep=levels, **text, return_dict=False)[0] for name in names]
        is_high = (inputs.timesteps >= BOUNDARY).view(-1, *[1] * (inputs.noisy_latents.dim() - 1))
        return torch.where(is_high, *outputs)

    @property
    def pipeline_name(self) -> str:
        return "SanaVideoPipeline"

    def make_pipeline(self, network: nn.Module, *, sampler: str | None = None, spacing: str | None = None) -> nn.Module:
        return network

    @torch.no_grad()
    def generate(
        self, pipeline: nn.Module, request: GenerationRequest, *, on_step: Callable[[SamplerStep], None] | None = None
    ) -> Image.Image:
        """With classifier-free guidance: the prompt and the negative prompt are one batch, and their lengths differ."""
        latents = torch.randn(1, 16, 1, request.height // 8, request.width // 8, generator=request.generator())
        levels = torch.linspace(1, 0, request.steps + 1)
        prompts = self.collate_prompts([request.prompt, request.negative])
        for number, (level, following) in enumerate(zip(levels[:-1], levels[1:], strict=True), 1):
            both = StepInputs(noisy_latents=latents.repeat(2, 1, 1, 1, 1), timesteps=level.repeat(2), prompts=prompts)
            wanted, unwanted = self.predict(pipeline, both).chunk(2)
            velocity = torch.lerp(unwanted, wanted, request.guidance)
            latents = latents + (following - level) * velocity
            if on_step is not None:
                on_step(SamplerStep(number, float(level) * 1000, latents))
        pixels = self.autoencoder.decode(latents)[0, :, 0].clamp(-1, 1).add(1).mul(127.5).byte()
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def save_pipeline(self, folder: Path, network: nn.Module) -> None:
        copied = {"vae": CopiedPart("diffusers", "AutoencoderKLWan", self.parts.find("vae"), lambda: self.parts.load_video_vae(None))}
        write_pipeline(folder, plan_of(self, network, copied, self.parts.make_scheduler()), self.options)


FAMILY = Odd
