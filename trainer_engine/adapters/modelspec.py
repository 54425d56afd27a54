"""What other programs read in the header of an adapter file: Stability AI's model metadata, version 1.0.1.

https://github.com/Stability-AI/ModelSpec. Neither a date nor a folder is written: the same adapter gives the same bytes.
"""

from __future__ import annotations

from trainer_engine.families.base import Family

VERSION = "1.0.1"
DIFFUSERS = "https://github.com/huggingface/diffusers"
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
"""What the specification has words for; flow matching is none of them."""


def modelspec(family: Family) -> dict[str, str]:
    """Metadata of the adapter that a run trains on this family."""
    options = family.options
    flavour = options.model.model_flavour or family.spec.default_flavour
    kind = "lora" if options.adapter.lora_type == "standard" else "lycoris"
    stated = {
        "sai_model_spec": VERSION,
        "architecture": f"{family.spec.architectures.get(flavour, family.spec.name.replace('_', '-'))}/{kind}",
        "implementation": DIFFUSERS,
        "title": f"{family.spec.title} {flavour} adapter",
    }
    if family.prediction_type in PREDICTIONS:
        stated["prediction_type"] = PREDICTIONS[family.prediction_type]
    return {f"modelspec.{name}": text for name, text in stated.items()}
