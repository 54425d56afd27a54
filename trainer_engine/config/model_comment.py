"""The comment in the header of results (``modelspec_comment``): its text, and what its placeholders may name. No torch.

A placeholder of an environment variable may only name one that the server's operator has set for comments. Whoever writes a
configuration could otherwise read any variable of the server, keys included, from the files that a run writes and uploads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import read_document

OPTION = "modelspec_comment"
VARIABLE_PREFIX = "SIMPLETUNER_COMMENT_"
"""Beginning of the names of environment variables that a comment may contain."""
MOST_CHARACTERS = 10_000
FACTS = ("current_step", "current_epoch", "timestamp")
VARIABLE = re.compile(r"\{env:([^{}]*)\}")
PLACEHOLDER = re.compile(rf"\{{(env:[^{{}}]*|{'|'.join(FACTS)})\}}")


def comment_of(text: str | None) -> str:
    """Returns the comment of an option's text, the strings of a list on a line each. Raises ValueError if it is a list of anything else."""
    if not text or not text.startswith("["):
        return text or ""
    try:
        lines = read_document(text)
    except ValueError:
        return text
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError("it is a list that does not hold strings alone")
    return "\n".join(lines)


def comment_problems(text: str | None) -> Iterator[Problem]:
    """Yields an error for a comment that is no text, is too long, or names a variable that it may not contain."""
    expected = f"a text of at most {MOST_CHARACTERS} characters, or a list of lines"
    try:
        comment = comment_of(text)
    except ValueError as error:
        yield Problem.error(OPTION, "not_text", f"{OPTION} is no text: {error}.", expected=expected)
        return
    if len(comment) > MOST_CHARACTERS:
        message = f"{OPTION} has {len(comment)} characters."
        yield Problem.error(OPTION, "too_long", message, got=len(comment), expected=expected)
    for name in dict.fromkeys(VARIABLE.findall(comment)):
        if not is_for_comments(name):
            message = f"A comment may not contain the environment variable {name[:100]!r}: it could be a secret of the server."
            hint = f"set a variable of the server whose name begins with {VARIABLE_PREFIX}, or write the text into the comment"
            got = f"{{env:{name[:100]}}}"
            yield Problem.error(OPTION, "closed_variable", message, got=got, expected=f"{{env:{VARIABLE_PREFIX}...}}", hint=hint)


def is_for_comments(variable: str) -> bool:
    """Whether a comment may contain the variable of this name."""
    return variable.startswith(VARIABLE_PREFIX) and variable.isidentifier() and variable.isascii()


def missing_variables(comment: str, variables: Mapping[str, str]) -> list[str]:
    """Returns the names of variables in a comment that are not set."""
    return sorted({name for name in VARIABLE.findall(comment) if name not in variables})


def filled(comment: str, facts: Mapping[str, str], variables: Mapping[str, str]) -> str:
    """Returns the comment with the values of its placeholders. Missing variables are empty. Other braces stay as they are.

    ``facts``: a value for each of ``FACTS``. ``variables``: those that are open to comments.
    """

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        return variables.get(name.removeprefix("env:"), "") if name.startswith("env:") else facts[name]

    text = PLACEHOLDER.sub(value_of, comment)
    return text.encode("utf-8", "replace").decode("utf-8")
