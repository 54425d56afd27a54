"""Puts a run together, each part a stage that people can watch."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from trainer_engine.adapters.assistant import Assistant, attach_assistant
from trainer_engine.adapters.base import Trainable
from trainer_engine.adapters.build import make_trainable
from trainer_engine.adapters.validation_adapter import ValidationAdapter, load_validation_adapters
from trainer_engine.batches.batch import BatchBuilder
from trainer_engine.batches.collate import Collator, Share
from trainer_engine.batches.loader import Loader
from trainer_engine.batches.sources import make_sampler
from trainer_engine.checkpointing.save import FixedFile
from trainer_engine.config.adapters.validation_adapter import validation_adapter_runs
from trainer_engine.config.components import network_config, pipeline_settings
from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.hooks import EXTERNAL
from trainer_engine.config.options.model import ObjectiveOptions
from trainer_engine.config.options.run import RunOptions
from trainer_engine.config.resuming.base_weights import base_weights
from trainer_engine.config.resuming.choice import SavedRun
from trainer_engine.config.resuming.identity import run_identity
from trainer_engine.config.resuming.remote_checkpoint import is_remote
from trainer_engine.config.routing import parse_routes
from trainer_engine.config.rules.device import device_problems
from trainer_engine.config.rules.distributed import group_problems, network_problems
from trainer_engine.config.rules.noise_schedule import distillation_problems, schedule_problems
from trainer_engine.config.rules.optimizer import float32_weights_note
from trainer_engine.config.rules.routing import network_route_problems
from trainer_engine.config.rules.sharding import block_problems, sharing_problems
from trainer_engine.config.rules.skipped_layers import network_skip_problems
from trainer_engine.config.rules.updates import process_problems
from trainer_engine.config.token_splitting import ALL_TO_ALL
from trainer_engine.contract.errors import InvalidOptions, errors_in
from trainer_engine.contract.events import Notification, Severity, StageKey
from trainer_engine.contract.run import RunFolder
from trainer_engine.datasets.schedule import run_steps
from trainer_engine.evaluation.runs import history_of
from trainer_engine.families.base import Family
from trainer_engine.families.common.token_routing import TokenRouter
from trainer_engine.families.common.token_splitting import group_mesh, split_tokens
from trainer_engine.families.load import load_family
from trainer_engine.families.modules import DiffusersNetwork
from trainer_engine.loop.build_callbacks import callbacks, publishing_of
from trainer_engine.loop.callbacks.clip_scoring import make_scoring
from trainer_engine.loop.compilation import CompilationWatch, compile_network
from trainer_engine.loop.components import RunComponents
from trainer_engine.loop.context import RunContext
from trainer_engine.loop.datasets import Preparation
from trainer_engine.loop.prepared import Prepared
from trainer_engine.loop.publishing import bring_wanted
from trainer_engine.loop.restore import begin, compare_data, find_checkpoint, restore
from trainer_engine.loop.state import TrainState
from trainer_engine.loop.step import Step
from trainer_engine.loop.trainer import Trainer
from trainer_engine.objectives.base import Objective
from trainer_engine.objectives.build import FLOW_MATCHING, make_objective
from trainer_engine.optim.ema import MovingAverage
from trainer_engine.optim.lr_schedules import Schedule
from trainer_engine.optim.optimizers import start_training
from trainer_engine.optim.updates import make_update
from trainer_engine.results.comment import make_comment
from trainer_engine.runtime.devices import capability_of, resolve_devices
from trainer_engine.runtime.environment import comment_variables
from trainer_engine.runtime.sharding import shard
from trainer_engine.weights.hub import hub_cache


def assemble(run_context: RunContext) -> Trainer:
    """A run that is ready to train, resumed where there is something to resume. Raises EngineError's children and Stopped."""
    family, objective = _load_family(run_context)
    scoring = make_scoring(run_context)
    saved = _find_checkpoint(run_context, family)  # before the caches, which may take hours: it may have to be refused
    prepared = Preparation(
        options=run_context.options,
        family=family,
        processes=run_context.processes,
        stages=run_context.stages,
        requests=run_context.requests,
        run_folder=RunFolder(run_context.media.parent),
        places=run_context.places,
    ).run(run_context.dataloader)
    if saved:
        compare_data(saved, run_context.options, run_context.processes.group.count, prepared, run_context.stages.sink)
    with run_context.stages.stage(StageKey.PREPARE_MODELS):
        trainable = make_trainable(family, saved.folder if saved else None)
        assistant = _assistant(run_context, family, trainable.network)
        _split_tokens(run_context, family, trainable.network)
        _shard(run_context, family, trainable)
        parts = _parts(run_context, family, objective, prepared, trainable)
        parts.assistant = assistant
        text, state = run_context.options.publishing.modelspec_comment, parts.state
        trainable.comment = make_comment(text, lambda: (state.step, state.epoch), comment_variables(), run_context.stages.sink)
        parts.validation_adapters = _validation_adapters(run_context, family, trainable.network)
        if saved:
            restore(parts, saved, run_context.stages.sink)
        else:
            begin(parts)
    publishing = publishing_of(run_context, trainable.results)

    def is_complete() -> bool:
        is_of_this_run = saved is None or saved.is_of(parts.output_dir)  # else the results are those of another one
        is_here = is_of_this_run and parts.has_results() and publishing.is_settled(parts.state)
        return not run_context.processes.any_of([not is_here])[0]  # all of them go on, or none

    trainer = Trainer(parts.state, parts.loader, parts.step, callbacks(run_context, parts, publishing, scoring), is_complete)
    if run_context.options.is_compiled:
        trainer.around_step = CompilationWatch(run_context.options.distributed, run_context.stages).step
    return trainer


