"""Options of the optimizer and of gradient clipping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.option import OptionGroup, option

LATER = (
    "torch-sparseadam",
    "ao-adamw8bit",
    "ao-adamw4bit",
    "ao-adamfp8",
    "ao-adamwfp8",
    "adamw_schedulefree+aggressive",
    "adamw_schedulefree+no_kahan",
    "soap",
    "sdnq-adamw",
    "sdnq-adamw+no_quant",
    "sdnq-adafactor",
    "sdnq-came",
    "sdnq-lion",
    "sdnq-muon",
    "sdnq-muon+quantized_matmul",
    "muon",
)
"""Choices of the configuration format that this engine does not have."""

if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]

_READ_EVERY_TENSOR = [row.name for row in OPTIMIZERS.values() if row.reads_every_tensor]


class OptimizerOptions(OptionGroup):
    """How the weights are updated."""

    optimizer: OptimizerName = option(
        "adamw_bf16",
        "Update rule. adamw_bf16 keeps bfloat16 weights with Kahan summation, so that small updates are not lost to rounding; on float32 "
        "weights it is AdamW. prodigy finds the learning rate itself and expects learning_rate=1. Names that begin with bnb- need "
        "bitsandbytes and a GPU. torch-adamw and torch-adam update all weights in one fused operator where the number type and the device "
        "allow it; optimizer_config=fused=false turns that off. "
        f"{', '.join(_READ_EVERY_TENSOR[:-1])} and {_READ_EVERY_TENSOR[-1]} read from the device for every tensor in every step, "
        "which makes a GPU wait.",
        later=LATER,
    )
    learning_rate: float = option(4e-7, "Peak learning rate.", gt=0, le=1)
    text_encoder_lr: float | None = option(
        None, "Peak learning rate of the text encoders, with the same schedule. Empty: learning_rate. Needs train_text_encoder.", gt=0, le=1
    )
    max_grad_norm: float = option(2.0, "Limit that grad_clip_method applies; 0 does not clip. PixArt Sigma's own default is 0.01.", ge=0)
    grad_clip_method: Literal["value", "norm"] = option(
        "value", "What to clip. value: each element of the gradients. norm: the norm of all gradients together."
    )
    gradient_precision: Literal["unmodified", "fp32"] = option(
        "unmodified",
        "Number type in which the gradients of gradient_accumulation_steps are added. unmodified: the type of the trained weights. fp32: "
        "float32, for more memory; it matters for the bfloat16 weights of adamw_bf16. Needs one process.",
        synonyms={"": "unmodified", "null": "unmodified", "none": "unmodified"},
    )
    optimizer_beta1: float | None = option(None, "First beta. Give it together with optimizer_beta2.", ge=0, lt=1)
    optimizer_beta2: float | None = option(None, "Second beta. Give it together with optimizer_beta1.", ge=0, lt=1)
    optimizer_config: dict[str, float | bool | str | None] = option(
        {},
        "Arguments of the optimizer as key=value,key=value: weight_decay=0.01,eps=1e-8. Each once and within its range; none leaves an "
        "argument to the optimizer.",
    )
    adam_beta1: float | None = option(None, "First beta of optimizers of the Adam kind. optimizer_beta1 overrides it.", ge=0, lt=1)
    adam_beta2: float | None = option(None, "Second beta of optimizers of the Adam kind. optimizer_beta2 overrides it.", ge=0, lt=1)
    adam_epsilon: float | None = option(None, "Argument eps of the optimizer. optimizer_config overrides it.", ge=0, le=1)
    adam_weight_decay: float | None = option(None, "Argument weight_decay of the optimizer. optimizer_config overrides it.", ge=0, le=1e9)
    lr_scale: bool = option(False, "Multiply the learning rates by the number of samples in an optimizer step.")
    lr_scale_sqrt: bool = option(False, "Multiply the learning rates by the square root of the number of samples in an optimizer step.")
    prodigy_steps: int | None = option(
        None, "Optimizer steps in which prodigy looks for its rate. It keeps the rate that it has then. Empty: all of them.", ge=1
    )
    fuse_optimizer: bool = option(
        False,
        "Require the fused update, one operator for all weights, of torch-adamw, torch-adam, torch-sgd or torch-adagrad; the run is "
        "refused where PyTorch has none. torch-adamw and torch-adam take it anyway where they can.",
    )
    optimizer_release_gradients: bool = option(
        False,
        "Update each weight during the backward pass, as soon as its gradient is there, and free the gradient, so that all gradients never "
        "take memory at once. For optimizers of optimi (optimi-* and adamw_bf16), one process, and without accumulation. Values of "
        "gradients can be clipped, their norm cannot. A gradient that is not finite ends the run.",
    )
    optimizer_cpu_offload_method: Literal["none", "torchao"] = option(
        "none",
        "torchao: keep the state of the optimizer in the memory of the host and update the weights there, as the optimizer of that name in "
        "torchao does; the package is not needed. Takes no memory of the device for the state and more time. For every optimizer but those "
        "that need a GPU or are schedule-free.",
        synonyms={"": "none", "null": "none", "cpu": "torchao"},
    )
    optimizer_offload_gradients: bool = option(
        False,
        "With optimizer_cpu_offload_method: move each gradient to the host as soon as the backward pass has it. Needs one process.",
    )

    @property
    def arguments(self) -> dict[str, float | bool | str | None]:
        """Arguments of the optimizer, by the names of ``optimizer_config``; those of the Adam options where the optimizer has them."""
        known = OPTIMIZERS[self.optimizer].arguments
        named = {"eps": self.adam_epsilon, "weight_decay": self.adam_weight_decay}
        return {**{name: value for name, value in named.items() if value is not None and name in known}, **self.optimizer_config}

    @property
    def betas(self) -> tuple[float, ...] | None:
        """The betas of the optimizer; None if it has none."""
        usual = OPTIMIZERS[self.optimizer].betas
        if usual is None:
            return None
        adam = (self.adam_beta1, self.adam_beta2)
        own = (self.optimizer_beta1, self.optimizer_beta2) if self.optimizer_beta1 is not None else adam
        return (*(default if beta is None else beta for beta, default in zip(own, usual[:2], strict=True)), *usual[2:])

    def rate_factor(self, samples: int) -> float:
        """What multiplies the learning rates, for ``samples`` in an optimizer step over all processes."""
        return float(samples) if self.lr_scale else samples**0.5 if self.lr_scale_sqrt else 1.0

    @property
    def text_encoder_rate(self) -> float:
        """Peak learning rate of trained text encoders."""
        return self.learning_rate if self.text_encoder_lr is None else self.text_encoder_lr
