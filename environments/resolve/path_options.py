"""Which options are paths, and what must exist there when a run starts."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from environments.paths import Home, Kind, ResolvedPath, resolve
from trainer_engine.config import hub
from trainer_engine.config.components import BASE, NETWORKS, VAE
from trainer_engine.config.dataset_tables import table_paths
from trainer_engine.config.model_files import HINT, PICKLED
from trainer_engine.config.one_file.layout import SUFFIX
from trainer_engine.config.stages import model_options
from trainer_engine.contract.errors import Problem


@dataclass(frozen=True)
class PathRule:
    """What a path option must point to."""

    kind: Kind
    must_exist: bool
    writing: bool = False
    """Whether a run writes there."""
    or_repository: bool = False
    """Whether the value may be a repository id of the hub instead."""


LOCAL = MappingProxyType(
    {
        "output_dir": PathRule(Kind.FOLDER, must_exist=False, writing=True),
        "cache_dir": PathRule(Kind.FOLDER, must_exist=False, writing=True),
        "cache_dir_vae": PathRule(Kind.FOLDER, must_exist=False, writing=True),
        "cache_dir_text": PathRule(Kind.FOLDER, must_exist=False, writing=True),
        "group_offload_to_disk_path": PathRule(Kind.FOLDER, must_exist=False, writing=True),
        "data_backend_config": PathRule(Kind.FILE, must_exist=True),
        "lycoris_config": PathRule(Kind.FILE, must_exist=True),
        "init_lora": PathRule(Kind.ANY, must_exist=True),
        "init_lora_ema": PathRule(Kind.ANY, must_exist=True),
        "accelerate_config": PathRule(Kind.FILE, must_exist=True),
    }
)
"""Options that hold paths only."""

WEIGHTS = (
    "pretrained_model_name_or_path",
    "pretrained_config_name_or_path",
    "pretrained_vae_model_name_or_path",
    "pretrained_t5_model_name_or_path",
    "pretrained_unet_model_name_or_path",
    "pretrained_transformer_model_name_or_path",
    "controlnet_model_name_or_path",
    "pretrained_evaluation_model_name_or_path",
    *model_options(),
)
"""Options that hold a repository id of the hub, or the path of a folder or of a file in safetensors."""

ONE_FILE = (BASE, VAE, *(option for option, _ in NETWORKS.values()))
"""Those of ``WEIGHTS`` that may be one file."""

ADAPTERS = ("validation_adapter_path", "assistant_lora_path")
"""Options that hold a file of a repository of the hub, or the path of a file or folder."""

DATASET = MappingProxyType(
    {
        "instance_data_dir": PathRule(Kind.FOLDER, must_exist=True),
        "cache_dir_vae": PathRule(Kind.FOLDER, must_exist=False, writing=True),
        "cache_dir": PathRule(Kind.FOLDER, must_exist=False, writing=True),
        "caption_filter_list": PathRule(Kind.FILE, must_exist=True),
        "parquet": PathRule(Kind.FILE, must_exist=True),
        **{
            name: PathRule(Kind.FOLDER, must_exist=False, writing=True)
            if kind == "cache"
            else PathRule(Kind.ANY, must_exist=True, or_repository=True)
            if kind == "repository"
            else PathRule(Kind[kind.upper()], must_exist=True)
            for name, kind in table_paths().items()
        },
    }
)
"""Fields of a dataset entry that hold paths."""


def is_repository(text: str) -> bool:
    """Whether the text can be a repository id: ``name`` or ``owner/name``. A name that ends like a file of weights is a path."""
    return hub.is_repository(text) and not text.endswith(SUFFIX)


def resolve_weights(text: str, name: str, home: Home, *, must_exist: bool = False) -> ResolvedPath | Problem:
    """The path of weights, in a folder or in one file. Touches nothing."""
    if name in ONE_FILE and text.endswith(PICKLED):
        message = f"{text!r} is a pickle, which can run programs when it is read. It is not opened."
        return Problem.error(name, "unsafe_model", message, got=text, expected="weights in safetensors", hint=HINT)
    kind = Kind.FILE if name in ONE_FILE and text.endswith(SUFFIX) else Kind.FOLDER
    return resolve(text, name, home=home, must_exist=must_exist, kind=kind)