def _load_family(run_context: RunContext) -> tuple[Family, Objective]:
    with run_context.stages.stage(StageKey.LOAD_BASE_MODEL):
        devices = resolve_devices(run_context.options, run_context.processes.device)
        refused = list(device_problems(run_context.options, devices.device.type, capability_of(devices.device)))
        refused += process_problems(run_context.options.as_values(), run_context.processes.count)
        refused += group_problems(run_context.options, run_context.processes.count)
        refused += sharing_problems(run_context.options, run_context.processes.count)
        if refused:
            raise InvalidOptions(refused)
        family = run_context.processes.first_then_others(lambda: load_family(run_context.options, devices))
        refused = errors_in(list(schedule_problems(run_context.options, family.spec, family.scheduler_config())))
        if refused:
            raise InvalidOptions(refused)
        objective = make_objective(family.prediction_type, family.scheduler_config(), family.objective_options)
    family.receives_weights = run_context.options.distributed.reads_weights_once and not run_context.processes.is_first
    family.report = run_context.stages.sink.emit
    options = run_context.options
    for note in (*devices.notes, float32_weights_note(options.optimizer.optimizer, options.precision.mixed_precision)):
        if note:
            run_context.stages.sink.emit(Notification(code="precision", message=note))
    run_context.requests.raise_if_stopped()
    return family, objective


def _noise_options(options: ObjectiveOptions, prediction_type: str) -> ObjectiveOptions:
    """Offsets of the noise are a correction of diffusion's schedules: flow matching starts from pure noise."""
    return options.model_copy(update={"offset_noise": False}) if prediction_type == FLOW_MATCHING else options


def _find_checkpoint(run_context: RunContext, family: Family) -> SavedRun | None:
    if not run_context.options.checkpointing.resume_from_checkpoint:
        return None
    with run_context.stages.stage(StageKey.RESUME_CHECKPOINT) as advance:
        if is_remote(run_context.options.checkpointing.resume_from_checkpoint):
            with run_context.processes.first_alone() as is_first:
                if is_first:
                    bring_wanted(
                        run_context.options,
                        run_identity(run_context.options, family.spec, family.prediction_type),
                        run_context.requests,
                        advance,
                    )
        return find_checkpoint(run_context.options, family, run_context.stages.sink, may_delete=run_context.processes.is_first)


