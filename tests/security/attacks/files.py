"""Files of the person whose account the server has: read out, or written over."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from tests.security.target import Target

WORD = "s3cr3t-of-a-file"
PATTERN = {"algo": "lokr", "multiplier": 1, "linear_dim": 4, "linear_alpha": 1, "apply_preset": {"target_module": ["Attention"]}}
LYCORIS = {"model_type": "lora", "lora_type": "lycoris"}


def _put_adapter(target: Target, path: Path, text: str) -> None:
    name = target.environment(**LYCORIS, lycoris_config=str(path))
    body = PATTERN | {"apply_preset": {"target_module": ["Attention"], "exclude_name": [text]}}
    target.put(f"/api/configs/environments/{name}/lycoris", body)


def attack_writing_over_files(target: Target) -> list[str]:
    """The adapter's and the datasets' calls, pointed at files that are not theirs."""
    person, other = target.place / "person", target.environment()
    victims = {
        "a shell's start file": person / ".bashrc",
        "a text file": target.place / "victim.txt",
        "somebody's JSON": target.place / "victim.json",
        "the guard of the installation": person / "simpletuner/simpletuner_site/guard.py",
        "a shipped example": next((person / "simpletuner/environments/examples").rglob("*.json")),
        "another environment": target.server.home / f"config/{other}/config.json",
        "the datasets of another": target.server.home / f"config/{other}/multidatabackend.json",
    }
    through = []
    for what, path in victims.items():
        if not path.exists():
            path.write_text('{"private": "' + WORD + '"}')
            path.chmod(0o600)
        before, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
        _put_adapter(target, path, f"$(touch {target.canary('shell')})")
        name = target.environment()
        target.post(f"/api/configs/{name}/dataloader", json={"path": str(path)})
        target.put(f"/api/configs/{name}/datasets", [])
        if path.read_bytes() != before:
            through.append(f"{what} was overwritten")
            path.write_bytes(before)
        elif stat.S_IMODE(path.stat().st_mode) != mode:
            through.append(f"{what} has another mode")
            path.chmod(mode)
        for kept in path.parent.glob(f"{path.stem}.*{path.suffix}"):
            if kept != path and WORD in kept.read_text(errors="replace"):
                through.append(f"{what} was copied to {kept.name}")
    return through


def _everything_shown(target: Target, name: str) -> str:
    """All that the API and the admin show of an environment."""
    paths = [
        f"/api/configs/{name}",
        f"/api/configs/{name}/export",
        f"/api/configs/{name}/revisions",
        f"/api/configs/environments/{name}/lycoris",
    ]
    paths += [
        f"/api/configs/{name}/datasets",
        "/api/training/status",
        "/api/training/jobs",
        "/admin/environments/environment/",
        "/admin/training/job/",
    ]
    pages = [target.get(path).text for path in paths]
    for model in ("environments/environment", "environments/revision", "training/job"):
        listed = target.server.get(f"/admin/{model}/").text
        links = {
            part.split('"')[0]
            for part in listed.split('href="')[1:]
            if f"/admin/{model}/" in part.split('"')[0] and "/change/" in part.split('"')[0]
        }
        pages += [target.server.get(link.split("?")[0]).text for link in sorted(links)]
    return "\n".join(pages)


def attack_reading_files_out(target: Target) -> list[str]:
    """Histories, tokens and accounts of the home, named in options that the server reads and shows."""
    person = target.place / "person"
    (person / ".docker").mkdir(exist_ok=True)
    contents: dict[str, Any] = {
        ".bash_history": f"export TOKEN={WORD}\n",
        ".npmrc": f"//registry/:_authToken={WORD}\n",
        ".docker/config.json": json.dumps({"auths": {"x": {"auth": WORD}}}),
        "token.json": json.dumps({"access_token": WORD}),
        "account.json": json.dumps({"type": "service_account", "private_key": WORD}),
        "list.json": json.dumps([WORD]),
        "sets.json": json.dumps([{"id": "x", "password": WORD}]),
        "notes.txt": f"num_processes: {WORD}\n",
        "half.yaml": f"a: [{WORD}\n{WORD}: }}",
        "broken.json": '{"a": "' + WORD,
    }
    through = []
    for name, content in contents.items():
        path = person / name
        path.write_text(content)
        os.chmod(path, 0o600)
        for option, more in {
            "data_backend_config": {},
            "lycoris_config": LYCORIS,
            "user_prompt_library": {"validation_disable": "false"},
            "accelerate_config": {},
            "webhook_config": {},
            "publishing_config": {},
            "validation_adapter_config": {"validation_disable": "false"},
        }.items():
            how = {option: str(path), **more}
            environment = target.environment(**how)
            answers = [target.validate("read", **how).text, target.post("/api/training/start", data=target.form("read", **how)).text]
            shown = (
                _everything_shown(target, environment) if option in ("data_backend_config", "lycoris_config", "user_prompt_library") else ""
            )
            if any(WORD in text for text in (*answers, shown)):
                where = "an answer" if any(WORD in text for text in answers) else "what is shown"
                through.append(f"{option}={name} is read out by {where}")
            target.end_runs()
    return through


def attack_modes_of_own_files(target: Target) -> list[str]:
    """What the server keeps for itself is for its own account."""
    state = target.server.home / "state"
    paths = [state, *state.rglob("*")]
    open_to_others = [
        str(path.relative_to(state))
        for path in paths
        if not path.is_symlink() and path.stat().st_mode & 0o077 and not _is_below_private(path, state)
    ]
    return [f"others may look into state/{name}" for name in open_to_others[:5]]


def _is_below_private(path: Path, state: Path) -> bool:
    """A folder that nobody else may enter hides what lies in it."""
    return any(above.stat().st_mode & 0o077 == 0 for above in path.parents if above == state or state in above.parents)
