"""The adapter of sd-scripts and musubi-tuner: ``network_module`` and its arguments."""

from __future__ import annotations

from collections.abc import Mapping

from environments.imports import vocabulary
from environments.imports.draft import TRANSFORMER, WIDE, Draft
from environments.imports.source import Source

NETWORKS: Mapping[str, str] = {"loha": "loha", "lokr": "lokr", "dylora": "dylora"}
"""Last part of a module's name, up to an underscore -> the algorithm of LyCORIS."""
LYCORIS_KEYS = (
    *("conv_dim", "conv_alpha", "factor", "full_matrix", "dropout", "rank_dropout", "module_dropout", "use_tucker", "use_scalar"),
    *("decompose_both", "unbalanced_factorization", "dora_wd", "wd_on_output", "bypass_mode", "train_norm", "rescaled", "constraint"),
    "block_size",
)
ALGORITHMS: Mapping[str, str] = {"lora": "locon"}
WITHOUT_CONVOLUTIONS = ("attn-only", "attn-mlp")
LAYERS: Mapping[str, tuple[str, ...]] = {"attn-only": ("Attention",), "attn-mlp": TRANSFORMER, "full": TRANSFORMER}


def translate_network(draft: Draft, source: Source, *, full: bool = False) -> None:
    """The adapter, or none for a full fine-tune."""
    module = source.text("network_module")
    if module is None and full:
        draft.put("model_type", "full", source.name("network_module"))
        return
    draft.put("model_type", "lora", source.name("network_module"))
    rank, alpha = source.whole("network_dim") or 4, source.number("network_alpha") or 1.0
    dropout = source.number("network_dropout")
    draft.copy(source, {"network_weights": ("init_lora", "text")})
    arguments = vocabulary.key_values(source.texts("network_args"), source, "network_args")
    origin = source.name("network_args")
    named = NETWORKS.get((module or "").rsplit(".", 1)[-1].split("_")[0])
    is_lycoris = (module or "").startswith("lycoris")
    has_conv = bool(arguments.get("conv_dim")) and draft.has_convolutions
    algo = str(arguments.pop("algo", "lora")).lower() if is_lycoris else named or ("lora" if has_conv else "")
    if not algo:
        draft.put("lora_rank", rank, source.name("network_dim"))
        draft.put("lora_alpha", alpha, source.name("network_alpha"))
        draft.put("lora_dropout", dropout or 0.0, source.name("network_dropout"))
        draft.use_layers(WIDE, source.name("network_module"))
    else:
        sizes = {"linear_dim": rank, "linear_alpha": alpha, "dropout": dropout}
        known = {key: arguments.pop(key) for key in LYCORIS_KEYS if key in arguments}
        preset = str(arguments.pop("preset", "full"))
        for key in ("conv_dim", "conv_alpha") if preset in WITHOUT_CONVOLUTIONS else ():
            if key in known:
                draft.ledger.leave(f"{origin}.{key}", known.pop(key), f"the preset {preset} has no convolutions")
        draft.use_lycoris(source.name("network_module"), ALGORITHMS.get(algo, algo), {**sizes, **known}, LAYERS.get(preset, TRANSFORMER))
        if preset not in LAYERS:
            draft.ledger.leave(f"{origin}.preset", preset, "name the layers in apply_preset of lycoris_config.json")
    for key, value in arguments.items():
        draft.ledger.leave(f"{origin}.{key}", value, "this adapter has no such argument")
