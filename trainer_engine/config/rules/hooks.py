"""Rules of hooks: the templates of their commands, and webhooks. A run checks whether programs exist when it starts them."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.option import holds_json
from trainer_engine.config.options.hooks import EXTERNAL, EXTERNAL_SCRIPT, SCRIPT_OPTIONS
from trainer_engine.config.options.placeholders import known_placeholders
from trainer_engine.config.options.registry import REGISTRY, Rule, Values
from trainer_engine.config.webhooks import OPTION, parse_webhook_text
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.hooks import BadTemplate, Template


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
        message = f"validation_disable turns validations off: {EXTERNAL_SCRIPT} has no effect."
        yield Problem.note(EXTERNAL_SCRIPT, "no_effect", message, got=values[EXTERNAL_SCRIPT], hint="set validation_disable to false")
    if is_external:
        return
    for name in (EXTERNAL_SCRIPT, "validation_external_background"):
        if values[name] != REGISTRY[name].default:
            message = f"{name} has no effect with validation_method={values['validation_method']}."
            yield Problem.note(name, "no_effect", message, got=values[name], hint=f"set validation_method={EXTERNAL}")


def webhooks_are_valid(values: Values) -> Iterator[Problem]:
    text = str(values[OPTION])
    if values["webhook_reporting_interval"] and not text.strip():
        message = "webhook_reporting_interval has no effect without webhook_config."
        yield Problem.note("webhook_reporting_interval", "no_effect", message, got=values["webhook_reporting_interval"])
    if holds_json(text):
        yield from parse_webhook_text(text)[1]
    elif "://" in text:
        message = "webhook_config is a URL, but it must be a list of webhooks, each with its type."
        hint = '[{"webhook_type": "raw", "callback_url": "https://…"}]'
        yield Problem.error(OPTION, "not_json", message, expected="JSON in a string, or the path of a JSON file", hint=hint)


RULES: tuple[Rule, ...] = (
    scripts_are_templates,
    external_validation_has_a_script,
    webhooks_are_valid,
)
