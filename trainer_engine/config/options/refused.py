"""Why an option of the format is refused. Reports of compatibility and ``docs/options.md`` group the options by these reasons."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Reason(str, Enum):
    """Why a value cannot be accepted. The values are part of reports for programs."""

    UNSAFE = "unsafe"
    """It could run foreign code, or delete files of the user."""
    RESEARCH = "research"
    """A research method that this trainer does not implement."""
    FAMILY = "family"
    """It belongs to model families that are not implemented."""
    NOT_OFFERED = "not_offered"
    """This trainer leaves it out on purpose, because it does the same in another way or cannot do it truthfully."""
    LATER = "later"
    """It is not implemented yet."""


HEADINGS = {
    Reason.UNSAFE: "Unsafe",
    Reason.RESEARCH: "Research methods",
    Reason.FAMILY: "Options of other model families",
    Reason.NOT_OFFERED: "Not offered",
    Reason.LATER: "Not yet",
}
"""Headings of the groups of refused options."""


@dataclass(frozen=True)
class Refusal:
    """Why one option is refused."""

    reason: Reason
    about: str
    """What the option is for, as the end of "<option> is not available: "."""


_CODE = "it runs code that it downloads"
_DELETES = "it deletes files of a dataset"
_SCREEN = "it screens images with a classifier"
_LAUNCH = "it passes arguments to another program"
_FIELD = "each dataset has a field of this name instead"
_RULES: tuple[tuple[Reason, str, tuple[str, ...]], ...] = (
    (Reason.UNSAFE, _CODE, ("trust_remote_code",)),
    (Reason.UNSAFE, _DELETES, ("delete_nsfw_images",)),
    (Reason.UNSAFE, _LAUNCH, ("accelerate_extra_args",)),
    (Reason.UNSAFE, "it loads a tracker from a file of Python code", ("custom_tracker",)),
    (Reason.LATER, "DeepSpeed is not supported; fsdp_enable spreads weights and optimizer state over processes", ("deepspeed_config",)),
    (Reason.RESEARCH, "it belongs to CREPA, an alignment of features between frames", ("crepa_*",)),
    (Reason.RESEARCH, "it belongs to U-REPA, an alignment of features for UNets", ("urepa_*",)),
    (Reason.RESEARCH, "it belongs to iREPA, an alignment of features", ("irepa_*",)),
    (Reason.RESEARCH, "it belongs to LayerSync, an alignment of layers", ("layersync_*",)),
    (Reason.RESEARCH, "it belongs to MixFlow", ("mixflow_*",)),
    (Reason.RESEARCH, "it belongs to NextLat, a prediction of the next latents", ("nextlat_*",)),
    (Reason.RESEARCH, "it belongs to XM training", ("xm_*",)),
    (Reason.RESEARCH, "it belongs to TwinFlow, a distillation", ("twinflow_*",)),
    (Reason.RESEARCH, "it belongs to Diff2Flow, a change of the objective", ("diff2flow_*",)),
    (Reason.RESEARCH, "it belongs to scheduled sampling", ("scheduled_sampling_*",)),
    (Reason.RESEARCH, "it belongs to internal guidance", ("internal_guidance_*", "validation_internal_guidance_scale")),
    (Reason.RESEARCH, "it distils a model into one of fewer steps", ("distillation_*", "flow_timesteps_mode", "flow_custom_timesteps")),
    (Reason.RESEARCH, "it belongs to SLA, a sparse attention", ("sla_config",)),
    (Reason.RESEARCH, "it belongs to DiffusionBlocks, a training in blocks", ("diffusion_blocks_config",)),
    (Reason.RESEARCH, _SCREEN, ("enable_nsfw_check", "nsfw_check_*")),
    (Reason.RESEARCH, "it belongs to SingLoRA, an adapter of one matrix", ("peft_lora_mode", "singlora_*")),
    (
        Reason.NOT_OFFERED,
        "the text encoder is that of the base model: put another one into its folder",
        ("qwen_text_encoder_model_name_or_path", "pretrained_gemma_model_name_or_path"),
    ),
    (Reason.NOT_OFFERED, "the pipeline of diffusers for Krea 2 takes no references", ("krea2_*",)),
    (Reason.NOT_OFFERED, _FIELD, ("disable_multiline_split", "max_upscale_threshold")),
    (Reason.NOT_OFFERED, "images are written as the network makes them, without an invisible watermark", ("enable_watermark",)),
    (Reason.NOT_OFFERED, "it is a folder of DeepSpeed; group_offload_to_disk_path keeps frozen weights on a disk", ("offload_param_path",)),
    (Reason.NOT_OFFERED, "the weights of a ControlNet are trained, and trained weights stay on the device", ("ramtorch_controlnet",)),
    (Reason.FAMILY, "it belongs to models of sound", ("audio_*", "lyrics_*", "validation_audio_*", "validation_lyrics", "acestep_*")),
    (Reason.FAMILY, "it belongs to MiniMax", ("minimax_*",)),
    (Reason.FAMILY, "it belongs to Cosmos 3", ("cosmos3_*",)),
    (Reason.FAMILY, "it belongs to DeepFloyd IF", ("deepfloyd_*", "freeze_encoder_*", "layer_freeze_strategy", "text_encoder_limit")),
    (Reason.NOT_OFFERED, "captions are read as they are: rewrite them before the run", ("ideogram_prompt_*",)),
    (
        Reason.NOT_OFFERED,
        "the second network of Ideogram 4 is only in memory while images are generated",
        ("ideogram_uncond_ramtorch",),
    ),
    (Reason.FAMILY, "it belongs to LTX-Video", ("ltx_*", "ltx2_*", "validation_ltx2_*")),
    (Reason.FAMILY, "it belongs to models with grounding", ("max_grounding_entities", "pretrained_grounding_*")),
    (Reason.FAMILY, "it belongs to models that stack layers of a text encoder", ("custom_text_encoder_intermediary_layers",)),
)


def refusal_of(name: str) -> Refusal:
    """Returns why an option of the format that is not implemented is refused."""
    for reason, about, names in _RULES:
        if any(name == one or (one.endswith("*") and name.startswith(one[:-1])) for one in names):
            return Refusal(reason, about)
    return Refusal(Reason.LATER, "it is not implemented yet")
