"""Completion for bash, zsh and fish: a few lines of shell, which ask ``simpletuner __complete`` for the words."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

COMMAND = "__complete"
BASH = """_simpletuner() {
    local IFS=$'\\n'
    COMPREPLY=($(simpletuner __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -o bashdefault -F _simpletuner simpletuner
"""
ZSH = """#compdef simpletuner
_simpletuner() {
    local -a found
    found=("${(@f)$(simpletuner __complete "${(@)words[2,$CURRENT]}" 2>/dev/null)}")
    if [[ -n "${found[1]}" ]]; then compadd -- "${found[@]}"; else _files; fi
}
compdef _simpletuner simpletuner
"""
FISH = """function __simpletuner_complete
    set -l words (commandline -opc) (commandline -ct)
    simpletuner __complete $words[2..-1] 2>/dev/null
end
complete -c simpletuner -a "(__simpletuner_complete)"
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
ENVIRONMENTS = frozenset({"NAME"})


def candidates(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """What the last of the words may become; nothing for a file, which the shell completes itself."""
    *before, current = words or [""]
    chosen, positions = parser, 0
    awaited: argparse.Action | None = None
    for word in before:
        if awaited is not None:
            awaited = None
        elif word.startswith("-"):
            option = next((one for one in chosen._actions if word in one.option_strings), None)
            awaited = option if option is not None and option.nargs != 0 else None
        else:
            subparsers = _subparsers(chosen)
            if subparsers is not None and word in subparsers.choices:
                chosen, positions = subparsers.choices[word], 0
            else:
                positions += 1
    return sorted(word for word in _words(chosen, awaited, positions, current) if word.startswith(current))


def _words(parser: argparse.ArgumentParser, awaited: argparse.Action | None, positions: int, current: str) -> Iterator[str]:
    if awaited is not None:
        yield from _values(awaited)
        return
    if current.startswith("-"):
        yield from (name for one in parser._actions for name in one.option_strings if one.help != argparse.SUPPRESS)
        return
    subparsers = _subparsers(parser)
    if subparsers is not None:
        yield from subparsers.choices
        return
    places = [one for one in parser._actions if not one.option_strings]
    if positions < len(places):
        yield from _values(places[positions])


def _subparsers(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[argparse.ArgumentParser] | None:
    return next((one for one in parser._actions if isinstance(one, argparse._SubParsersAction)), None)


def _values(action: argparse.Action) -> Iterator[str]:
    if action.choices is not None:
        yield from map(str, action.choices)
    elif action.metavar in ENVIRONMENTS or action.dest == "environment":
        yield from environment_names()
    elif action.dest in ("option", "unset", "key"):
        from trainer_engine.config.options import REGISTRY

        end = "=" if action.dest == "option" else ""
        yield from (f"{name}{end}" for name in REGISTRY)


def environment_names() -> list[str]:
    """The environments of the home, as folders."""
    from simpletuner_site.environment import read_command_environment

    config = read_command_environment().home / "config"
    return sorted(file.parent.name for file in config.glob("*/config.json"))
