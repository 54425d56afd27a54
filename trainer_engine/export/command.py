"""One export from its request to its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from trainer_engine.config.adapters.joint_layers import JOINT_RANKS
from trainer_engine.config.adapters.keys import METADATA_KEY
from trainer_engine.config.control import NAME as CONTROL
from trainer_engine.config.controlnet import FOLDER
from trainer_engine.config.families import find_spec
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.export.adapter_file import AdapterTensors, read_adapter, read_metadata
from trainer_engine.export.conversion import to_comfyui, to_diffusers
from trainer_engine.export.joined_layers import stated_ranks
from trainer_engine.export.merging import merged_weights
from trainer_engine.families.base import Family
from trainer_engine.families.common.controlnet import write_controlnet
from trainer_engine.families.load import load_family
from trainer_engine.families.modules import join
from trainer_engine.results.pipeline_index import is_modular
from trainer_engine.runtime.devices import resolve_devices
from trainer_engine.weights.hub import Part

FORMS: Mapping[str, str] = {
    "diffusers": "keys that diffusers loads with its PEFT integration",
    "comfyui": "keys that ComfyUI loads",
    "merged": "a complete pipeline with the adapter merged into its weights",
}
PEFT = """from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file

tensors = {{key.removeprefix("{prefix}"): tensor for key, tensor in load_file("{file}").items() if key.startswith("{prefix}")}}
ranks = {{key.removesuffix(".lora_A.weight"): len(tensor) for key, tensor in tensors.items() if key.endswith(".lora_A.weight")}}
inject_adapter_in_model(LoraConfig(target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks), pipeline.{name})
set_peft_model_state_dict(pipeline.{name}, tensors)"""
"""Loads a LoRA into a pipeline for which diffusers has no loader."""


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """Which adapter to export, in which form and where to."""

    adapter: Path
    form: str
    """One of FORMS."""
    output: Path
    base: str | None
    """Base model; None for the one that the file names."""
    model_family: str | None
    strength: float
    dtype: str
    """``float32`` or ``bfloat16``, of merged weights."""
    controlnet: str | None = None
    """Weights of the ControlNet that an adapter changes; None for the folder ``controlnet`` beside it."""


def export(request: ExportRequest) -> list[str]:
    """Write the export. Returns lines that name the files and how to load them. Raises ModelUnavailable, InvalidOptions."""
    metadata = read_metadata(request.adapter)
    if request.output.exists():
        raise ModelUnavailable(f"{request.output} is there already.", hint="choose another --output, or remove it")
    family = _family(request, metadata)
    outputs = _outputs(family)
    adapter = read_adapter(request.adapter, outputs, family.spec.key_prefixes)
    if request.form == "merged":
        return _merge(request, family, adapter)
    if request.form == "comfyui":
        if family.spec.steers:
            raise ModelUnavailable("ComfyUI has no keys for an adapter on a ControlNet.", hint="use --to merged: ComfyUI loads the result")
        control = family.spec.widened
        if control and not control.in_comfyui:
            raise ModelUnavailable(f"ComfyUI does not generate with {family.spec.title} and a control image.", hint="use --to merged")
        stated = {key: value for key, value in metadata.items() if key not in (METADATA_KEY, JOINT_RANKS)}  # the tensors have their alphas
        widened = control.input_layer if control else ""
        keys = family.spec.comfyui_keys
        tensors = to_comfyui(adapter, keys, widened=widened, outputs=outputs)
        _write(request.output, tensors, stated | stated_ranks(adapter.modules, keys))
        return [f"{request.output}: put it into ComfyUI's models/loras"]
    state_dicts = to_diffusers(adapter, family.spec.diffusers_prefixes)
    paths = [request.output] if len(state_dicts) == 1 else [numbered(request.output, number) for number in range(1, len(state_dicts) + 1)]
    for path, state_dict in zip(paths, state_dicts, strict=True):
        _write(path, state_dict, {})
    return _loading(family, adapter, paths)


def _loading(family: Family, adapter: AdapterTensors, paths: Sequence[Path]) -> list[str]:
    """Lines that show how the exported files are loaded into a pipeline of diffusers."""
    changed = {
        name: component.state_dict_prefix
        for name, component in family.spec.trained.items()
        if any(module.startswith(family.spec.module_prefix(name)) for module in adapter.modules)
    }
    loads_itself = not family.spec.steers and hasattr(getattr(diffusers, family.pipeline_name, None), "load_lora_weights")
    if adapter.kind != "lokr":
        whole = "pipeline.load_lora_weights(folder, weight_name=file)"
        own = [PEFT.format(name=name, prefix=prefix, file=path) for path in paths for name, prefix in changed.items()]
        return [f"{path}: {whole}" for path in paths] if loads_itself else [*(f"{path}: with PEFT, as follows" for path in paths), *own]
    if not loads_itself:
        return [
            f"{path}: diffusers has no loader for a LoKr of this model; --to merged writes a pipeline that needs none" for path in paths
        ]
    loading = [
        f"pipeline.{name}.load_lora_adapter(folder, weight_name=file, prefix='{prefix.removesuffix('.')}', adapter_name=name)"
        for name, prefix in changed.items()
    ]
    setting = "; ".join(f"pipeline.{name}.set_adapters([names])" for name in changed)
    together = [f"Load each under a name of its own, then: {setting}"] if len(paths) > 1 else []
    return [*(f"{path}: {how}" for path in paths for how in loading), *together]


def numbered(path: Path, number: int) -> Path:
    """``adapter.safetensors`` -> ``adapter-2.safetensors``."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _family(request: ExportRequest, metadata: Mapping[str, str]) -> Family:
    """The family of the adapter's base model, on the CPU."""
    name, base = request.model_family or metadata.get("model_family"), request.base or metadata.get("base_model")
    if not name or not base:
        raise ModelUnavailable(f"{request.adapter.name} does not say what it was trained on.", hint="give --model_family and --base")
    short, spec, controlnet = request.dtype == "bfloat16", find_spec(name), _controlnet(request, metadata)
    options = parse_options(
        {
            "model_family": name,
            "model_flavour": metadata.get("model_flavour") or None,
            "model_type": "full",
            "controlnet": controlnet is not None,
            "controlnet_model_name_or_path": controlnet,
            CONTROL: CONTROL in metadata or (spec is not None and _is_widened(request.adapter, spec)),
            "train_text_encoder": spec is not None and _changes_text_encoders(request.adapter, spec),
            "pretrained_model_name_or_path": base,
            "output_dir": str(request.output),
            "data_backend_config": "none",
            "max_train_steps": 1,
            "num_train_epochs": 0,
            "mixed_precision": "bf16" if short else "no",
            "optimizer": "adamw_bf16" if short else "torch-adamw",
        }
    )
    return load_family(options, resolve_devices(options, torch.device("cpu")))


