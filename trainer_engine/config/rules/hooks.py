"""Whether the templates of scripts can be used at all; whether their programs are there is looked up where they would run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.options.hooks import DISK_LOW, EXTERNAL, EXTERNAL_SCRIPT, SCRIPT_OPTIONS
from trainer_engine.config.options.placeholders import known_placeholders
from trainer_engine.config.options.registry import REGISTRY
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.hooks.template import BadTemplate, Template

Values = Mapping[str, Any]


def scripts_are_templates(values: Values) -> Iterator[Problem]:
    for name in SCRIPT_OPTIONS:
        if not values[name].strip():
            continue
        try:
            Template.parse(values[name], known_placeholders())
        except BadTemplate as error:
            expected = "a program and its arguments, with {placeholders}"
            yield Problem.error(name, error.code, f"{name} {error}.", got=values[name], expected=expected, hint=error.hint)


def external_validation_has_a_script(values: Values) -> Iterator[Problem]:
    script, is_external = values[EXTERNAL_SCRIPT].strip(), values["validation_method"] == EXTERNAL
    if is_external and not script:
        message = f"validation_method={EXTERNAL} needs {EXTERNAL_SCRIPT}."
        hint = "name a program and its arguments: '/opt/hooks/validate.py {local_checkpoint_path}'"
        yield Problem.error(EXTERNAL_SCRIPT, "missing", message, expected="a program and its arguments", hint=hint)
    if is_external and values["validation_disable"]:
        message = f"validation_disable leaves every validation out: {EXTERNAL_SCRIPT} has no effect."
        yield Problem.note(EXTERNAL_SCRIPT, "no_effect", message, got=values[EXTERNAL_SCRIPT], hint="set validation_disable to false")
    if is_external:
        return
    for name in (EXTERNAL_SCRIPT, "validation_external_background"):
        if values[name] != REGISTRY[name].default:
            message = f"{name} has no effect with validation_method={values['validation_method']}."
            yield Problem.note(name, "no_effect", message, got=values[name], hint=f"set validation_method={EXTERNAL}")


def low_disk_has_a_script(values: Values) -> Iterator[Problem]:
    script, action = values[DISK_LOW].strip(), values["disk_low_action"]
    if action == "script" and not script:
        hint = "name a program and its arguments: '/opt/hooks/tidy.sh {global_step}'"
        message = f"disk_low_action=script needs {DISK_LOW}."
        yield Problem.error(DISK_LOW, "missing", message, expected="a program and its arguments", hint=hint)
    if script and action != "script":
        message = f"{DISK_LOW} has no effect with disk_low_action={action}."
        yield Problem.note(DISK_LOW, "no_effect", message, got=values[DISK_LOW], hint="set disk_low_action=script")


SCRIPT_RULES = (scripts_are_templates, external_validation_has_a_script, low_disk_has_a_script)