def _validation_adapters(run_context: RunContext, family: Family, network: nn.Module) -> list[ValidationAdapter]:
    """Load the adapters of validations before the first step, so that a broken one is reported early."""
    options, devices = run_context.options, family.devices
    if options.validation.validation_disable or options.hooks.validation_method == EXTERNAL:
        return []
    runs = validation_adapter_runs(options.as_values())
    prefixes = family.spec.key_prefixes
    return run_context.processes.first_then_others(
        lambda: load_validation_adapters(network, runs, devices.device, devices.compute, prefixes)
    )


def _assistant(run_context: RunContext, family: Family, network: nn.Module) -> Assistant | None:
    """Attach the assistant adapter, and warn where distilled weights are trained without one."""
    options, devices, spec = run_context.options, family.devices, family.spec
    stated, pipeline = (read(options.model, spec, hub_cache()) for read in (network_config, pipeline_settings))
    for problem in distillation_problems(options, spec, scheduler=family.scheduler_config(), network=stated, pipeline=pipeline):
        message = f"{problem.message} To keep it, {problem.hint}."
        run_context.stages.sink.emit(Notification(code=problem.code, message=message, severity=Severity.WARNING))
    return run_context.processes.first_then_others(
        lambda: attach_assistant(network, options, devices.device, devices.compute, spec.key_prefixes)
    )


def _split_tokens(run_context: RunContext, family: Family, network: nn.Module) -> None:
    """Spread each sample over the processes of a group. Raises InvalidOptions if the network cannot be spread over so many."""
    options, group, device = run_context.options, run_context.processes.group, family.devices.device
    if group.size == 1:
        return
    by_heads = options.distributed.context_parallel_comm_strategy == ALL_TO_ALL
    for bare in family.trained_modules(network).values():
        refused = list(network_problems(options, family.spec, cast("DiffusersNetwork", bare).config))
        if refused:
            raise InvalidOptions(refused)
        split_tokens(bare, group_mesh(group, device, by_heads=by_heads), device)


def _shard(run_context: RunContext, family: Family, trainable: Trainable) -> None:
    """Spread the weights over all processes if the options say so. Raises InvalidOptions for blocks that the network does not have."""
    spread, processes, network = run_context.options.distributed, run_context.processes, trainable.network
    if not spread.fsdp_enable:
        return
    blocks = spread.wrapped_blocks(family.spec.repeated_blocks)
    refused = list(block_problems(blocks, {type(module).__name__ for module in network.modules()}))
    if refused:
        raise InvalidOptions(refused)
    shard(
        network,
        blocks,
        processes.count,
        family.devices.device,
        frees_after_forward=spread.fsdp_reshard_after_forward,
        waits_on_host=spread.keeps_parts_on_host,
        from_first=spread.reads_weights_once,
        complete=trainable.unsharded,
    )


