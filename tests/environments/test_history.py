"""Revisions: listed, compared, brought back, also those of deleted environments."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from environments import history, services
from environments.create.plan import NewEnvironment
from environments.errors import EnvironmentNotFound, EnvironmentProblems, RevisionNotFound
from environments.models import Environment, Revision

pytestmark = pytest.mark.django_db


def make(name: str = "demo") -> Environment:
    return services.create_environment(NewEnvironment(name, "pixart_sigma", model_type="lora", lora_type="lycoris"), actor="test")


def update(**values: Any) -> None:
    services.update_environment("demo", config={**services.find("demo").config, **values}, actor="test")


def files(home: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in sorted((home / "config" / "demo").iterdir())}


def test_revisions_are_listed_newest_first(home: Path) -> None:
    make()
    update(seed=5)
    assert [(one.number, one.action) for one in history.revisions("demo")] == [(2, "updated"), (1, "created")]


def test_an_edit_by_hand_is_in_the_list_that_follows_it(home: Path) -> None:
    make()
    path = home / "config" / "demo" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"--seed": 9}))
    assert history.revisions("demo")[0].action == "hand_edited"


def test_a_comparison_names_options_and_lines_that_differ(home: Path) -> None:
    make()
    update(seed=5, learning_rate=3e-5)
    sets = json.loads((home / "config" / "demo" / "multidatabackend.json").read_text())
    services.write_datasets_file("demo", [sets[0] | {"repeats": 3}, *sets[1:]], actor="test")
    found = history.compare("demo", 1, 3)
    assert {one.option for one in found.changed} == {"seed", "learning_rate"}
    assert any(line.startswith("+") and '"repeats": 3' in line for line in found.datasets) and found.adapter == ()
    assert (history.compare("demo").older.number, history.compare("demo").newer.number) == (2, 3)
    assert history.compare("demo", 3, 3).changed == ()


def test_a_comparison_of_long_texts_ends_soon_and_says_where(home: Path) -> None:
    make()
    lines = [["a\n", "b\n"][(number * number) % 7 % 2] + f"{number % 40}\n" for number in range(50_000)]
    for text in ("".join(lines), "".join(reversed(lines))):
        Revision.objects.create(
            environment_name="demo", number=Revision.objects.count() + 1, action="updated", actor="test", datasets_text=text
        )
    began = time.process_time()
    assert history.compare("demo", 2, 3).datasets[-1] == history.CUT
    assert time.process_time() - began < 20  # without the bound it takes hours


def test_an_environment_is_brought_back_with_its_files(home: Path) -> None:
    make()
    before = files(home)
    update(seed=5)
    services.write_adapter_file("demo", {"algo": "lora", "multiplier": 1.0, "linear_dim": 4, "linear_alpha": 1}, actor="test")
    services.write_datasets_file("demo", [before["multidatabackend.json"][0] | {"repeats": 3}], actor="test")
    assert files(home) != before
    restored = history.restore("demo", 1, actor="test")
    assert files(home) == before and restored.left_out == ()
    assert history.revisions("demo")[0].action == "restored"
    history.restore("demo", 4, actor="test")
    assert files(home)["lycoris_config.json"]["algo"] == "lora"
    assert files(home)["multidatabackend.json"][0]["repeats"] == 3


def test_a_deleted_environment_is_brought_back_with_its_files(home: Path) -> None:
    make()
    update(seed=5)
    before = files(home)
    services.delete_environment("demo", actor="test")
    assert not (home / "config" / "demo").exists()
    newest = history.revisions("demo")[0]
    assert newest.action == "deleted"
    history.restore("demo", newest.number, actor="test")
    assert files(home) == before
    assert services.find("demo").config["seed"] == 5


def test_stored_secrets_stay_and_lost_ones_are_named(home: Path) -> None:
    make()
    hook = '[{"webhook_type": "raw", "callback_url": "https://example.org/secret-path"}]'
    update(webhook_config=hook)
    update(seed=5)
    assert history.restore("demo", 2, actor="test").left_out == ()
    services.delete_environment("demo", actor="test")
    restored = history.restore("demo", 3, actor="test")
    assert restored.left_out == ("webhook_config",) and "webhook_config" not in restored.environment.config


def test_a_revision_with_options_that_are_not_valid_is_refused(home: Path) -> None:
    make()
    Revision.objects.create(environment_name="demo", number=2, action="updated", actor="test", config={"model_family": "none", "seed": "x"})
    before = files(home)
    with pytest.raises(EnvironmentProblems):
        history.restore("demo", 2, actor="test")
    assert files(home) == before and history.revisions("demo")[0].number == 2


def test_an_unusable_file_is_kept_in_the_revision_that_replaces_it(home: Path) -> None:
    make()
    (home / "config" / "demo" / "config.json").write_text('{"--seed": oops')
    history.restore("demo", 1, actor="test")
    assert history.revisions("demo")[0].replaced_text == '{"--seed": oops'
    assert services.find("demo").file_problems == []


@pytest.mark.parametrize("number", [0, 7])
def test_a_revision_that_does_not_exist_is_named(home: Path, number: int) -> None:
    make()
    with pytest.raises(RevisionNotFound):
        history.restore("demo", number, actor="test")
    with pytest.raises(EnvironmentNotFound):
        history.revisions("nothing")


def test_a_refused_adapter_file_keeps_the_datasets_file_as_it_is(home: Path) -> None:
    make()
    sets = json.loads((home / "config" / "demo" / "multidatabackend.json").read_text())
    (home / "mine.json").write_text((home / "config" / "demo" / "lycoris_config.json").read_text())
    update(lycoris_config="mine.json")
    (home / "mine.json").write_text('{"algo": "lora", "linear_dim": 4}')
    services.write_datasets_file("demo", [sets[0] | {"repeats": 3}, *sets[1:]], actor="test")
    before = files(home)
    with pytest.raises(EnvironmentProblems) as refused:
        history.restore("demo", 2, actor="test")
    assert refused.value.problems[0].code == "foreign_file" and files(home) == before


def test_a_list_of_large_revisions_reads_none_of_their_texts(home: Path) -> None:
    make()
    for number in range(2, 6):
        Revision.objects.create(environment_name="demo", number=number, action="updated", actor="test", datasets_text="x" * 1_000_000)
    assert all(one.get_deferred_fields() == set(history.CONTENTS) for one in history.revisions("demo"))


def test_a_datasets_file_that_belongs_to_somebody_else_is_not_replaced(home: Path) -> None:
    make()
    sets = home / "config" / "shared.json"
    sets.write_text((home / "config" / "demo" / "multidatabackend.json").read_text())
    update(data_backend_config="config/shared.json")
    services.delete_environment("demo", actor="test")
    sets.write_text('{"something": "else"}')
    with pytest.raises(EnvironmentProblems) as refused:
        history.restore("demo", 2, actor="test")
    assert refused.value.problems[0].code == "foreign_file" and sets.read_text() == '{"something": "else"}'
    assert not Environment.objects.exists()
