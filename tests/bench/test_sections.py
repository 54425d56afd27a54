"""The benchmarks' own code, on subjects so small that a test takes them."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.bench import compare, discovery, families, host, lokr, padding, page, plan, published, warm
from tests.bench.__main__ import ROOT, SECTIONS, quote_in_readme, write_page
from tests.bench.latency import latencies
from tests.bench.table import NOT_MEASURED, Table
from tests.helpers.browser import needs_browser, open_browser
from trainer_engine.config.families import specs

WRK = """Running 8s test @ http://127.0.0.1:8000/api/training/status
  Latency Distribution
     50%  830.00us
     75%    1.10ms
     90%    1.50ms
     99%    3.40ms
  9000 requests in 8.00s, 9.00MB read
"""


def test_the_percentiles_of_wrk_are_read_in_milliseconds() -> None:
    assert latencies(WRK) == pytest.approx({50: 0.83, 99: 3.4})


def test_operators_and_time_of_both_loops_are_measured_in_turn() -> None:
    table = Table()
    shallow = {"layers_per_block": 1, "rounds": 2, "steps": 1}
    unets = (
        host.of_network(published.NETWORKS["sd1x"], "full", **shallow),
        host.of_network(published.NETWORKS["sdxl"], "lora", transformer_layers_per_block=(1, 1, 1), **shallow),
    )
    for pair in (host.pixart(1, rounds=2, steps=1), host.flux(1, 1, rounds=2, steps=1), *unets):
        host.measure(table, pair)
    assert len(table.rows) == 8
    assert all("bare loop" in row.beside + row.value for row in table.rows)


def test_the_step_of_a_family_is_measured_beside_a_bare_loop() -> None:
    table = Table()
    families.measure_step(table, host.of_network(published.NETWORKS["flux"], "lora", num_layers=1, num_single_layers=1, rounds=2, steps=1))
    assert [row.aim for row in table.rows] == ["98 % or better", "2 % more or fewer"]
    count, bare = int(table.rows[1].value), int(table.rows[1].beside.split()[2])
    assert bare < count <= 1.02 * bare + 24


@pytest.mark.parametrize(("family", "stores_padding"), [("z_image", False), ("flux", True)])
def test_a_caption_in_its_cache_is_weighed_beside_its_states_without_padding(family: str, stores_padding: bool, tmp_path: Path) -> None:
    found = families.cached_caption(family, tmp_path)
    longer = families.cached_caption(family, tmp_path / "longer", caption=f"{families.CAPTION}, a dog and a cat")
    assert found.tokens < longer.tokens and found.unpadded < longer.unpadded
    assert (found.bytes < longer.bytes) is not stores_padding
    assert found.bytes > (2 if stores_padding else 0.9) * found.unpadded


def test_every_family_has_a_network_and_a_caption_to_measure(tmp_path: Path) -> None:
    assert set(specs()) == set(published.NETWORKS)
    for family in specs():
        found = families.cached_caption(family, tmp_path / family)
        assert found.tokens > 20 and found.bytes > 0.4 * found.unpadded > 0, family


@pytest.mark.slow
def test_a_run_of_a_small_model_is_timed_to_its_first_step(tmp_path: Path) -> None:
    assert 0 < families.seconds_to_first_step("sd3", tmp_path) < 300


@pytest.mark.parametrize("bypass", [True, False])
def test_lokr_takes_no_more_operators_than_the_library_in_a_bare_loop(bypass: bool) -> None:
    table = Table()
    with lokr.adapter_file("pixart_sigma", bypass) as adapter:
        host.measure(table, lokr.pixart(adapter, "LoKr", 1, rounds=1, steps=1), lokr.SECTION)
    with lokr.adapter_file("flux", bypass) as adapter:
        host.measure(table, lokr.flux(adapter, "LoKr", 1, 1, rounds=1, steps=1), lokr.SECTION)
    counts = [(int(row.value), int(row.beside.split()[2])) for row in table.rows if row.figure.startswith("operators")]
    assert len(counts) == 2 and all(row.section == "lokr" for row in table.rows)
    assert all(engine <= 1.02 * bare for engine, bare in counts)
    assert bypass or all(engine < 0.95 * bare for engine, bare in counts)


def test_every_operator_that_the_adapter_and_the_optimizer_add_is_named() -> None:
    with lokr.adapter_file("pixart_sigma", bypass=True) as adapter:
        one, two = (lokr.added_operators(adapter, layers) for layers in (1, 2))
    assert one.keys() == {"forward", "backward", "adamw_bf16", "torch-adamw"}
    assert two["forward"] == Counter({name: 2 * times for name, times in one["forward"].items()})
    assert one["torch-adamw"] == two["torch-adamw"], "fused: one launch for all tensors"
    assert lokr.in_words(Counter(mm=3, add=1)) == "4: 3 mm, 1 add"
    assert lokr.in_words(Counter({f"op{number}": 1000 for number in range(10)})).endswith(", 2,000 others")


def test_states_of_padding_are_compressed_the_better_the_more_they_are_alike() -> None:
    alike, varied = (padding.shares(padding.states(bias, layers=2, width=128)) for bias in (0.02, 3.0))
    assert alike.step < varied.step
    assert alike.packed < varied.packed < 1 and alike.differences < varied.differences < 1


def test_noise_is_not_compressed_and_equal_states_vanish() -> None:
    dice = torch.Generator().manual_seed(0)
    noise = torch.randn(padding.LENGTH, 128, generator=dice).bfloat16()
    assert padding.shares(noise).differences > 0.5
    assert padding.shares(noise[:1].repeat(padding.LENGTH, 1)).differences < 0.02


def test_the_plans_of_two_epochs_are_timed_and_weighed() -> None:
    assert set(plan.measure(samples=400, buckets=4)) == {"first", "next", "bytes"}
    assert sum(len(bucket) for bucket in plan.source_of(400, 4).buckets) == 400


def test_a_dataset_is_validated_twice_and_discovered_twice(tmp_path: Path) -> None:
    table = Table()
    discovery.measure(table, tmp_path, images=40, folders=3)
    assert [row.aim for row in table.rows] == ["under 8 s", "under 2 s", "no larger", "", ""]
    assert all("s of a processor" in row.value for row in table.rows if "memory" not in row.figure)


@pytest.mark.slow
def test_a_run_with_warm_caches_is_timed_to_its_first_step_and_resumed(tmp_path: Path) -> None:
    table = Table()
    warm.measure(table, tmp_path, images=12, folders=3)
    assert [row.aim for row in table.rows[:2]] == ["", "under 10 s"]
    stages = [row.figure for row in table.rows[2:]]
    assert stages[0] == "of it init_load_base_model" and stages[-1] == "of it the first batch and step"
    assert {"of it init_resume_checkpoint", "of it init_text_embed_cache", "of it init_vae_cache"} < set(stages)


def test_a_page_shows_a_step_with_the_first_number_that_is_as_far() -> None:
    written = [(1, 10.0), (2, 10.5), (3, 11.0), (4, 11.5)]
    shown = [(1, 10.1), (3, 11.2)]
    assert page.lags(written, shown) == pytest.approx([0.1, 0.7, 0.2])
    assert page.lags(written, []) == []


@needs_browser
@pytest.mark.slow
def test_the_memory_of_a_tab_is_measured_before_and_after_events(tmp_path: Path) -> None:
    table = Table()
    with open_browser() as browser:
        page.memory_of_a_tab(table, browser, tmp_path / "home", events=100)
    memory, nodes = table.rows
    assert memory.aim == "under 60 MB" and memory.value.endswith(" MB")
    assert all(int(number.replace(",", "")) > 100 for number in nodes.value.split(" and "))


def test_every_section_can_be_asked_for_by_its_name() -> None:
    assert {"host", "plan", "stall", "latency", "page", "warm"} <= set(SECTIONS)


def test_two_trees_are_compared_row_by_row() -> None:
    def figures(step: str, other: str) -> compare.Figures:
        return compare.figures_in(
            [
                {"section": "host", "figure": "step", "value": step},
                {"section": "host", "figure": other, "value": "1,024 bytes"},
                {"section": "host", "figure": "words", "value": "none"},
            ]
        )

    head, row, *others = compare.compared(
        [figures("2.0 ms", "gone"), figures("4 ms", "gone")], [figures("2.2 ms", "new"), figures("4 ms (3 to 5)", "new")]
    )
    assert head.startswith("| what | figure | before | now |")
    assert row == "| host | step | 3 ms | 3.1 ms | 105.0 % (100.0 to 110.0) |"
    assert others == ["not compared, before: host: gone", "not compared, now: host: new"]


def test_rows_are_compared_although_their_names_hold_what_was_measured() -> None:
    def figures(size: str, *seconds: str) -> compare.Figures:
        rows = [{"section": "saving", "figure": f"a checkpoint of {size} MB (9 steps)", "value": "1 s"}]
        return compare.figures_in([*rows, *({"section": "saving", "figure": "the same", "value": value} for value in seconds)])

    _, *rows = compare.compared([figures("2.3", "1 s", "4 s")], [figures("2.4", "2 s", "4 s")])
    assert [row.rpartition("|")[0].rpartition("| ")[2] for row in rows] == [
        "100.0 % (100.0 to 100.0) ",
        "200.0 % (200.0 to 200.0) ",
        "100.0 % (100.0 to 100.0) ",
    ]


def test_a_tree_is_measured_by_its_own_benchmarks(tmp_path: Path) -> None:
    bench = tmp_path / "tests" / "bench"
    bench.mkdir(parents=True)
    (bench / "__main__.py").write_text(
        "import json, pathlib, sys\n"
        "place = pathlib.Path('bench-output')\n"
        "place.mkdir()\n"
        "row = {'section': sys.argv[1], 'figure': 'its own', 'value': '12 ms'}\n"
        "(place / 'bench.json').write_text(json.dumps([row]))\n"
    )
    for folder in (tmp_path / "tests", bench):
        (folder / "__init__.py").touch()
    assert compare.measure(tmp_path, ["host"]) == {("host", "its own", 0): (12.0, "ms")}


def test_a_measured_table_replaces_the_page_and_the_rows_that_the_readme_quotes(tmp_path: Path) -> None:
    page, readme = (Path(shutil.copy(ROOT / name, tmp_path)) for name in ("docs/benchmarks.md", "README.md"))
    table = Table()
    table.add("server", "process start to first 200", "0.12 s", aim="under 2 s")
    table.add("server", "something new", "1")
    table.add("warm", "something later", "2")
    table.add("page", "needs Chromium", NOT_MEASURED)
    before = readme.read_text()
    write_page(table, page)
    quote_in_readme(table, readme)
    assert page.read_text().count("\n| server |") == 2
    [warm] = [line for line in page.read_text().splitlines() if line.startswith("| warm |")]
    assert "something later" in warm and page.read_text().index(warm) > page.read_text().index("| discovery |"), "a section keeps its place"
    others = [
        sorted(line for line in one.read_text().splitlines() if not line.startswith(("| server |", "| warm |")))
        for one in (ROOT / "docs/benchmarks.md", page)
    ]
    assert others[0] == others[1], "sections that were not measured, or could not be, keep their rows"
    quoted = "| server | process start to first 200 | 0.12 s | under 2 s |"
    assert quoted in page.read_text() and quoted in readme.read_text()
    assert "something new" not in readme.read_text()
    assert len(readme.read_text().splitlines()) == len(before.splitlines())


def test_every_row_that_the_readme_quotes_is_a_row_of_the_page() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    _, marked = (ROOT / "README.md").read_text().split("<!-- bench -->\n")
    quoted = marked.partition("<!-- /bench -->")[0].splitlines()
    assert len(quoted) == 7
    assert [row for row in quoted if row not in page] == []
