"""All checks of ``validate``: options, datasets as training will see them, disk, model. Writes nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments.paths import Home
from environments.resolve.run import ResolvedRun
from environments.resolve.webhook_targets import load_webhooks
from trainer_engine.config.addresses import Reach
from trainer_engine.config.components import BASE, component_config
from trainer_engine.config.datasets import Dataloader
from trainer_engine.config.destinations import has_wandb_login, parse_trackers
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.secrets import hidden_problems
from trainer_engine.config.rules.device import device_problems
from trainer_engine.config.rules.distributed import group_problems
from trainer_engine.config.rules.sharding import sharing_problems
from trainer_engine.config.run_paths import index_folder, place_problems, written_folders
from trainer_engine.config.stages import run_sources
from trainer_engine.contract.atomic import PRIVATE_FOLDER_MODE
from trainer_engine.contract.errors import Problem, errors_in
from trainer_engine.contract.files import is_folder
from trainer_engine.contract.run import RunFolder
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.index_file import Indexes
from trainer_engine.datasets.long_edges import beyond_positions
from trainer_engine.datasets.report import DatasetReport
from trainer_engine.datasets.schedule import run_steps, understood_length
from trainer_engine.datasets.summary import summarise
from training.engine.accelerate_file import AccelerateFile, UnreadableAccelerateConfig
from training.engine.command_line import launch_command, process_count, visible_gpus
from training.engine.machines import ONE_MACHINE, MachineRule, Machines
from training.engine.process import passed_environment
from training.preflight import base_model, estimates
from training.preflight.adapter import adapter_problems
from training.preflight.cache_stock import CACHED, cache_uses, embedding_notes
from training.preflight.data import data_problems
from training.preflight.disk import DiskUse, disk_answer, file_systems, free_bytes, nearest_existing
from training.preflight.disk_uses import download_use, other_stage_download, run_uses, weights_use
from training.preflight.evaluation import understood_evaluation
from training.preflight.init_lora import init_problems
from training.preflight.known_run import known_run
from training.preflight.model_files import model_problems, network_problems, weights_problems
from training.preflight.network import adaptable_layers, layer_shapes, network_tensors, text_encoder_bytes
from training.preflight.on_device import EstimatedRun
from training.preflight.output import output_problems, saving_problems, with_copy
from training.preflight.phases import memory_answer, memory_problems, phases
from training.preflight.prompt_tokens import with_cut_prompts
from training.preflight.publishing import publishing_problems
from training.preflight.remote_data import ask_servers
from training.preflight.resume import find_saved_run, other_run_problems, progress_problems
from training.preflight.scoring import scoring_problems
from training.preflight.summary import PreflightReport
from training.preflight.validation_adapters import validation_adapter_problems
from training.webhooks.egress import RunRules, run_rules

LEAST_INDEXED = 1_000
"""Images of a dataset from which on their sizes and captions are remembered."""
LARGEST_INDEX_BYTES = 512 << 20
CPU_INFO = Path("/proc/cpuinfo")
FAST_BF16 = ("avx512_bf16", "amx_bf16", "bf16")


def examine_run(
    resolved: ResolvedRun,
    home: Home,
    variables: Mapping[str, str] | None = None,
    waits_for: Collection[str] = frozenset(),
    rules: RunRules | None = None,
) -> PreflightReport:
    """Run all checks. Needs no database. ``waits_for``: ids of runs that end first. ``rules``: None for those of the settings here."""
    variables = passed_environment() if variables is None else variables
    rules = run_rules() if rules is None else rules
    problems = list(resolved.problems)
    options, spec = resolved.options, resolved.spec
    if options is None or spec is None:
        return PreflightReport(resolved, problems)
    problems += place_problems(home.place_rule, options, resolved.dataloader)
    problems += _folder_problems(options, resolved.dataloader)
    problems += output_problems(options, waits_for)
    problems += _data_is_safe(options, resolved.dataloader)
    hub = base_model.HubSettings.of(variables)
    saved = find_saved_run(options, problems)
    refused = list(other_run_problems(saved, options, spec, hub.cache)) if saved else []
    problems += refused
    saved = None if errors_in(refused) else saved  # further differences add nothing
    problems += publishing_problems(options, home, hub)
    problems += device_problems(options, expected_device(variables), estimates.gpu_capability() if visible_gpus(variables) else None)
    problems += _tracker_notes(options, variables)
    problems += _process_problems(options, home, variables, rules.machines)
    sources = run_sources(options, spec)
    problems += _access_problems(sources, options.model.revision, resolved.dataloader, hub)
    problems += model_problems(options, spec, hub)
    problems += _preview_problems(options, spec, hub)
    problems += scoring_problems(options, hub)
    targets, wrong = load_webhooks(options.hooks.webhook_config, home)
    problems += [*wrong, *hidden_problems(resolved.values)]
    base = base_model.find_weights(sources[BASE], options.model.revision, hub)
    tensors = network_tensors(options.model, spec, hub.cache)
    layers = layer_shapes(tensors) if tensors else None
    problems += network_problems(options, spec, tensors, hub.cache)
    problems += validation_adapter_problems(options, spec, layers, hub)
    problems += weights_problems(options, spec, hub.cache)
    problems += init_problems(options, spec, adaptable_layers(tensors) if tensors else None, saved)
    if resolved.dataloader is None:
        return PreflightReport(resolved, problems, webhooks=tuple(targets))
    reported = {problem.option for problem in problems}
    problems += [found for found in adapter_problems(options, spec, tensors, resolved.given) if found.option not in reported]
    report = _examine_datasets(resolved.dataloader, options, spec, home, rules.sources)
    network = component_config(options.model, spec, spec.components[spec.network].folder, hub.cache)
    report.problems += beyond_positions(options, spec, report, network)
    remote = ask_servers(report, variables)
    problems += [*with_cut_prompts(report, options, spec, hub.cache), *remote.problems]
    problems += data_problems(saved, report, resolved.dataloader, options, process_count(options)) if saved else []
    caches = list(cache_uses(options, spec, resolved.dataloader, report, on_cpu=expected_device(variables) == "cpu"))
    problems += embedding_notes(caches, options, spec)
    uses = [*caches, *download_use(sources[BASE], base, options, spec, hub), *other_stage_download(options, spec, hub), *remote.uses]
    known = known_run(options, spec, resolved.dataloader, tensors, caches, hub, on_cpu=not visible_gpus(variables))
    weights = _Weights(sources[BASE], text_encoder_bytes(options.model, spec, hub.cache))
    understood, more = _understand(known, report, weights, variables, home, uses)
    problems += progress_problems(saved, options, understood["steps"]) if saved and not report.is_incomplete else []
    return PreflightReport(resolved, problems + more, understood, tuple(targets))


def _examine_datasets(dataloader: Dataloader, options: TrainingOptions, spec: FamilySpec, home: Home, reach: Reach) -> DatasetReport:
    return examine(
        dataloader,
        options,
        spec,
        index_dir=_indexes(options, home),
        processes=process_count(options),
        reach=reach,
        fetches_later=True,
        places=home.place_rule,
    )


def _indexes(options: TrainingOptions, home: Home) -> Indexes:
    """What is known of large datasets: to the server, and to earlier runs with these caches."""
    own = RunFolder(home.state / "runs" / "next").shared_index if is_folder(home.state) else None
    limits = {"least_files": LEAST_INDEXED, "largest_bytes": LARGEST_INDEX_BYTES, "folder_mode": PRIVATE_FOLDER_MODE}
    return Indexes(own, (index_folder(options),), **limits)


@dataclass(frozen=True)
class _Weights:
    """What is known of the base model before it is loaded."""

    source: str
    encoder_bytes: int
    """Size of the files of the text encoders."""


def _understand(
    run: EstimatedRun, report: DatasetReport, weights: _Weights, variables: Mapping[str, str], home: Home, uses: Sequence[DiskUse]
) -> tuple[dict[str, Any], list[Problem]]:
    """The numbers of the run, and the problems that follow from them on this machine."""
    options, spec = run.options, run.spec
    summary = summarise(report)
    steps = run_steps(options, report.timeline)
    found = list(phases(run, report))
    disk = estimates.estimate_disk(options, run.parameters, spec, run.tensors, steps=steps, encoder_bytes=weights.encoder_bytes)
    weights_on_disk = weights_use(options, spec, run.parameters, run.tensors)
    disks = file_systems([*run_uses(options, home, disk, steps), *weights_on_disk, *uses])
    disk["caches"] = sum(use.bytes for use in uses if use.what in CACHED)
    output_dir = Path(options.run.output_dir)
    evaluation, notes = understood_evaluation(options, report, steps)
    understood = {
        **summary,
        "evaluation": evaluation,
        "model": {
            "family": spec.name,
            "title": spec.title,
            "type": options.model.model_type,
            "weights": weights.source,
            "parameters": run.parameters,
        },
        **understood_length(options, report.timeline),
        "batch_size": report.effective.batch,
        "effective_batch_size": summary["samples_per_step"],
        "memory": with_copy(memory_answer(found), disk["checkpoint"]),
        "disk": disk_answer(disk, disks, output_dir),
    }
    problems = (
        notes + list(memory_problems(found, report.effective.processes, variables)) + list(saving_problems(options, free_bytes(output_dir)))
    )
    problems += [problem for one in disks if (problem := one.problem())]
    return understood, problems + list(_speed_notes(options, variables))


def _access_problems(
    sources: Mapping[str, str], revision: str | None, dataloader: Dataloader | None, hub: base_model.HubSettings
) -> Iterator[Problem]:
    """Whether the run can have its weights (option -> source), and the models that generate references."""
    for option, source in {**sources, **(dataloader.generating_models if dataloader else {})}.items():
        found = base_model.check_access(option, source, revision if option == BASE else None, hub)
        yield from (found,) if found else ()


def _preview_problems(options: TrainingOptions, spec: FamilySpec, hub: base_model.HubSettings) -> Iterator[Problem]:
    """A warning if the decoder of previews is not available: the run would show none."""
    if not options.validation.validation_preview or options.validation.validation_disable or not spec.latents.preview_decoder:
        return
    found = base_model.check_access("validation_preview", spec.latents.preview_decoder, None, hub)
    if found is not None:
        hint = found.hint or "training continues without previews"
        yield Problem.warning("validation_preview", "decoder_" + found.code, found.message, got=spec.latents.preview_decoder, hint=hint)


def _folder_problems(options: TrainingOptions, dataloader: Dataloader | None) -> Iterator[Problem]:
    """Whether the run can write to its folders."""
    refused: list[Path] = []
    for option, path in written_folders(options, dataloader).items():
        if any(path.is_relative_to(above) for above in refused):
            continue
        folder, existing = str(path), nearest_existing(path)
        if not is_folder(existing):
            yield Problem.error(
                option, "not_a_folder", f"{existing} is a file, so {folder} cannot be created.", got=folder, expected="a folder"
            )
        elif not os.access(existing, os.W_OK | os.X_OK):
            refused.append(path)
            message = f"{folder} is not writable: this account may not write in {existing}."
            yield Problem.error(option, "not_writable", message, got=folder, expected="a writable folder")


def _data_is_safe(options: TrainingOptions, dataloader: Dataloader | None) -> Iterator[Problem]:
    """The images that a run generates must not lie among those that it reads: they would be trained on."""
    output_dir = Path(os.path.realpath(options.run.output_dir))
    for images in dataloader.sets_of_images if dataloader else ():
        if Path(images.place).is_absolute() and output_dir.is_relative_to(os.path.realpath(images.place)):
            message = f"output_dir lies in {images.place}, which dataset {images.id} reads: generated images would be trained on."
            yield Problem.error("output_dir", "among_images", message, got=str(output_dir), expected="a folder outside the images")


def expected_device(variables: Mapping[str, str], platform: str = sys.platform) -> str:
    """Returns the type of the device that the engine will choose: an NVIDIA GPU, the GPU of a Mac or the CPU."""
    if visible_gpus(variables):
        return "cuda"
    return "mps" if platform == "darwin" else "cpu"


def _tracker_notes(options: TrainingOptions, variables: Mapping[str, str]) -> Iterator[Problem]:
    if "wandb" in parse_trackers(options.reporting.report_to) and not has_wandb_login(variables):
        folder = Path(options.run.output_dir, options.reporting.logging_dir)
        message = f"There is no login for Weights & Biases: the run is logged offline into {folder}."
        yield Problem.note("report_to", "logged_offline", message, got="wandb", hint="run wandb login first, or wandb sync afterwards")


def _process_problems(options: TrainingOptions, home: Home, variables: Mapping[str, str], rule: MachineRule) -> Iterator[Problem]:
    path, machines = options.distributed.accelerate_config, ONE_MACHINE
    try:
        file = AccelerateFile.of(path)
        machines = file.machines if file else Machines.of(options.distributed)
        launch_command(home.root, options.distributed.num_processes, file, variables)
    except UnreadableAccelerateConfig as error:
        yield Problem.error("accelerate_config", "unreadable", f"{error}.", got=path, expected="a file that `accelerate config` wrote")
    if refusal := rule.refusal(machines):
        named = "accelerate_config" if path else "num_machines"
        yield Problem.error(named, "private_network", refusal, got=machines.count, expected="one machine", hint=rule.hint)
    sharing = process_count(options)
    yield from group_problems(options, sharing)
    yield from sharing_problems(options, sharing)
    gpus, processes = visible_gpus(variables), options.distributed.num_processes
    if gpus and processes > gpus and not path:
        message = f"num_processes={processes}, and {gpus} GPU{'s are' if gpus > 1 else ' is'} visible."
        yield Problem.error("num_processes", "too_few_gpus", message, got=processes, expected=f"at most {gpus}")


def _speed_notes(options: TrainingOptions, variables: Mapping[str, str], cpu_info: Path = CPU_INFO) -> Iterator[Problem]:
    """A note for bfloat16 on a CPU without instructions for it, where it takes about 20 times as long as float32."""
    if options.precision.mixed_precision != "bf16" or visible_gpus(variables):
        return
    try:
        flags = set(cpu_info.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return
    if not flags.intersection(FAST_BF16):
        message = "There is no GPU, and this processor is slow at bfloat16."
        yield Problem.note("mixed_precision", "slow_on_this_cpu", message, got="bf16", hint="mixed_precision=no computes in float32")
