"""Rules of how networks are computed: what an option changes in a family's autoencoder and network."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.attention import DEFAULT, MECHANISMS, SAGE, is_sage
from trainer_engine.config.families import find_spec
from trainer_engine.config.options.computation import AutoencoderOptions
from trainer_engine.config.options.registry import REGISTRY, Rule, Values
from trainer_engine.config.precisions import QUANTISED
from trainer_engine.config.rules.memory import STREAMS
from trainer_engine.contract.errors import Problem

ROLL = "vae_enable_temporal_roll"
MECHANISM, SLICES = "attention_mechanism", "unet_attention_slice"
CHUNKED, CHUNK = "enable_chunked_feed_forward", "feed_forward_chunk_size"
FUSED = "fuse_qkv_projections"
UNET = "unet"
INDUCTOR, MODE = "inductor", "dynamo_mode"
REGIONAL = "dynamo_use_regional_compilation"
COMPILATION = (MODE, "dynamo_dynamic", "dynamo_fullgraph", REGIONAL)


def autoencoder_options_have_an_effect(values: Values) -> Iterator[Problem]:
    """Notes the options of the autoencoder's memory that change nothing for the family."""
    family_spec = find_spec(str(values.get("model_family", "")))
    if family_spec is None:
        return
    for name in AutoencoderOptions.model_fields:
        if not values[name] or name in family_spec.latents.memory_options:
            continue
        reason = f"the autoencoder of {family_spec.title} has nothing of the kind"
        if name == ROLL:
            takes_clips = family_spec.sampling.clips is not None
            reason = f"{family_spec.title} always takes clips through its autoencoder some frames at a time" if takes_clips else ""
            reason = reason or f"{family_spec.title} has images, which are single frames"
        yield Problem.note(name, "no_effect", f"{name} has no effect: {reason}.", got=True, hint="it may stay in the configuration")


def attention_can_be_trained(values: Values) -> Iterator[Problem]:
    """Refuses a mechanism without a backward pass in training; one of SageAttention generates validation images."""
    mechanism, usage = MECHANISMS.get(values[MECHANISM]), values["sageattention_usage"]
    if mechanism is None:
        return
    if not is_sage(mechanism.name):
        if not mechanism.trains:
            message = f"The kernel of {mechanism.name} has no backward pass: it cannot train."
            hint = "flash-attn-3-hub loads the same kernel with its backward pass"
            yield Problem.error(MECHANISM, "no_backward", message, got=mechanism.name, expected="another mechanism", hint=hint)
        if usage != REGISTRY["sageattention_usage"].default:
            message = f"{MECHANISM} is {mechanism.name}: sageattention_usage has no effect."
            yield Problem.note("sageattention_usage", "no_effect", message, got=usage)
    elif usage != "inference":
        message = "SageAttention has no backward pass: queries, keys and values would get no gradient."
        yield Problem.error("sageattention_usage", "no_backward", message, got=usage, expected="inference")
    elif values["validation_disable"]:
        message = f"{SAGE} generates validation images, and validation_disable is set: {MECHANISM} has no effect."
        yield Problem.note(MECHANISM, "no_effect", message, got=mechanism.name)


def flex_attention_is_compiled(values: Values) -> Iterator[Problem]:
    """Refuses flex attention in a network that is not compiled: it would hold every score of every head in memory."""
    mechanism = MECHANISMS.get(values[MECHANISM])
    is_compiled = values["dynamo_backend"] == INDUCTOR and not any(values[name] for name in STREAMS)
    if mechanism is not None and mechanism.needs_compilation and not is_compiled:
        message = "Flex attention is made for compiled networks: without compilation it keeps the scores of all heads in memory."
        expected = f"dynamo_backend={INDUCTOR}, or another mechanism"
        yield Problem.error(MECHANISM, "needs_compilation", message, got=mechanism.name, expected=expected)


