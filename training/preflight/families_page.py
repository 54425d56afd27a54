"""Prints ``docs/families.md``: what each family is, what it needs and what it can do, one row a flavour."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec
from training.preflight.memory_table import training_gib, usual_edge

COMMAND = "python -m training.preflight.families_page > docs/families.md"
INTRODUCTION = f"""# Model families

`model_family` and `model_flavour` choose the weights; [models.md](models.md) says how to train from other ones, and what is special about
each family. [memory.md](memory.md) has the memory of more number types and of what waits on the host. This page is printed by
`{COMMAND}`.

- **Billion**: parameters of the network that is trained.
- **Full**, **LoRA**, **int8**, **nf4**: estimated GiB a GPU for one step with a batch of 1 at the size that the weights are for, with
  gradient checkpointing: a full fine-tune, a LoRA of rank 16 in bfloat16, and one on a base in `int8-quanto` and in `nf4-bnb`.
- **Tokens**: the longest prompt. **Pixels**: edges of training images are multiples of this.
"""
HEAD = "| flavour | repository | licence | billion | full | LoRA | int8 | nf4 | tokens | pixels | can do |"


def document() -> Iterator[str]:
    """Yields the lines of the page."""
    yield INTRODUCTION
    for spec in specs().values():
        yield f"## {spec.title} (`{spec.name}`)\n"
        yield f"{spec.description}\n"
        yield HEAD
        yield "|---" * (HEAD.count("|") - 1) + "|"
        yield from (_row(spec, flavour) for flavour in spec.flavours)
        yield ""


BASES = {"lora": "no_change", "lora_int8": "int8-quanto", "lora_nf4": "nf4-bnb"}
"""Name of an estimate for an adapter -> ``base_model_precision``."""


def memory_gib(spec: FamilySpec, flavour: str) -> dict[str, float | None]:
    """Estimated GiB a GPU for one step at the size of the weights: ``full``, and each of ``BASES``; None where it is not offered."""
    edge = usual_edge(spec, flavour)
    full = float(training_gib(spec, flavour, edge, {"model_type": "full"})) if "full" in spec.model_types else None
    offered = {name: base for name, base in BASES.items() if base in ("no_change", *spec.adapters.base_precisions)}
    adapter = {"model_type": "lora", "lora_rank": 16}
    found = {name: float(training_gib(spec, flavour, edge, {**adapter, "base_model_precision": base})) for name, base in offered.items()}
    return {"full": full, **{name: found.get(name) for name in BASES}}


def licence_of(spec: FamilySpec, flavour: str) -> str | None:
    """The name of the licence of a flavour's weights."""
    licence = spec.licenses.get(flavour, {})
    return licence.get("license_name") or licence.get("license")


def _row(spec: FamilySpec, flavour: str) -> str:
    cells = [
        f"`{flavour}`{' (default)' if flavour == spec.default_flavour else ''}",
        f"`{spec.flavours[flavour]}`",
        licence_of(spec, flavour) or "-",
        f"{spec.parameters[flavour] / 1e9:.1f}",
        *("-" if number is None else f"{number:.1f}" for number in memory_gib(spec, flavour).values()),
        str(spec.tokens_of(flavour, None)),
        str(spec.latents.alignment_px),
        ", ".join(abilities(spec, flavour)),
    ]
    return f"| {' | '.join(cells)} |"


def abilities(spec: FamilySpec, flavour: str) -> Iterator[str]:
    """Yields what can be done with a flavour, in words."""
    yield from ("full fine-tunes",) if "full" in spec.model_types else ()
    yield "LoRA, LyCORIS"
    if spec.controlnet is not None and flavour in spec.controlnet.parameters:
        yield "ControlNet"
    if spec.control is not None and flavour in spec.control.parameters:
        yield "control"
    if flavour in spec.takes_references:
        yield "edits by references" if flavour in spec.needs_references else "references"
    if spec.sampling.clips is not None:
        yield "clips from their first frame" if spec.animates(flavour) else "clips"
    if any(component.lora_targets for component in spec.components.values()):
        yield "text encoders"
    if spec.routing is not None:
        yield "token routing"
    if spec.distillation is not None and flavour in spec.distillation.flavours:
        yield "distilled" + (", with an assistant" if "assistant_lora_path" in spec.defaults_of(flavour) else ": train another flavour")


if __name__ == "__main__":
    sys.stdout.write("\n".join(document()).rstrip() + "\n")
