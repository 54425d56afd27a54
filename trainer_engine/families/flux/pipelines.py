"""Drawing with the pipelines of diffusers, from embeddings and with any number of references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import FluxControlNetPipeline, FluxControlPipeline, FluxKontextPipeline, FluxPipeline
from torch import Tensor, nn

from trainer_engine.families.common.latent_squares import pack, positions


class ReferencePipeline(FluxKontextPipeline):  # type: ignore[misc]  # mypy does not read diffusers' types
    """Takes the latents of its references instead of one image; each has a number of its own among the positions."""

    references: Sequence[Tensor] = ()
    """(1, C, h, w) each, scaled."""

    def prepare_latents(self, image: Tensor | None, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        latents, _, ids, _ = super().prepare_latents(None, *arguments, **named)
        if not self.references:
            return latents, None, ids, None
        packed = torch.cat([pack(reference) for reference in self.references], dim=1).to(latents)
        places = [positions(one.shape[-2], one.shape[-1], number) for number, one in enumerate(self.references, start=1)]
        return latents, packed, ids, torch.cat(places).to(ids)


@contextmanager
def with_masks(network: nn.Module, pooled: Tensor, masks: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Each pass of the network attends as its own prompt wants it; the pipelines know one mask for the prompt and the negative one.

    ``pooled`` (P, D) tells the prompts apart, ``masks`` are what ``joint_attention_kwargs`` holds for all of them (P, ...).
    """

    def choose(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        number = next(index for index, one in enumerate(pooled) if torch.equal(one, kwargs["pooled_projections"][0].to(one)))
        own = {name: mask[number : number + 1] for name, mask in (masks or {}).items()}
        return args, {**kwargs, "joint_attention_kwargs": {**(kwargs.get("joint_attention_kwargs") or {}), **own}}

    hook = network.register_forward_pre_hook(choose, with_kwargs=True) if masks else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


@contextmanager
def in_type(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """The network gets its tokens in ``dtype``: those of a control image come in the type of the autoencoder that made them."""

    def convert(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"].to(dtype)}

    hook = network.register_forward_pre_hook(convert, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


PIPELINES: Mapping[str, type[Any]] = {
    "FluxPipeline": FluxPipeline,
    "FluxKontextPipeline": ReferencePipeline,
    "FluxControlPipeline": FluxControlPipeline,
    "FluxControlNetPipeline": FluxControlNetPipeline,
}
"""Class name of a pipeline in results -> the class that generates here."""


def make_pipeline(name: str, parts: dict[str, Any]) -> Any:
    """``parts``: ``transformer``, ``vae`` and ``scheduler``, perhaps ``controlnet``; the pipeline gets no text encoders."""
    none: dict[str, nn.Module | None] = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipeline = PIPELINES[name](**parts, **none)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