def attention_takes_the_masks_of_the_family(values: Values) -> Iterator[Problem]:
    """Refuses a mechanism that cannot leave out what the family's network must not attend to."""
    family_spec, mechanism = find_spec(str(values.get("model_family", ""))), MECHANISMS.get(values[MECHANISM])
    if family_spec is None or mechanism is None:
        return
    prompts = family_spec.prompts
    if prompts.is_masked(values) and prompts.mask not in mechanism.masks:
        able = ", ".join(other.name for other in MECHANISMS.values() if prompts.mask in other.masks)
        asked = f" with {prompts.mask_option}" if prompts.mask_option else ""
        message = f"{family_spec.title}{asked} hides the padding of prompts from attention, and {mechanism.name} takes no such masks."
        yield Problem.error(MECHANISM, "no_masks", message, got=mechanism.name, expected=f"one of {able}")


def sliced_attention_is_of_unets(values: Values) -> Iterator[Problem]:
    """Notes sliced attention where there is no UNet, and refuses it together with a mechanism that does the same work."""
    family_spec = find_spec(str(values.get("model_family", "")))
    if not values[SLICES] or family_spec is None:
        return
    if UNET not in {component.folder for component in family_spec.trained.values()}:
        message = f"The network of {family_spec.title} is no UNet: {SLICES} has no effect."
        yield Problem.note(SLICES, "no_effect", message, got=True)
    elif values[MECHANISM] != DEFAULT:
        message = f"{SLICES} computes attention itself, and so does {MECHANISM}={values[MECHANISM]}."
        yield Problem.error(SLICES, "two_mechanisms", message, got=True, expected=f"false, or {MECHANISM}={DEFAULT}")


def options_of_layers_have_an_effect(values: Values) -> Iterator[Problem]:
    """Notes options of feed-forward layers and projections that change nothing in the run."""
    if values[CHUNK] is not None and not values[CHUNKED]:
        yield Problem.note(CHUNK, "no_effect", f"{CHUNKED} is off: {CHUNK} has no effect.", got=values[CHUNK])
    family_spec = find_spec(str(values.get("model_family", "")))
    if values[CHUNKED] and family_spec is not None and not family_spec.has_feed_forward:
        message = f"{family_spec.title} has no feed-forward layers of the usual kind: {CHUNKED} has no effect."
        yield Problem.note(CHUNKED, "no_effect", message, got=True)
    for reason in _unfused(values):
        yield Problem.note(FUSED, "no_effect", f"{reason}: {FUSED} has no effect.", got=True, hint="it may stay in the configuration")


def _unfused(values: Values) -> Iterator[str]:
    """Why ``fuse_qkv_projections`` fuses nothing; at most one reason."""
    if not values[FUSED]:
        return
    if values.get("model_type") == "lora" and values["lora_type"] == "lycoris":
        yield "A LyCORIS adapter computes the changed weights of each layer on its own"
    elif values["base_model_precision"] in QUANTISED:
        yield f"Layers of {values['base_model_precision']} weights are computed one by one"


def compilation_options_have_an_effect(values: Values) -> Iterator[Problem]:
    """Notes options of compilation without it, and a mode of inductor for another backend."""
    backend = values["dynamo_backend"]
    for name in COMPILATION:
        if values[name] != REGISTRY[name].default and backend == "no":
            message, hint = f"dynamo_backend is no: {name} has no effect.", "set dynamo_backend=inductor to compile the network"
            yield Problem.note(name, "no_effect", message, got=values[name], hint=hint)
    if values[MODE] not in (None, "default") and backend not in ("no", INDUCTOR):
        message = f"{MODE} is for {INDUCTOR}: with dynamo_backend={backend} it has no effect."
        yield Problem.note(MODE, "no_effect", message, got=values[MODE])


RULES: tuple[Rule, ...] = (
    autoencoder_options_have_an_effect,
    attention_can_be_trained,
    flex_attention_is_compiled,
    attention_takes_the_masks_of_the_family,
    sliced_attention_is_of_unets,
    options_of_layers_have_an_effect,
    compilation_options_have_an_effect,
)
