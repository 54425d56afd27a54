"""How the layers of a network of diffusers compute: the backend of attention, heads and tokens in parts, fused projections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, JointAttnProcessor2_0
from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0
from torch import Tensor, nn

from trainer_engine.config.attention import MECHANISMS, AttentionMechanism
from trainer_engine.config.family_parts import MIXING_FEED_FORWARD
from trainer_engine.config.options import TrainingOptions
from trainer_engine.families.common.fused_projections import fuse_projections
from trainer_engine.memory.recompute import is_feed_forward

CHUNK_TOKENS = 1024


def prepare_network(network: Any, options: TrainingOptions) -> None:
    """Make a network compute as the options of attention say. Takes the network without an adapter, on its device."""
    chosen = options.attention
    mechanism = MECHANISMS[chosen.attention_mechanism]
    if mechanism.backend and mechanism.trains:
        use_backend(network, mechanism)
    if chosen.unet_attention_slice and hasattr(network, "set_attention_slice"):
        network.set_attention_slice("auto")
    if chosen.enable_chunked_feed_forward:
        chunk_feed_forward(network, chosen.feed_forward_chunk_size or CHUNK_TOKENS)
    is_lycoris = options.model.model_type == "lora" and options.adapter.lora_type == "lycoris"
    if chosen.fuse_qkv_projections and not is_lycoris:
        fuse_projections(network)


class Dispatched:
    """A processor of attention layers that computes through the dispatcher of diffusers, with the backend of ``attention_mechanism``."""

    layers: ClassVar[type[nn.Module]] = Attention
    """The class of the attention layers that it is made for."""
    _attention_backend: AttentionBackendName | None = None
    _parallel_config = None

    @classmethod
    def give(cls, network: nn.Module) -> None:
        """Make every attention layer of the network compute with it."""
        attentions: list[Any] = [layer for layer in network.modules() if isinstance(layer, cls.layers)]
        for layer in attentions:
            layer.set_processor(cls())


class DispatchedProcessor(Dispatched):
    """The attention of the transformer blocks of UNets and of PixArt, through the dispatcher of diffusers.

    And cross-attention whose queries and keys are normalised over all heads at once.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """(B, T, C), which attend to themselves or to (B, S, D) -> (B, T, C)."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, context.shape[1], len(context))
            attention_mask = attention_mask.unflatten(0, (len(context), -1))
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        heads = (one.unflatten(-1, (attn.heads, -1)) for one in (query, key, value))
        attended = dispatch_attention_fn(*heads, attn_mask=attention_mask, backend=self._attention_backend)
        output: Tensor = attn.to_out[1](attn.to_out[0](attended.flatten(2).to(query.dtype)))
        return output


class DispatchedJointProcessor(Dispatched):
    """The attention of Stable Diffusion 3, in which prompt and image attend to each other, through the dispatcher of diffusers."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, T, C), alone or with a prompt (B, S, C) -> the same shapes. The tokens of the image come first."""
        query, key, value = heads_of(attn, hidden_states, ("to_q", "to_k", "to_v"), (attn.norm_q, attn.norm_k))
        if encoder_hidden_states is not None:
            norms = (attn.norm_added_q, attn.norm_added_k)
            added = heads_of(attn, encoder_hidden_states, ("add_q_proj", "add_k_proj", "add_v_proj"), norms)
            query, key, value = (torch.cat(both, dim=1) for both in zip((query, key, value), added, strict=True))
        attended = dispatch_attention_fn(query, key, value, backend=self._attention_backend).flatten(2).to(query.dtype)
        image, prompt = attended.tensor_split((hidden_states.shape[1],), dim=1)
        output: Tensor = attn.to_out[1](attn.to_out[0](image))
        if encoder_hidden_states is None:
            return output
        return output, prompt if attn.context_pre_only else attn.to_add_out(prompt)


