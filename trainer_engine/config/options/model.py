from __future__ import annotations

from typing import Literal

from trainer_engine.config.option import OptionGroup, option


class ModelOptions(OptionGroup):
    """Which network is trained, and from which weights."""

    model_family: str = option(..., "The family of the base model, such as pixart_sigma.")
    model_type: Literal["full", "lora"] = option(..., "full trains every weight of the denoiser; lora trains an adapter.")
    model_flavour: str | None = option(None, "Named weights of the family; each stands for a repository. Empty: the family's own default.")
    pretrained_model_name_or_path: str | None = option(
        None, "Base weights: a repository id on the Hugging Face hub or a local folder in its layout. Wins over model_flavour."
    )
    revision: str | None = option(None, "Branch, tag or commit of the repository.")
    variant: str | None = option(None, "Suffix of the weight files to load, such as fp16.")
    pretrained_vae_model_name_or_path: str | None = option(None, "Autoencoder to use instead of the base model's own.")
    pretrained_t5_model_name_or_path: str | None = option(
        None, "Repository or folder whose text_encoder and tokenizer replace the base model's."
    )
    clip_skip: int = option(
        0, "Take what CLIP text encoders say from so many layers before the last, in training and validation alike.", ge=0, le=11
    )
    prediction_type: Literal["epsilon", "v_prediction", "flow_matching"] | None = option(
        None,
        "What the network learns to predict. Empty: what its weights were trained for.",
        later=("sample",),
    )
    gradient_checkpointing: bool = option(True, "Compute activations again in the backward pass: less memory, more time.")
