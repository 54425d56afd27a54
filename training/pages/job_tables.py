"""What the admin shows of a run: the options that were asked for as tables, and the loss before there is a picture of it."""

from __future__ import annotations

import json

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from trainer_engine.contract.files import is_file
from training.api import representations, run_overview
from training.models import Job
from training.pages.buttons import page_of
from training.pages.details import chosen_options, previous_run
from training.pages.numbers import number_text, sparkline
from training.pages.rows import losses

TABLES = (
    '<table class="run-options"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>'
    '<details><summary>Every option</summary><table class="run-options"><tbody>{}</tbody></table></details>'
)
SPARK = (
    '<svg class="run-spark" viewBox="0 0 120 32" preserveAspectRatio="none" role="img" aria-label="{0}"><polyline points="{1}" fill="none" '
    'stroke="currentColor" vector-effect="non-scaling-stroke"/></svg><div>{0} · <a href="{2}">live curves</a></div>'
)


def option_tables(job: Job) -> SafeString:
    """The options that differ from the defaults or from the previous run, and below them all of them."""
    previous = previous_run(job)
    before = f"run {previous.number}" if previous else "previous run"
    head = format_html_join("", "<th>{}</th>", ((word,) for word in ("option", "value", "default", before)))
    rows = ((one.name, one.value, one.default, one.previous) for one in chosen_options(job, previous))
    body = format_html_join("", "<tr><th><code>{}</code></th><td>{}</td><td>{}</td><td>{}</td></tr>", rows)
    every = ((name, json.dumps(value, ensure_ascii=False)) for name, value in sorted(representations.shown_options(job).items()))
    return format_html(TABLES, head, body, format_html_join("", "<tr><th><code>{}</code></th><td>{}</td></tr>", every))


def curves(job: Job) -> SafeString:
    """The picture of the curves; before it is made, at the first validation or checkpoint, the loss so far."""
    found = [] if is_file(job.folder.curves) else losses(job)
    if len(found) < 2:
        return run_overview.curves(job)
    return format_html(SPARK, f"Loss from {number_text(found[0])} to {number_text(found[-1])}", sparkline(found), page_of(job))
