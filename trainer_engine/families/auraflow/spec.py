"""AuraFlow: a flow-matching transformer whose prompts are read by Pile T5 (fal, 2024); Pony V7 is trained from it."""

from __future__ import annotations

from types import MappingProxyType

from trainer_engine.config.adapters.other_names import OriginalNames
from trainer_engine.config.distillation import DistillationSpec
from trainer_engine.config.family_parts import (
    AdapterSpec,
    Component,
    LatentSpec,
    PromptSpec,
    Role,
    SamplingSpec,
    Scaling,
    frozen_components,
    lokr_start,
)
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.one_file.layout import FileLayout
from trainer_engine.config.positions import PositionSpec
from trainer_engine.config.precisions import QUANTISED
from trainer_engine.config.routing import RoutingSpec
from trainer_engine.config.text_states import TextStates

BASE = "terminusresearch/auraflow-v0.3"
FLAVOURS = MappingProxyType({"v0.3": BASE, "v0.2": "fal/AuraFlow-v0.2", "v0.1": "fal/AuraFlow", "pony": "purplesmartai/pony-v7-base"})
SMALL_SQUARES = ("v0.2", "v0.1")
"""Flavours whose network has positions for squares of 1024 pixels; the others have them for 1536."""
REGISTERS = 8
"""Tokens that the network has learned, before those of each prompt."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
JOINT, SINGLE = r"joint_transformer_blocks\.(\d+)\.", r"single_transformer_blocks\.(\d+)\."
ORIGINAL_NAMES = OriginalNames(
    mark="time_step_proj.linear_1",
    names=(
        (JOINT + r"attn\.to_([qkv])", r"double_layers.\1.attn.w2\2"),
        (JOINT + r"attn\.to_out\.0", r"double_layers.\1.attn.w2o"),
        (JOINT + r"attn\.add_([qkv])_proj", r"double_layers.\1.attn.w1\2"),
        (JOINT + r"attn\.to_add_out", r"double_layers.\1.attn.w1o"),
        (JOINT + r"ff\.linear_([12])", r"double_layers.\1.mlpX.c_fc\2"),
        (JOINT + r"ff\.out_projection", r"double_layers.\1.mlpX.c_proj"),
        (JOINT + r"ff_context\.linear_([12])", r"double_layers.\1.mlpC.c_fc\2"),
        (JOINT + r"ff_context\.out_projection", r"double_layers.\1.mlpC.c_proj"),
        (JOINT + r"norm1\.linear", r"double_layers.\1.modX.1"),
        (JOINT + r"norm1_context\.linear", r"double_layers.\1.modC.1"),
        (SINGLE + r"attn\.to_([qkv])", r"single_layers.\1.attn.w1\2"),
        (SINGLE + r"attn\.to_out\.0", r"single_layers.\1.attn.w1o"),
        (SINGLE + r"ff\.linear_([12])", r"single_layers.\1.mlp.c_fc\2"),
        (SINGLE + r"ff\.out_projection", r"single_layers.\1.mlp.c_proj"),
        (SINGLE + r"norm1\.linear", r"single_layers.\1.modCX.1"),
        (r"pos_embed\.proj", "init_x_linear"),
        ("context_embedder", "cond_seq_linear"),
        (r"time_step_proj\.linear_1", "t_embedder.mlp.0"),
        (r"time_step_proj\.linear_2", "t_embedder.mlp.2"),
        ("proj_out", "final_linear"),
    ),
)
"""Names in the publisher's code. The modulation of the last layer has its halves in another order there, and no name here."""

