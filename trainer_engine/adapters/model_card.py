"""Describes an adapter: its README.md with samples and code that loads it, and the model metadata in its header."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import quote

import diffusers

from trainer_engine.adapters.base import ADAPTER_FILE, LYCORIS_FILE
from trainer_engine.config.adapters.validation_adapter import validation_adapter_runs
from trainer_engine.config.controlnet import FOLDER
from trainer_engine.config.lycoris.algorithms import algorithms_in
from trainer_engine.config.one_file.layout import SUFFIX
from trainer_engine.config.prompt_library import file_name
from trainer_engine.contract.events import MEDIA_TYPES
from trainer_engine.contract.files import read_small_json
from trainer_engine.families.base import Family
from trainer_engine.families.common.controlnet import argument, imports, joining
from trainer_engine.families.common.pipeline_folder import base_facts, training_facts
from trainer_engine.results.model_card import model_card_head, model_card_notices, named_base
from trainer_engine.results.pipeline_index import loading_code
from trainer_engine.validation.generate import FOLDER as IMAGES

MODELSPEC_VERSION = "1.0.1"
IMPLEMENTATION = "https://github.com/huggingface/diffusers"
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
"""Prediction types that the specification names; it has no name for flow matching."""
MAX_SAMPLES = 6
UNREADABLE = {"ia3"}
"""Algorithms whose files LyCORIS reads only into a network that was made with the configuration (4.1.3)."""

LYCORIS = """import torch
from diffusers import {pipeline}
from lycoris import create_lycoris_from_weights

{loaded}
adapter, _ = create_lycoris_from_weights({multiplier}, "{file}", {network})
adapter.apply_to()"""
CONFIGURED = """import json

import torch
from diffusers import {pipeline}
from lycoris import LycorisNetwork, create_lycoris
from safetensors.torch import load_file

{loaded}
config = json.load(open("{config}"))
LycorisNetwork.apply_preset(config.pop("apply_preset", {{}}))
algo, dim, alpha = config.pop("algo"), config.pop("linear_dim", 4), config.pop("linear_alpha", 1)
adapter = create_lycoris({network}, config.pop("multiplier", 1.0), linear_dim=dim, linear_alpha=alpha, algo=algo, **config)
adapter.load_state_dict(load_file("{file}"), strict=False)
adapter.apply_to()"""
PIPELINE = """import torch
from diffusers import {pipeline}

{loaded}
pipeline.load_lora_weights(".", weight_name="{file}")"""
PEFT = """import json

import torch
from diffusers import {pipeline}
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open

