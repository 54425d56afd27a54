"""What a run evaluates, from what it is made of."""

from __future__ import annotations

import hashlib

from trainer_engine.config.options import TrainingOptions
from trainer_engine.datasets.samples import reference_cache
from trainer_engine.evaluation.history import History
from trainer_engine.evaluation.measure import Measuring
from trainer_engine.loop.components import RunComponents
from trainer_engine.loop.prepared import Prepared
from trainer_engine.objectives.base import Objective
from trainer_engine.runtime.distributed import Processes


def measuring(parts: RunComponents, processes: Processes) -> Measuring:
    options, prepared = parts.options, parts.prepared
    return Measuring(
        family=parts.family,
        objective=parts.step.objective,
        processes=processes,
        network=parts.trainable.network,
        builder=parts.loader.collator.builder,
        images=() if options.evaluation.eval_loss_disable else prepared.held_out,
        points=options.evaluation.eval_timesteps,
        combine_references=options.data.conditioning_multidataset_sampling == "combined",
    )


def history_of(prepared: Prepared, options: TrainingOptions, objective: Objective, *, averaged: bool) -> History:
    """No evaluation yet, of what this run measures. ``averaged``: whether there is a moving average of the weights."""
    if options.evaluation.eval_loss_disable or not prepared.held_out:
        return History()
    whose = "average" if averaged and options.validation.ema_validation == "ema_only" else "live"
    together = options.data.conditioning_multidataset_sampling
    points = options.evaluation.eval_timesteps
    parts: list[object] = [objective.spread_timesteps(points).tolist() if objective.is_partial else points, whose]
    for item in prepared.held_out:
        sample = item.sample
        parts += [sample.name, prepared.latents[item.source].addresses[sample.name]]
        parts.append(prepared.captions[item.source].address(sample.captions[0]))
        parts += [prepared.partner_addresses(reference_cache(item.source, one.set))[one.sample.name] for one in sample.references]
        if sample.mask is not None:
            parts += ["mask", prepared.masks[reference_cache(item.source, sample.mask.set)].addresses[sample.mask.sample.name]]
        parts += [together] if len(sample.references) > 1 else []
    measure = hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return History(measure, tuple(dict.fromkeys(item.source for item in prepared.held_out)))