SPEC = FamilySpec(
    name="auraflow",
    title="AuraFlow",
    description="Flow-matching transformer of 6.9 billion parameters with a Pile T5 XL text encoder and the SDXL autoencoder. Pony V7 is "
    "the same network, trained on characters.",
    flavours=FLAVOURS,
    default_flavour="v0.3",
    model_types=("full", "lora"),
    objective="flow_matching",
    prediction_types=("flow_matching",),
    components=MappingProxyType(
        {
            "transformer": Component(
                "transformer",
                "transformer.",
                Role.TRAINED,
                comfyui_prefix="transformer.",
                original_names=ORIGINAL_NAMES,
                comfyui_takes_original=False,
                comfyui_takes_alpha=False,
            ),
            **frozen_components("vae", "text_encoder"),
        }
    ),
    file_layouts=(FileLayout(title="AuraFlow", mark="double_layers."),),
    network_classes=("AuraFlowTransformer2DModel",),
    prompts=PromptSpec(
        states=(TextStates(width="joint_attention_dim", size="d_model", depth="num_layers", kind="umt5"),),
        token_limit=256,
        flavour_token_limits=MappingProxyType({"pony": 768}),
        text_encoders=("Pile T5 XL",),
        t5_folder="text_encoder",
        joins_sequence=True,
        added_tokens=REGISTERS,
        pads_to_limit=True,
        encoder_parameters=(1_223_550_976,),
        width=2048,
    ),
    latents=LatentSpec(
        alignment_px=64,
        channels=4,
        scale_factor_px=8,
        preview_decoder="madebyollin/taesdxl",
        autoencoder_classes=("AutoencoderKL",),
        scaling=Scaling(0.13025),
    ),
    positions=PositionSpec(key="pos_embed_max_size", published=96 * 96, flavours=MappingProxyType(dict.fromkeys(SMALL_SQUARES, 64 * 64))),
    repeated_blocks=("AuraFlowJointTransformerBlock", "AuraFlowSingleTransformerBlock"),
    routing=RoutingSpec(
        blocks=("joint_transformer_blocks", "single_transformer_blocks"),
        output=1,
        joined=frozenset({"single_transformer_blocks"}),
    ),
    distillation=DistillationSpec(base=BASE),
    sampling=SamplingSpec(samplers=("euler", "unipc", "dpm++")),
    adapters=AdapterSpec(
        module_classes=(
            "Attention",
            "AuraFlowFeedForward",
            "AuraFlowJointTransformerBlock",
            "AuraFlowSingleTransformerBlock",
            "Linear",
        ),
        class_aliases=MappingProxyType({"FeedForward": ("AuraFlowFeedForward",)}),
        lycoris_start=lokr_start(16, {"Attention": 16, "AuraFlowFeedForward": 8}),
        lora_targets=MappingProxyType({"attention": ATTENTION}),
        default_lora_target="attention",
        slider_targets=("to_q", "to_k", "to_v", "to_out.0"),
        base_precisions=QUANTISED,
    ),
    aliases=("aura-flow",),
    known_as=MappingProxyType(
        {
            "auraflow": "v0.3",
            "aura_flow": "v0.3",
            "auraflow_v0_3": "v0.3",
            "auraflow_v0_2": "v0.2",
            "auraflow_v0_1": "v0.1",
            "pony_v7": "pony",
            "ponyv7": "pony",
        }
    ),
    activation_share=1.5,  # norms before and after attention and feed-forward, of queries and keys; the gate and the value of SwiGLU
    short_shares=(1.2, 1.21),  # norms in float32
    defaults=MappingProxyType(
        {"resolution": 1024, "flow_schedule_shift": 1.73, "validation_guidance": 3.5, "validation_num_inference_steps": 50}
    ),
    parameters=MappingProxyType({flavour: 6_842_876_928 if flavour in SMALL_SQUARES else 6_858_605_568 for flavour in FLAVOURS}),
    licenses=MappingProxyType(
        {
            **dict.fromkeys(("v0.3", "v0.2", "v0.1"), MappingProxyType({"license": "apache-2.0"})),
            "pony": MappingProxyType(
                {
                    "license": "other",
                    "license_name": "pony-license",
                    "license_link": "https://huggingface.co/purplesmartai/pony-v7-base/blob/main/LICENSE",
                }
            ),
        }
    ),
    architectures=MappingProxyType(dict.fromkeys(FLAVOURS, "auraflow")),
)
