"""The checkpoints and sample images of a job of ai-toolkit, and why values of a job have no option."""

from __future__ import annotations

import re
from collections.abc import Mapping

from environments.imports import vocabulary
from environments.imports.draft import Draft
from environments.imports.source import Source

REASONS: Mapping[str, str] = {
    "sqlite_db_path": "it belongs to the other program",
    "save_format": "see lora_format",
    "device": "runs choose the device themselves",
    "performance_log_every": "progress events hold the times of every run",
    "sampler": "the family's own sampler generates validation images; see validation_noise_scheduler",
    "walk_seed": "every validation image of a prompt has the same seed, so that images can be compared",
    "low_vram": "see the options of memory: base_model_precision, musubi_blocks_to_swap",
    "cache_latents": "latents are always cached on disk",
    "cache_latents_to_disk": "latents are always cached on disk",
    "cache_text_embeddings": "the embeddings of captions are always cached",
    "unload_text_encoder": "text encoders leave the device once captions are cached",
    "noise_scheduler": "the family decides its noise schedule",
    "content_or_style": "timesteps are chosen by flow_* and timestep_bias_*",
    "assistant_lora_path": "name the adapter of a distilled model in assistant_lora_path, once it lies on this machine",
    "version": "a mark of the format",
    "meta": "remarks of the file",
}


def translate_save(draft: Draft, save: Source) -> None:
    """Checkpoints, and their upload to the hub."""
    save.take("dtype")
    draft.put("checkpoint_step_interval", save.whole("save_every") or 1000, save.name("save_every"))
    kept = save.whole("max_step_saves_to_keep")
    draft.put("checkpoints_total_limit", 5 if kept is None else kept, save.name("max_step_saves_to_keep"))
    repository, is_private = save.text("hf_repo_id"), save.flag("hf_private")
    if save.flag("push_to_hub"):
        draft.put("push_to_hub", True, save.name("push_to_hub"))
        draft.put("hub_model_id", repository, save.name("hf_repo_id"))
        draft.put("model_card_private", is_private, save.name("hf_private"))
    save.finish(REASONS)


def translate_sample(draft: Draft, sample: Source, train: Source, trigger: str | None) -> None:
    """Validation images: when, of which size, and of which prompts."""
    skipped = train.flag("skip_first_sample")
    draft.put("validation_disable", True if train.flag("disable_sampling") else None, train.name("disable_sampling"))
    if not sample.values:
        return
    draft.put("validation_on_startup", None if skipped else True, train.name("skip_first_sample"))
    draft.put("validation_step_interval", sample.whole("sample_every") or 100, sample.name("sample_every"))
    size = f"{sample.whole('width') or 512}x{sample.whole('height') or 512}"
    draft.put("validation_resolution", size, sample.name("width"))
    kinds = {"guidance_scale": ("validation_guidance", "number"), "sample_steps": ("validation_num_inference_steps", "whole")}
    draft.copy(sample, {**kinds, "seed": ("validation_seed", "whole"), "neg": ("validation_negative_prompt", "text")})
    frames = sample.whole("num_frames")
    draft.put("validation_num_video_frames", frames if frames and frames > 1 else None, sample.name("num_frames"))
    rate = sample.number("fps")
    draft.put("framerate", rate if frames and frames > 1 else None, sample.name("fps"))
    prompts = sample.texts("prompts") + [one.text("prompt") or "" for one in sample.sections("samples")]
    _prompts(draft, [prompt.replace("[trigger]", trigger or "").strip() for prompt in prompts if prompt], sample.name("prompts"))
    sample.finish(REASONS)


def _prompts(draft: Draft, prompts: list[str], origin: str) -> None:
    """Prompts may end with flags, of which ``--ctrl_img`` names the image that the prompt edits."""
    plain, edits = [], []
    for number, prompt in enumerate(prompts):
        text, *flags = re.split(r"(?<!\s)\s+--(?=[a-z])", prompt)
        image = next((flag.partition(" ")[2].strip() for flag in flags if flag.startswith("ctrl_img ")), "")
        if image:
            edits.append({"path": image, "prompt": text, "shortname": f"prompt-{number + 1:02d}"})
        else:
            plain.append(text)
        for flag in flags:
            if not flag.startswith("ctrl_img "):
                draft.ledger.leave(f"{origin}[{number}]", f"--{flag}", "settings of a single prompt are not taken")
    draft.use_prompts(plain, origin)
    draft.put("validation_input", vocabulary.as_json(edits) if edits else None, origin)