def _parts(run_context: RunContext, family: Family, objective: Objective, prepared: Prepared, trainable: Trainable) -> RunComponents:
    options, processes = run_context.options, run_context.processes
    run = options.run
    sampler = make_sampler(prepared.sources, options, processes.group.count)
    state = TrainState(run_steps(options, sampler.timeline), sampler.timeline)
    collator = Collator(
        builder=_builder(family, prepared, run.seed),
        objective=objective,
        seed=run.seed,
        caption_dropout=options.data.caption_dropout_probability,
        share=Share(processes.group.index, processes.group.count),
        noise=_noise_options(options.objective, family.prediction_type),
        combine_references=options.data.conditioning_multidataset_sampling == "combined",
        mask_probability=options.objective.masked_loss_probability,
        timestep_offsets={source.id: source.timestep_offset for source in prepared.sources},
        adapter_strengths={source.id: source.adapter_strength for source in prepared.sources if source.adapter_strength},
        parent_sets=frozenset(source.id for source in prepared.sources if source.is_regularisation),
    )
    ahead = options.data.dataloader_prefetch_qlen if options.data.dataloader_prefetch else 0
    network = trainable.network
    groups = trainable.parameter_groups([family.spec.module_prefix(name) for name in family.spec.trained_text_encoders])
    update = make_update(options.optimizer, groups, family.devices.device, micro_batches=run.gradient_accumulation_steps)
    start_training(update.optimizer)
    called = compile_network(network, options.distributed, family.spec) if options.is_compiled else network
    may_skip = trainable.may_skip or family.may_skip or options.distributed.find_unused_parameters
    step = Step(
        family=family,
        objective=objective,
        devices=family.devices,
        processes=processes,
        network=processes.share_network(called, may_skip=may_skip),
        update=update,
        schedules=_schedules(options, state.total_steps, sampler.sizes.batch * sampler.sizes.accumulation)[: len(groups)],
        seed=run.seed,
        scaler=torch.amp.GradScaler(family.devices.device.type, enabled=family.devices.compute == torch.float16),
        parent=None if options.model.model_type == "full" else trainable.base_model,
        at_strength=trainable.at_strength,
        router=_router(options, family, network),
    )
    average = _average_of(network, run)
    loader = Loader(sampler, collator, ahead=ahead, pin=family.devices.device.type == "cuda")
    history = history_of(prepared, options, objective, averaged=average is not None)
    samples_file = FixedFile.of_json(prepared.sample_names)
    base = base_weights(options.model, family.spec, hub_cache())
    return RunComponents(
        options=options,
        family=family,
        trainable=trainable,
        optimizer=update.optimizer,
        average=average,
        prepared=prepared,
        layout=sampler.sizes,
        loader=loader,
        step=step,
        state=state,
        samples_file=samples_file,
        history=history,
        base=base,
    )


def _router(options: TrainingOptions, family: Family, network: nn.Module) -> TokenRouter | None:
    """Token routing on the blocks of the bare network, before it is compiled or wrapped.

    Raises InvalidOptions if the network lacks blocks that options name.
    """
    names = [name for name, _ in network.named_modules()]
    problems = [*network_route_problems(options, family.spec, names), *network_skip_problems(options, family.spec, names)]
    if problems:
        raise InvalidOptions(problems)
    routes, spec = parse_routes(options.objective.tread_config)[0], family.spec.routing
    if not routes or spec is None:
        return None
    return TokenRouter(next(iter(family.trained_modules(network).values())), spec, routes)


def _builder(family: Family, prepared: Prepared, seed: int) -> BatchBuilder:
    return BatchBuilder(
        family=family,
        read_latents=prepared.read_latents,
        read_prompt=prepared.read_prompt,
        read_mask=prepared.read_mask,
        read_control=prepared.read_control if family.spec.sees_control else None,
        read_conditions=prepared.read_conditions if family.caches_conditions else None,
        crop_seed=seed,
    )


def _average_of(network: nn.Module, run: RunOptions) -> MovingAverage | None:
    if not run.use_ema:
        return None
    return MovingAverage(
        network,
        run.ema_decay,
        run.ema_update_interval,
        device=torch.device("cpu") if run.ema_on_host else None,
        warmup_steps=run.ema_warmup_steps,
        is_grouped=not run.ema_foreach_disable,
    )


def _schedules(options: TrainingOptions, total_steps: int, samples: int) -> tuple[Schedule, Schedule]:
    """Of the network, and of trained text encoders. Schedule-free optimizers keep their warm-up and then stay at the peak.

    ``samples``: of one optimizer step, over all processes.
    """
    is_free = OPTIMIZERS[options.optimizer.optimizer].is_schedule_free
    chosen = options.schedule.model_copy(update={"lr_scheduler": "constant_with_warmup"}) if is_free else options.schedule
    factor = options.optimizer.rate_factor(samples)
    peaks = options.optimizer.learning_rate * factor, options.optimizer.text_encoder_rate * factor
    return Schedule(chosen, peaks[0], total_steps), Schedule(chosen, peaks[1], total_steps)
