"""Options of the model: the network, its base weights, and the objective that it is trained on."""

from __future__ import annotations

from typing import Literal

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.config.options.timesteps import TimestepOptions
from trainer_engine.config.routing import SHAPE


class ModelOptions(OptionGroup):
    """Which network is trained, and from which weights."""

    model_family: str = option(..., "Family of the base model, such as pixart_sigma.")
    model_type: Literal["full", "lora"] = option(
        ..., "What is trained. lora: a small adapter, which is what most people want. full: every weight of the network."
    )
    model_flavour: str | None = option(
        None, "Published weights of the family, by name; each name stands for a repository on the hub. Empty: the family's default."
    )
    pretrained_model_name_or_path: str | None = option(
        None,
        "Base weights: a repository on the Hugging Face hub, a local folder of the same layout, or one .safetensors file with all of a "
        "model. Overrides model_flavour, which says what kind of model a file holds.",
    )
    pretrained_config_name_or_path: str | None = option(
        None,
        "Repository or folder in the diffusers layout whose configuration, tokenizers and noise schedule complete base weights in one "
        "file. Its weights are not used. Empty: the repository of model_flavour.",
    )
    revision: str | None = option(None, "Branch, tag or commit of the repository. Empty: its main branch.")
    variant: str | None = option(None, "Variant of the weight files to load, such as fp16. Empty: the files without one.")
    pretrained_vae_model_name_or_path: str | None = option(
        None, "Autoencoder to use instead of the base model's: a repository, a folder or one .safetensors file. Empty: the base model's."
    )
    pretrained_t5_model_name_or_path: str | None = option(
        None, "Repository or folder whose text_encoder and tokenizer replace those of the base model. Empty: the base model's."
    )
    pretrained_unet_model_name_or_path: str | None = option(
        None, "Repository, folder or .safetensors file whose UNet is trained instead of the base model's. Empty: the base model's."
    )
    pretrained_unet_subfolder: str = option("unet", "Subfolder of pretrained_unet_model_name_or_path that holds the UNet.")
    pretrained_transformer_model_name_or_path: str | None = option(
        None, "Repository, folder or .safetensors file whose transformer is trained instead of the base model's. Empty: the base model's."
    )
    pretrained_transformer_subfolder: str = option(
        "transformer", "Subfolder of pretrained_transformer_model_name_or_path that holds the transformer."
    )
    clip_skip: int = option(
        0, "Use the CLIP hidden state this many layers before the last, in training and in validation. 0: the last.", ge=0, le=11
    )
    tokenizer_max_length: int | None = option(
        None,
        "Longest prompt in tokens, for families with T5: longer prompts are cut off there, in training and in validation. Empty: the limit "
        "of the family, which is also the largest value with an effect.",
        ge=1,
        le=1024,
    )
    t5_padding: Literal["unmodified", "zero"] = option(
        "unmodified",
        "What the network gets after the end of a prompt, in training and in validation images, for families with T5 whose network attends "
        "to it (Flux.1). unmodified: T5's states of the padding. zero: zeros, which also take no place in the cache.",
    )
    train_text_encoder: bool = option(
        False,
        "Train the text encoders together with the network: all of their weights with model_type=full, and with model_type=lora a standard "
        "adapter on their attention. Captions are then encoded in every step. Evaluations, validation images, the average of use_ema and "
        "the result take the text encoders as they are trained. docs/options.md lists the families that can.",
    )
    controlnet: bool = option(
        False,
        "Train a ControlNet beside the frozen network: it learns to follow a control image, which each image of the datasets has in a "
        "conditioning set with conditioning_type=controlnet. docs/options.md lists the families that can.",
    )
    controlnet_model_name_or_path: str | None = option(
        None,
        "Weights that the ControlNet begins with: a repository, or a folder in the layout of diffusers. Empty: a copy of the network's own "
        "layers. With model_type=lora the layers that it has no copy of are then trained whole, beside the adapter.",
    )
    controlnet_custom_config: str | None = option(
        None,
        "How a new ControlNet is made: a JSON object with arguments of diffusers, such as its number of layers. Without effect on weights "
        "of controlnet_model_name_or_path.",
        json=True,
        shape="a JSON object",
    )
    control: bool = option(
        False,
        "Train the network to follow a control image, which each image of the datasets has in a conditioning set with "
        "conditioning_type=controlnet: the latents of the control image are further channels of its input, and its first layer is widened "
        "for them with zeros. A standard adapter always includes that layer. docs/options.md lists the families that can.",
    )
    prediction_type: Literal["epsilon", "v_prediction", "flow_matching"] | None = option(
        None,
        "What the network learns to predict. epsilon: the noise. v_prediction: the velocity of diffusion. flow_matching: the velocity of "
        "flow matching. Empty: what its weights were trained for.",
        later=("sample",),
    )
    rescale_betas_zero_snr: bool = option(
        False,
        "Diffusion: rescale the noise schedule so that its last timestep is pure noise, and space the timesteps of validation images from "
        "there. Needs v_prediction.",
    )
    gradient_checkpointing: bool = option(
        True, "Recompute activations in the backward pass instead of keeping them. This saves memory and takes more time."
    )

    @property
    def sees_control(self) -> bool:
        """Whether the run looks at control images."""
        return self.controlnet or self.control