def _controlnet(request: ExportRequest, metadata: Mapping[str, str]) -> str | None:
    """The weights of the ControlNet that an adapter changes, or None if it changes none. Raises ModelUnavailable if they are not known.

    Keys of LyCORIS do not name a component; files of earlier versions lie beside the folder of the ControlNet, if they changed a new one.
    """
    with safe_open(request.adapter, framework="pt") as file:
        is_named = any(key.startswith(f"{FOLDER}.") for key in file.keys())  # noqa: SIM118
    beside = request.adapter.absolute().parent / FOLDER
    stated = metadata.get(FOLDER, "")
    weights = request.controlnet or (str(beside) if beside.is_dir() else stated if stated != FOLDER else "")
    if (is_named or stated) and not weights:
        message = f"{request.adapter.name} changes a ControlNet, whose weights are not beside it."
        raise ModelUnavailable(message, hint="name them with --controlnet: controlnet_model_name_or_path of the run")
    return weights or None


def _changes_text_encoders(adapter: Path, spec: FamilySpec) -> bool:
    """Whether an adapter has keys of text encoders, in the spelling of any program."""
    prefixes = spec.for_run(train_text_encoder=True).key_prefixes
    theirs = tuple(in_file for in_file, in_network in prefixes.items() if in_network.removesuffix(".") in spec.trainable_text_encoders)
    with safe_open(adapter, framework="pt") as file:
        return any(key.startswith(theirs) for key in file.keys())  # noqa: SIM118


def _is_widened(adapter: Path, spec: FamilySpec) -> bool:
    """Whether an adapter, which may be of another trainer, is on a first layer that sees a control image."""
    if spec.control is None:
        return False
    ends = tuple(f"{spec.control.input_layer}.{part}.weight" for part in ("lora_A", "lora_down"))
    with safe_open(adapter, framework="pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys() if key.endswith(ends)]  # noqa: SIM118
    return any(spec.control.is_wide(shape[1]) for shape in shapes)


def _outputs(family: Family) -> dict[str, int]:
    """Module of the network -> rows of its weights, 0 if it has none. From the headers of the weights; a file may have other names, so it
    is loaded."""
    found: dict[str, int] = {}
    for name, component in family.spec.trained.items():
        part, prefix = family.parts.find(component.folder), family.spec.module_prefix(name)
        if part.file:
            loaded = family.load_component(name, family.devices.weights).state_dict()
            shapes = {key: tuple(tensor.shape) for key, tensor in loaded.items()}
        else:
            shapes = _shapes_in(part)
        for key, shape in shapes.items():
            module, _, own = key.removeprefix(component.file_prefix).rpartition(".")
            found[prefix + module] = shape[0] if own == "weight" and shape else found.get(prefix + module, 0)
    return found


def _shapes_in(part: Part) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for path in part.weights():
        with safe_open(path, framework="pt") as file:
            found |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    return found


def _merge(request: ExportRequest, family: Family, adapter: AdapterTensors) -> list[str]:
    network = join({name: family.load_component(name, family.devices.weights) for name in family.spec.trained})
    merged = merged_weights(network, adapter, request.strength)
    with torch.no_grad():
        for name, weight in merged.items():
            network.get_parameter(name).copy_(weight)
    if family.spec.steers:
        write_controlnet(family, request.output, network)
        how = f"a ControlNet, loaded with {family.spec.steers.class_name}.from_pretrained"
        return [f"{request.output}: {how}; {len(merged)} weights carry the adapter"]
    family.save_pipeline(request.output, network)
    how = "from_pretrained and load_components" if is_modular(family.pipeline_name) else "from_pretrained"
    return [f"{request.output}: a complete pipeline, loaded with {how}; {len(merged)} weights carry the adapter"]


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(dict(tensors), {**metadata, "format": "pt"}))