def heads_of(attn: Any, states: Tensor, projections: Sequence[str], norms: tuple[Any, Any]) -> list[Tensor]:
    """Query, key and value (B, T, H, D) of states (B, T, C), the first two normalised where the layer does so."""
    found = [getattr(attn, name)(states).unflatten(-1, (attn.heads, -1)) for name in projections]
    return [norm(one) if norm is not None else one for norm, one in zip((*norms, None), found, strict=True)]


def _is_plain(attn: nn.Module) -> bool:
    """Whether ``DispatchedProcessor`` computes what the usual processor computes for this layer."""
    absent = ("group_norm", "spatial_norm", "norm_cross")
    norms = ("norm_q", "norm_k")  # other processors normalise each head for itself
    return (
        isinstance(attn, Attention)
        and type(attn.processor) in (AttnProcessor2_0, SanaAttnProcessor2_0)
        and not any(getattr(attn, name, None) for name in (*absent, *(norms if type(attn.processor) is AttnProcessor2_0 else ())))
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
    )


def use_backend(network: Any, mechanism: AttentionMechanism) -> None:
    """Compute every attention of a network with a backend of the dispatcher. May load a kernel from the hub."""
    for attn in network.modules():
        if isinstance(attn, Attention) and type(attn.processor) is JointAttnProcessor2_0:
            attn.set_processor(DispatchedJointProcessor())
        elif _is_plain(attn):
            attn.set_processor(DispatchedProcessor())
    with attention_backend("native"):  # the network's method changes the default of the whole process; this block restores it
        network.set_attention_backend(mechanism.backend)


@contextmanager
def uncompiled(network: nn.Module, options: TrainingOptions) -> Iterator[None]:
    """The bare network without compilation, for evaluations and validation images, whose sizes differ from those of training.

    Flex attention, which is made for compiled networks, gives way to PyTorch's own.
    """
    if not options.is_compiled:
        yield
        return
    needed = MECHANISMS[options.attention.attention_mechanism].needs_compilation
    with torch.compiler.set_stance("force_eager"), _with_backend(network, MECHANISMS["native"]) if needed else nullcontext():
        yield


@contextmanager
def sampling_attention(network: nn.Module, options: TrainingOptions) -> Iterator[None]:
    """Attention as validation images are generated: with a mechanism that has no backward pass, which training leaves out."""
    mechanism = MECHANISMS[options.attention.attention_mechanism]
    if mechanism.trains:
        yield
        return
    with _with_backend(network, mechanism):
        yield


@contextmanager
def _with_backend(network: nn.Module, mechanism: AttentionMechanism) -> Iterator[None]:
    layers: list[Any] = [layer for layer in network.modules() if isinstance(layer, (Attention, AttentionModuleMixin))]
    usual = [(layer.processor, getattr(layer.processor, "_attention_backend", None)) for layer in layers]
    try:
        use_backend(network, mechanism)
        yield
    finally:
        for layer, (processor, backend) in zip(layers, usual, strict=True):
            layer.set_processor(processor)
            if hasattr(processor, "_attention_backend"):
                processor._attention_backend = backend


def chunk_feed_forward(network: nn.Module, tokens: int) -> None:
    """Compute the feed-forward layers of a network for at most ``tokens`` of the tokens of each sample at a time."""
    for layer in network.modules():
        if is_feed_forward(layer) and not type(layer).__name__.endswith(MIXING_FEED_FORWARD):
            layer.forward = _in_chunks(layer.forward, tokens)


def _in_chunks(forward: Callable[..., Tensor], tokens: int) -> Callable[..., Tensor]:
    def compute(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., C) -> (..., C'). The longest axis is taken for that of the tokens: most networks have (B, T, C), some (T, B, C), and an
        expert of a mixture takes the tokens of all samples in one row (T, C)."""
        *sizes, _ = hidden_states.shape
        axis = max(range(len(sizes)), key=sizes.__getitem__)
        if sizes[axis] <= tokens:
            return forward(hidden_states, *args, **kwargs)
        return torch.cat([forward(chunk, *args, **kwargs) for chunk in hidden_states.split(tokens, dim=axis)], dim=axis)

    return compute
