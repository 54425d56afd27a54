"""Checks of the adapters in ``init_lora`` and ``init_lora_ema``: their headers are read by the code that the engine uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from trainer_engine.config.adapters.file_header import AdapterHeader, UnusableAdapter, find_adapter, open_adapter, refuse_not_finite
from trainer_engine.config.adapters.fit import Shape, WantedAdapter, WantedModule, fit, wanted_lora
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.lycoris.config_file import LycorisConfig, parse_lycoris
from trainer_engine.config.lycoris.fit import wanted_lycoris, wanted_module
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.resuming.choice import SavedRun
from trainer_engine.contract.errors import Problem, errors_in
from trainer_engine.contract.files import read_small_json
from training.preflight.adapter import CLASS_MARKS, adapted_layers, of_class

OPTIONS = ("init_lora", "init_lora_ema")
MOST_READ_BYTES = 128 << 20
"""Largest file whose weights are checked for non-finite values; the engine checks larger ones."""


def init_problems(
    options: TrainingOptions, spec: FamilySpec, layers: Mapping[str, Shape] | None, saved: SavedRun | None
) -> Iterator[Problem]:
    """``layers`` maps the modules of the base model's network to (out, in, *kernel); None skips the checks that need them.

    ``saved`` is the checkpoint that the run resumes from, which wins over ``init_lora``.
    """
    values = options.as_values()
    for option in OPTIONS if options.model.model_type == "lora" else ():
        if values[option] and saved is not None:
            message = f"The run continues from {saved.folder}: the weights of {option} are not used again."
            hint = f"an empty resume_from_checkpoint starts from {option}"
            yield Problem.note(option, "no_effect", message, got=values[option], hint=hint)
        elif values[option]:
            yield from _problems_of(option, values[option], options, spec, layers)


def _problems_of(
    option: str, given: str, options: TrainingOptions, spec: FamilySpec, layers: Mapping[str, Shape] | None
) -> Iterator[Problem]:
    try:
        header = open_adapter(find_adapter(Path(given)))
        _check_fit(header, options, spec, layers)
        if header.path.stat().st_size <= MOST_READ_BYTES:
            refuse_not_finite(header)
    except UnusableAdapter as error:
        yield Problem.error(
            option, error.code, error.message, got=given, expected="an adapter of the kind that is trained", hint=error.hint
        )
    except OSError as error:
        yield Problem.error(option, "unreadable_file", f"{given} cannot be read: {error.strerror}.", got=given, expected="an adapter file")


def _check_fit(header: AdapterHeader, options: TrainingOptions, spec: FamilySpec, layers: Mapping[str, Shape] | None) -> None:
    """Raises UnusableAdapter."""
    wanted = _wanted(options, spec, layers) if layers else None
    if layers and wanted is not None:
        fit(header, wanted, layers, spec.key_prefixes)


def _wanted(options: TrainingOptions, spec: FamilySpec, layers: Mapping[str, Shape]) -> WantedAdapter | None:
    """The adapter that the engine would create; None if the options are wrong, which other checks report."""
    adapter = options.adapter
    if adapter.lora_type == "standard":
        modules = adapted_layers(options, spec, layers)
        alpha = adapter.lora_rank if adapter.lora_alpha is None else adapter.lora_alpha
        return wanted_lora(layers, modules, adapter.lora_rank, float(alpha), use_dora=adapter.use_dora) if modules else None
    try:
        document = read_small_json(adapter.lycoris_config)
    except OSError:
        return None
    config, problems = parse_lycoris(document, spec)
    return None if config is None or errors_in(problems) else _wanted_of_classes(config, layers)


def _wanted_of_classes(config: LycorisConfig, layers: Mapping[str, Shape]) -> WantedAdapter:
    """The wanted adapter, with the class of each layer judged by its name."""
    preset, overrides = config.preset, config.preset["module_algo_map"]
    by_name = preset["target_name"] or preset["exclude_name"] or preset["name_algo_map"]
    is_complete = not by_name and all(cls.endswith(tuple(CLASS_MARKS)) for cls in preset["target_module"])
    wanted: dict[str, WantedModule] = {}
    for cls in preset["target_module"]:
        for name, shape in of_class(cls, layers).items():
            module = wanted_module(shape, config, overrides.get(cls, {}))
            if module is not None:
                wanted.setdefault(name, module)
            else:
                is_complete = False
    return wanted_lycoris(wanted, config, is_complete=is_complete)
