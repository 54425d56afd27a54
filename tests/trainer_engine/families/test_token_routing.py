"""Token routing: the tokens that stay are computed as if the others were not there, and the others come out as they went in."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.gradients import step_inputs
from tests.helpers.models import tiny_family, tiny_model
from tests.helpers.params import first_fast, often, slow
from tests.helpers.resuming import assert_resumes_exactly, assert_same_checkpoints
from tests.helpers.tiny_run import HereRun, run_of_ranks, train_here
from tests.trainer_engine.adapters import test_numerics as pixart
from tests.trainer_engine.families.anima import test_anima as anima
from tests.trainer_engine.families.auraflow import test_auraflow as auraflow
from tests.trainer_engine.families.chroma import test_chroma as chroma
from tests.trainer_engine.families.ernie import test_ernie as ernie
from tests.trainer_engine.families.flux import test_numerics as flux
from tests.trainer_engine.families.flux.models import tiny_flux
from tests.trainer_engine.families.kandinsky5_image.models import tiny_kandinsky
from tests.trainer_engine.families.krea2 import test_krea2 as krea2
from tests.trainer_engine.families.longcat_image import models as longcat
from tests.trainer_engine.families.wan.test_wan import tiny_wan
from tests.trainer_engine.loop.test_masked_loss import masked
from trainer_engine.config.routing import Route
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.contract.events import ProgressEvent
from trainer_engine.families.base import Family
from trainer_engine.families.common.token_routing import TokenRouter, choose
from trainer_engine.families.inputs import StepInputs

CPU = torch.device("cpu")


def routes(*where: tuple[float, int, int]) -> str:
    keys = ("selection_ratio", "start_layer_idx", "end_layer_idx")
    return json.dumps({"routes": [dict(zip(keys, one, strict=True)) for one in where]})


@dataclass
class Case:
    """A small network, its loss, and what the routed arguments of its blocks are."""

    family: Callable[..., Family]
    loss: Callable[[Any, nn.Module], Tensor]
    tokens: int
    references: int = 0
    """Tokens behind those of the image: of references, or of the prompt."""
    prompt: int = 0
    is_joined: bool = False
    """Whether the first block gets the tokens of prompt and image in one argument."""
    tokens_first: bool = False
    """Whether the blocks have (T, B, C)."""

    def turned(self, tokens: Tensor) -> Tensor:
        """What the blocks have -> (B, T, C), and back."""
        return tokens.transpose(0, 1) if self.tokens_first else tokens


def wan_loss(family: Family, network: nn.Module) -> Tensor:
    latents = pixart.fixed(2, 16, 3, 4, 6, seed=1)
    inputs = StepInputs(noisy_latents=latents, timesteps=torch.tensor([0.2, 0.8]), prompts={"embeds": pixart.fixed(2, 512, 32, seed=2)})
    return family.predict(network, inputs).square().mean()


def predicted(family: Family, network: nn.Module) -> Tensor:
    """The mean square of a prediction for 6 x 4 tokens beside prompts of two lengths."""
    return family.predict(network, step_inputs(family)).square().mean()


def predicted_alone(family: Family, network: nn.Module) -> Tensor:
    """The same for one prompt, where each sample is a pass of its own."""
    both = step_inputs(family)
    one = StepInputs(noisy_latents=both.noisy_latents[:1], timesteps=both.timesteps[:1], prompts=both.prompts)
    return family.predict(network, one).square().mean()


CASES = {
    "flux": Case(tiny_flux, flux.our_loss, 24, prompt=512),
    "flux with a mask": Case(lambda **more: tiny_flux(flux_attention_masked_training=True, **more), flux.our_loss, 24, prompt=512),
    "flux with a reference": Case(
        lambda **more: tiny_flux("kontext", **more), lambda family, network: flux.our_loss(family, network, flux.REFERENCES), 24, 48, 512
    ),
    "chroma": Case(chroma.tiny_chroma, chroma.our_loss, chroma.IMAGE_TOKENS, prompt=512),
    "pixart": Case(tiny_family, pixart.our_loss, 16),
    "wan": Case(tiny_wan, wan_loss, 18),
    "krea2": Case(krea2.tiny_krea2, predicted, 24, prompt=147, is_joined=True),
    "anima": Case(anima.tiny_anima, predicted, 24),
    "auraflow": Case(auraflow.tiny_auraflow, predicted, 24, prompt=264),
    "ernie": Case(ernie.tiny_ernie, predicted, 96, references=28, tokens_first=True),
    "kandinsky5_image": Case(tiny_kandinsky, predicted_alone, 24),
    "longcat": Case(longcat.tiny_longcat, predicted, 24, prompt=512),
}


def blocks_of(network: nn.Module) -> list[nn.Module]:
    lists = ("visual_transformer_blocks", "joint_transformer_blocks", "transformer_blocks", "single_transformer_blocks", "blocks", "layers")
    return [block for name in lists for block in getattr(network, name, [])]


def reference_hooks(network: nn.Module, case: Case, start: int, end: int, staying: Tensor) -> ExitStack:
    """Routes as the paper does: the tokens are taken out once, before the first block, and put back once, after the last."""
    every = torch.cat([staying, torch.arange(case.tokens, case.tokens + case.references)])
    rows = torch.cat([torch.arange(case.prompt), every + case.prompt])
    before: list[Tensor] = []

    def shorter(value: Any) -> Any:
        """Positions and masks of the tokens that stay, whatever their axis is: the only one with a row for each."""
        if isinstance(value, tuple):
            return tuple(shorter(one) for one in value)
        if isinstance(value, dict):
            return {name: shorter(one) for name, one in value.items()}
        whole = case.prompt + case.tokens + case.references
        axes = [axis for axis, size in enumerate(value.shape) if size == whole] if isinstance(value, Tensor) else []
        return value.index_select(axes[-1], rows) if axes else value

    def enter(index: int) -> Callable[..., Any]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            tokens = args[0] if args else kwargs["hidden_states"]
            if index == start:
                tokens = case.turned(tokens)
                before.append(tokens[:, case.prompt :] if case.is_joined else tokens)
                tokens = case.turned(tokens[:, rows if case.is_joined else every])
            along = ("image_rotary_emb", "rotary_emb", "rotary_pos_emb", "rope", "joint_attention_kwargs", "attention_mask")
            rest = {name: shorter(value) if name in along else value for name, value in kwargs.items()}
            if not args:
                return args, {**rest, "hidden_states": tokens}
            names = zip(inspect.signature(block.forward).parameters, args, strict=False)
            return (tokens, *[shorter(value) if name in along else value for name, value in names][1:]), rest

        return hook

    def leave(block: nn.Module, args: Any, output: Any) -> Any:
        computed = case.turned(output[1] if isinstance(output, tuple) else output)
        prompt, computed = computed[:, : -len(every)], computed[:, -len(every) :]  # joined in some blocks
        order = every.tolist()
        rows_of = range(before[0].shape[1])
        whole = torch.stack([computed[:, order.index(at)] if at in order else before[0][:, at] for at in rows_of], dim=1)
        return (output[0], whole) if isinstance(output, tuple) else case.turned(torch.cat([prompt, whole], dim=1))

    hooks = ExitStack()
    for index in range(start, end + 1):
        handle = blocks_of(network)[index].register_forward_pre_hook(enter(index), with_kwargs=True)
        hooks.callback(handle.remove)
    hooks.callback(blocks_of(network)[end].register_forward_hook(leave).remove)
    return hooks


def router_of(family: Family, network: nn.Module, *chosen: Route) -> TokenRouter:
    assert family.spec.routing is not None
    return TokenRouter(network, family.spec.routing, chosen)


OFTEN_CASES = often(CASES, lambda name: name.split()[0])


def gradients(network: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in network.parameters()]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", OFTEN_CASES)
def test_loss_and_gradients_equal_those_of_tokens_taken_out_once(name: str, checkpointing: bool) -> None:
    case = CASES[name]
    family = case.family(gradient_checkpointing=checkpointing)
    plain_family = case.family(gradient_checkpointing=False)
    ours, theirs = family.load_network(), plain_family.load_network()
    end = len(blocks_of(ours)) - 1
    start = 1 if end > 1 else 0
    router = router_of(family, ours, Route(0.5, start, end, ""))
    with router.routing(torch.Generator().manual_seed(3), case.tokens, CPU):
        staying = router.staying[0]
        loss = case.loss(family, ours)
        loss.backward()
    assert len(staying) == case.tokens // 2
    with reference_hooks(theirs, case, start, end, staying):
        wanted = case.loss(plain_family, theirs)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    for one, other in zip(gradients(ours), gradients(theirs), strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.allclose(one, other, rtol=1e-4, atol=1e-6)
    unrouted = case.loss(family, ours)
    assert abs(unrouted.item() - loss.item()) > 1e-6, "routing changed nothing"


@pytest.mark.parametrize("name", OFTEN_CASES)
def test_a_ratio_of_zero_and_a_network_outside_training_are_the_plain_network_bit_for_bit(name: str) -> None:
    case = CASES[name]
    family = case.family(gradient_checkpointing=False)
    plain, ours = family.load_network(), family.load_network()
    wanted = case.loss(family, plain)
    wanted.backward()
    router = router_of(family, ours, Route(0.0, 0, 0, ""), Route(0.001, 1, 1, ""))  # less than a token
    with router.routing(torch.Generator().manual_seed(3), case.tokens, CPU):
        assert router.staying == {}
        found = case.loss(family, ours)
        found.backward()
    assert torch.equal(found, wanted)
    for one, other in zip(gradients(ours), gradients(plain), strict=True):
        assert one is other is None or (one is not None and other is not None and torch.equal(one, other))
    routed = router_of(family, ours, Route(0.5, 0, 0, ""))
    assert torch.equal(case.loss(family, ours), wanted)
    with routed.routing(torch.Generator().manual_seed(3), case.tokens, CPU):
        assert not torch.equal(case.loss(family, ours), wanted)
        with routed.paused():
            assert torch.equal(case.loss(family, ours), wanted)
        assert not torch.equal(case.loss(family, ours), wanted)
    assert torch.equal(case.loss(family, ours), wanted)


@pytest.mark.slow
def test_a_compiled_network_routes_other_tokens_in_each_step() -> None:
    family = tiny_family(gradient_checkpointing=False)
    network = family.load_network()
    router = router_of(family, network, Route(0.5, 0, 1, ""))
    compiled = torch.compile(network, backend="eager")
    found = []
    for seed in (1, 2, None):
        inside = router.routing(torch.Generator().manual_seed(seed), 16, CPU) if seed else nullcontext()
        with inside:
            found.append((pixart.our_loss(family, compiled).item(), pixart.our_loss(family, network).item()))
    for compiled_loss, loss in found:
        assert compiled_loss == pytest.approx(loss, rel=1e-5)
    assert len({loss for _, loss in found}) == 3


@pytest.mark.parametrize("name", slow(["flux with a mask", "wan"]))
def test_blocks_that_are_compiled_alone_route_tokens(name: str) -> None:
    case = CASES[name]
    family = case.family(gradient_checkpointing=False)
    ours, plain = family.load_network(), family.load_network()
    routers = [router_of(family, one, Route(0.5, 0, 1, "")) for one in (ours, plain)]
    for block in blocks_of(ours):
        block.compile(backend="eager", fullgraph=True)
    for seed in (1, 2):
        losses = []
        for router, network in zip(routers, (ours, plain), strict=True):
            with router.routing(torch.Generator().manual_seed(seed), case.tokens, CPU):
                losses.append(case.loss(family, network).item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert case.loss(family, ours).item() == pytest.approx(case.loss(family, plain).item(), rel=1e-5)


@pytest.mark.parametrize(("count", "ratio", "number"), [(16, 0.5, 8), (16, 0.0, 16), (10, 0.33, 7), (3, 0.99, 1)])
def test_all_but_the_share_of_the_tokens_stay_in_order(count: int, ratio: float, number: int) -> None:
    found = choose(torch.Generator().manual_seed(1), count, ratio)
    assert found.tolist() == sorted(set(found.tolist())) and len(found) == number
    assert torch.equal(found, choose(torch.Generator().manual_seed(1), count, ratio))


def test_every_token_skips_about_as_often_as_the_others() -> None:
    generator = torch.Generator().manual_seed(5)
    counts = torch.zeros(16)
    for _ in range(2000):
        counts[choose(generator, 16, 0.25)] += 1
    assert (counts / 2000 - 0.75).abs().max() < 0.04


def test_tokens_that_a_mask_shows_never_skip() -> None:
    family = tiny_family()
    router = router_of(family, family.load_network(), Route(0.75, 0, 0, ""))
    masks = torch.ones(3, 1, 8, 8)  # 4 x 4 tokens
    masks[1] = 0
    masks[1, :, 2, 3] = 1  # of the token in row 1, column 1
    masks[2] = 0
    masks[2, :, 6:, :] = 0.9  # of the last row
    shown = {5, 12, 13, 14, 15}
    for seed in range(20):
        with router.routing(torch.Generator().manual_seed(seed), 16, CPU, masks):
            staying = set(router.staying[0].tolist())
        assert staying == shown, "they are more than the share that stays"
    with router.routing(torch.Generator().manual_seed(1), 16, CPU, masks[:1]):
        assert len(router.staying[0]) == 4, "a mask that shows everything protects nothing"
    clip = tiny_wan()
    of_clips = router_of(clip, clip.load_network(), Route(0.9, 0, 0, ""))
    mask = torch.zeros(1, 1, 3, 4, 6)
    mask[0, 0, 2, 3, 5] = 1
    with of_clips.routing(torch.Generator().manual_seed(1), 18, CPU, mask):
        assert 17 in of_clips.staying[0].tolist()


# ---- whole runs ----

ROUTED = {"tread_config": routes((0.5, 0, 1)), "resolution": 64}
LORA = {"model_type": "lora", "lora_rank": 2, "max_train_steps": 4, "gradient_accumulation_steps": 2}


def trained(place: Path, name: str, **options: Any) -> HereRun:
    return train_here(place, output_dir=str(place / name), **options)


@pytest.mark.parametrize("kind", first_fast(["flux", "full", "lora", "krea2", "anima", "ernie"]))
def test_a_routed_run_resumes_exactly(kind: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "full": {"use_ema": True},
        "lora": LORA,
        "flux": {**LORA, "model_family": "flux", "model_flavour": "dev", "model": str(tiny_model("flux", flavour="dev"))},
        **{name: {**LORA, "model_family": name, "model": str(tiny_model(name))} for name in ("krea2", "anima", "ernie")},
    }[kind]
    options = {**ROUTED, "max_train_steps": 4, **more}
    straight = assert_resumes_exactly(tmp_path, **options)
    plain = trained(tmp_path, "plain", **{**options, "tread_config": None})
    assert [event.loss for event in plain.heard.of(ProgressEvent)] != [event.loss for event in straight.heard.of(ProgressEvent)]


@pytest.mark.parametrize(
    "memory",
    first_fast(
        [
            {"gradient_checkpointing": True, "musubi_blocks_to_swap": 2},
            {"gradient_checkpointing": True},
            {"gradient_checkpointing": True, "gradient_checkpointing_backend": "unsloth"},
            {"ramtorch": True},
        ]
    ),
    ids=lambda memory: ",".join(memory),
)
def test_a_routed_run_with_less_memory_writes_the_same_bytes(memory: dict[str, Any], tmp_path: Path) -> None:
    usual = {**LORA, **ROUTED}
    assert_same_checkpoints(trained(tmp_path, "plain", **usual), trained(tmp_path, "other", **usual, **memory))


def test_a_run_with_a_ratio_of_zero_writes_the_bytes_of_a_plain_run(tmp_path: Path) -> None:
    assert_same_checkpoints(trained(tmp_path, "plain", **LORA), trained(tmp_path, "zero", **LORA, tread_config=routes((0, 0, 1))))


def test_validation_images_are_made_with_every_token(tmp_path: Path) -> None:
    drawn = {
        **LORA,
        "max_train_steps": 1,
        "learning_rate": 1e-12,
        "validation_disable": False,
        "validation_prompt": "a cat",
        "validation_resolution": "64x64",
        "validation_num_inference_steps": 2,
        "validation_preview": False,
    }
    found = [trained(tmp_path, name, **drawn, **more).output_dir for name, more in (("plain", {}), ("routed", ROUTED))]
    plain, routed = ({path.name: path.read_bytes() for path in (one / "validation_images").glob("*.png")} for one in found)
    assert plain and plain == routed


def test_the_engine_refuses_routes_that_do_not_fit_the_network(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptions) as refused:
        trained(tmp_path, "none", **LORA, tread_config=routes((0.5, 0, 7)))
    assert [(one.option, one.code) for one in refused.value.problems] == [("tread_config.routes[0]", "no_such_layer")]


@pytest.mark.slow
def test_two_processes_route_and_train(tmp_path: Path) -> None:
    together = run_of_ranks(tmp_path, **LORA, **ROUTED)
    assert len(together.of_type("training.progress")) == LORA["max_train_steps"]


def test_masked_images_and_prior_preservation_are_routed_and_resume_exactly(tmp_path: Path) -> None:
    entries = masked(tmp_path)
    pictures = entries[0]["instance_data_dir"]
    prior = {"id": "prior", "instance_data_dir": pictures, "cache_dir_vae": str(tmp_path / "cache/prior"), "is_regularisation_data": True}
    options = {**ROUTED, **LORA, "max_train_steps": 6, "datasets": [*entries, prior]}
    assert_resumes_exactly(tmp_path, after=3, **options)
