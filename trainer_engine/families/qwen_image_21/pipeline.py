"""Generation with the pipeline of diffusers from embeddings and latents that are there already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers import DiffusionPipeline, QwenImage21Pipeline
from torch import Tensor, nn

from trainer_engine.families.common.latent_cells import packed

Shape = tuple[int, int, int]
"""(frames, rows, columns) of an image in tokens."""


def shapes_of(images: Sequence[Tensor]) -> list[Shape]:
    """The shapes of images (B, C, h_i, w_i) in one sequence."""
    return [(1, image.shape[-2], image.shape[-1]) for image in images]


class EmbeddedPipeline(QwenImage21Pipeline):  # type: ignore[misc]  # mypy does not read diffusers' types
    """Takes prompts that the text encoder has read with references, and the latents of these references.

    The pipeline of diffusers needs the references themselves, and a processor even without a prompt to read.
    """

    references: Sequence[Tensor] = ()
    """(1, C, h, w) each, scaled."""
    slots: Sequence[tuple[Tensor, Tensor]] = ()
    """Embeddings of a prompt (1, T, D) and which of its tokens are of images (1, T)."""

    def __init__(
        self,
        transformer: nn.Module,
        vae: Any,
        scheduler: Any,
        text_encoder: None = None,
        processor: None = None,
        sample_sigmas: None = None,
    ) -> None:
        DiffusionPipeline.__init__(self)
        self.register_modules(vae=vae, text_encoder=text_encoder, processor=processor, transformer=transformer, scheduler=scheduler)
        self.register_to_config(sample_sigmas=sample_sigmas)
        self.vae_scale_factor = 16
        self.latent_channels = vae.config.z_dim

    def encode_prompt(self, *, prompt_embeds: Tensor, **_: Any) -> tuple[Tensor, None, Tensor]:
        """The embeddings as they are, no mask because nothing is padded, and which of the tokens are of images."""
        found = next(slots for embeds, slots in self.slots if embeds is prompt_embeds)
        return prompt_embeds, None, found

    def prepare_latents(self, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
        latents, _ = super().prepare_latents(*arguments, **named)
        return latents, packed(self.references).to(latents) if self.references else None

    @contextmanager
    def looking_at(self, references: Sequence[Tensor]) -> Iterator[None]:
        """In the block the network sees these references."""
        self.references, shapes = references, shapes_of(references)

        def longer(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, {**kwargs, "img_shapes": [[*shapes, *one] for one in kwargs["img_shapes"]]}

        hook = self.transformer.register_forward_pre_hook(longer, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
            self.references, self.slots = (), ()