class ObjectiveOptions(TimestepOptions):
    """What the network learns: which timesteps it sees, and how the error of a prediction is measured."""

    tread_config: str | None = option(
        None,
        "Token routing (TREAD): JSON of a list of routes. In training, the share selection_ratio of the image's tokens, random in each "
        "step, skips the blocks start_layer_idx to end_layer_idx; negative numbers count from the last block, -1. Empty: every token "
        "passes through every block. docs/token-routing.md has more.",
        json=True,
        shape=SHAPE,
    )
    loss_type: Literal["l2", "huber", "smooth_l1"] = option(
        "l2", "Loss function. l2: the squared error. huber and smooth_l1: squared for small errors and linear for errors above huber_c."
    )
    huber_c: float = option(0.1, "Error at which huber and smooth_l1 change from squared to linear.", gt=0)
    huber_schedule: Literal["snr", "exponential", "constant"] = option(
        "snr",
        "How huber_c decreases as the noise grows. snr: with the signal-to-noise ratio. exponential: exponentially with the timestep. "
        "constant: not at all.",
    )
    snr_gamma: float | None = option(
        None,
        "Diffusion: gamma of min-SNR weighting, which limits the weight of timesteps with little noise. 5 is typical. 0 or empty: no "
        "weighting.",
        ge=0,
        le=20,
    )
    use_soft_min_snr: bool = option(False, "Diffusion: use the smooth form of min-SNR weighting. Needs snr_gamma.")
    snr_weight: float = option(1.0, "Diffusion: factor of the weights of snr_gamma.", gt=0, le=1000)
    soft_min_snr_sigma_data: float | None = option(
        None,
        "Diffusion: standard deviation of the data, by which use_soft_min_snr measures the signal. Empty: 1, that of scaled latents.",
        gt=0,
        le=1000,
    )
    masked_loss_probability: float = option(
        1.0,
        "Probability that the loss of a sample is weighted by its mask, if its dataset has masks. Without it all of the image counts.",
        ge=0,
        le=1,
    )
    offset_noise: bool = option(
        False, "Diffusion: add to the noise of some samples a random constant for each latent channel, for darker and brighter images."
    )
    noise_offset: float = option(0.1, "Standard deviation of the constants of offset_noise.", ge=0, le=1)
    noise_offset_probability: float = option(0.25, "Share of the samples that offset_noise changes.", ge=0, le=1)
    input_perturbation: float = option(
        0.0,
        "Standard deviation of additional noise in the input of the network; what it learns to predict stays the same. 0: none.",
        ge=0,
        le=1,
    )
    input_perturbation_steps: int = option(
        0, "Optimizer steps over which input_perturbation decreases to zero. 0: it stays the same for the whole run.", ge=0
    )