{loaded}
with safe_open("{file}", framework="pt") as file:
    config = json.loads(file.metadata()["lora_adapter_metadata"])
{read}"""
PEFT_READ = """    {tensors} = {{key.removeprefix("{prefix}"): file.get_tensor(key) for key in file.keys(){condition}}}"""
PEFT_INJECT = """{config} = LoraConfig(**{{key.removeprefix("{prefix}"): value for key, value in config.items(){condition}}})
inject_adapter_in_model({config}, {component})
set_peft_model_state_dict({component}, {tensors})"""


def adapter_card(family: Family, base_model: str, step: int, output_dir: Path, multiplier: float = 1.0) -> str:
    """Markdown with the metadata that the hub reads; samples are linked from where they lie."""
    options = family.options
    head = model_card_head(options, family.spec, base_model, ["lora", options.adapter.lora_type], is_adapter=True)
    base_model = named_base(options, base_model)
    kind = "LyCORIS adapter" if options.adapter.lora_type == "lycoris" else "LoRA"
    facts = {
        "family": family.spec.name,
        **base_facts(options, family.spec),
        **_adapter_facts(family),
        **training_facts(options),
        "optimizer steps": str(step),
    }
    samples = _samples(output_dir, [run.label for run in validation_adapter_runs(family.options.as_values())])
    links = [f"![{path.stem}]({quote(os.path.relpath(path, output_dir))})" for path in samples]
    return "\n".join(
        [
            *head,
            f"# A {kind} for {family.spec.title}",
            "",
            f"Trained beside the frozen weights of `{base_model}`.",
            "",
            *model_card_notices(options),
            *(f"- {name}: {value}" for name, value in facts.items()),
            "",
            "## How to load it",
            "",
            *_loading(family, base_model, multiplier),
            "",
            *(["## Samples", "", *links, ""] if links else []),
        ]
    )


def modelspec(family: Family) -> dict[str, str]:
    """Stability AI's model metadata for the header of the adapter that a run trains on this family.

    https://github.com/Stability-AI/ModelSpec, version 1.0.1. It holds no date and no folder, so that the same adapter gives the same bytes.
    """
    options = family.options
    flavour = options.model.model_flavour or family.spec.default_flavour
    kind = "lora" if options.adapter.lora_type == "standard" else "lycoris"
    stated = {
        "sai_model_spec": MODELSPEC_VERSION,
        "architecture": f"{family.spec.architectures.get(flavour, family.spec.name.replace('_', '-'))}/{kind}",
        "implementation": IMPLEMENTATION,
        "title": f"{family.spec.title} {flavour} adapter",
    }
    if family.prediction_type in PREDICTIONS:
        stated["prediction_type"] = PREDICTIONS[family.prediction_type]
    return {f"modelspec.{name}": text for name, text in stated.items()}


def _loading(family: Family, base_model: str, multiplier: float) -> list[str]:
    """Markdown that shows how to load the adapter file."""
    if family.options.adapter.lora_format == "comfyui":
        node = "a node that loads LoRAs (model and CLIP)" if family.spec.trained_text_encoders else "a node that loads LoRAs (model only)"
        return [f"Put `{ADAPTER_FILE}` into ComfyUI's `models/loras` and choose it in {node}."]
    code = _how(family).format(
        network=_network(family),
        pipeline=family.pipeline_name,
        loaded=loading_code(
            family.pipeline_name,
            f"{json.dumps(base_model)}{argument(family.spec.steers) if family.spec.steers else ''}",
            str(family.devices.network).removeprefix("torch."),
            method="from_single_file" if base_model.endswith(SUFFIX) else "from_pretrained",
        ),
        file=ADAPTER_FILE,
        read=_peft_lines(family),
        config=LYCORIS_FILE,
        multiplier=multiplier,
    )
    code = _widened(_with_controlnet(code, family), family)
    by_timestep = ["", "T-LoRA trains with fewer ranks the noisier the image is; these lines generate with all of them at every timestep."]
    return ["```python", code, "```", *(by_timestep if "tlora" in _algorithms(family) else [])]


def _with_controlnet(code: str, family: Family) -> str:
    """Python that also loads the ControlNet below an adapter, in a run of one."""
    steers = family.spec.steers
    if steers is None:
        return code
    weights, cls = family.options.model.controlnet_model_name_or_path, steers.class_name
    source = json.dumps(named_base(family.options, weights) if weights else f"./{FOLDER}")
    loaded = f"controlnet = {cls}.from_pretrained({source}, torch_dtype=torch.{str(family.devices.network).removeprefix('torch.')})\n"
    plain = f"from diffusers import {steers.pipeline}"
    lines = code.replace(plain, "\n".join(imports(steers, steers.pipeline)), 1).split("\n")
    place = next(number for number, line in enumerate(lines) if line.startswith("pipeline = "))
    return "\n".join([*lines[:place], f"{loaded}{lines[place]}", *joining(family.spec, steers), *lines[place + 1 :]])


def _widened(code: str, family: Family) -> str:
    """Python that imports a pipeline with control from where it is, and widens the base model if diffusers does not."""
    control = family.spec.widened
    if control is None or control.module == "diffusers":
        return code
    lines = code.replace("from diffusers import", f"from {control.module} import", 1).split("\n")
    place = next(number for number, line in enumerate(lines) if line.startswith("pipeline = "))
    return "\n".join([*lines[: place + 1], "pipeline.widen()", *lines[place + 1 :]])


def _network(family: Family) -> str:
    """An expression for the network that the keys of a LyCORIS file belong to."""
    names = list(family.spec.trained)
    if len(names) == 1:
        return _place(names[0])
    return f"torch.nn.ModuleDict({{{', '.join(f'{json.dumps(name)}: pipeline.{name}' for name in names)}}})"


def _place(component: str) -> str:
    """An expression for a component of the pipeline. Not every pipeline holds its ControlNet."""
    return component if component == FOLDER else f"pipeline.{component}"


def _peft_lines(family: Family) -> str:
    """Python that reads and injects the adapter of each component."""
    trained = family.spec.trained
    steps = [
        {
            "component": _place(name),
            "prefix": component.state_dict_prefix,
            "condition": f' if key.startswith("{component.state_dict_prefix}")' if len(trained) > 1 else "",
            "tensors": f"{name}_tensors" if len(trained) > 1 else "tensors",
            "config": f"{name}_config" if len(trained) > 1 else "config",
        }
        for name, component in trained.items()
    ]
    return "\n".join([template.format(**step) for template in (PEFT_READ, PEFT_INJECT) for step in steps])


def _algorithms(family: Family) -> set[str]:
    adapter = family.options.adapter
    if adapter.lora_type != "lycoris":
        return set()
    return algorithms_in(read_small_json(adapter.lycoris_config))


def _how(family: Family) -> str:
    adapter = family.options.adapter
    if adapter.lora_type == "lycoris":
        return CONFIGURED if _algorithms(family) & UNREADABLE else LYCORIS
    is_plain = not adapter.use_dora and family.spec.steers is None  # pipelines read no adapter of a ControlNet
    loads_itself = is_plain and hasattr(getattr(diffusers, family.pipeline_name, None), "load_lora_weights")
    return PIPELINE if loads_itself else PEFT


def _adapter_facts(family: Family) -> dict[str, str]:
    options = family.options
    base = {"base model kept in": options.precision.base_model_precision, "keys of the file": options.adapter.lora_format}
    if options.adapter.lora_type == "lycoris":
        return {"adapter": "LyCORIS, as lycoris_config.json says", **base}
    alpha = options.adapter.lora_rank if options.adapter.lora_alpha is None else options.adapter.lora_alpha
    return {"adapter": f"rank {options.adapter.lora_rank}, alpha {alpha:g}{', DoRA' if options.adapter.use_dora else ''}", **base}


def _samples(output_dir: Path, others: list[str]) -> list[Path]:
    """The newest validation images, by the step in their names; not those that show ``others``, adapters too."""
    files = [path for path in (output_dir / IMAGES).glob("step_*_*.*") if path.name.split("_")[1].isdecimal()]
    images = [path for path in files if MEDIA_TYPES.get(path.suffix, "").startswith("image/")]
    found = sorted(images, key=lambda path: (-int(path.name.split("_")[1]), path.name))
    newest = [path for path in found if path.name.split("_")[1] == found[0].name.split("_")[1]] if found else []
    return [path for path in newest if not any(f"_{file_name(other)}_" in path.name for other in others)][:MAX_SAMPLES]
