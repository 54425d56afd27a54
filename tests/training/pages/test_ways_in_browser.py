"""People's ways through the pages in a real browser: a first LoRA, the same from the admin, and every button of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.helpers.browser import Tab, needs_browser, open_browser, open_tab, texts
from tests.helpers.live_server import LiveServer, free_port
from tests.helpers.models import tiny_pixart
from tests.helpers.pictures import generate_images
from tests.helpers.served_runs import ENDLESS, ServedRuns
from trainer_engine.contract.checkpoint_files import verify

pytestmark = [pytest.mark.browser, needs_browser]
IMAGES = 30
FOR_A_PROCESSOR = {
    "resolution": "64",
    "mixed_precision": "no",
    "optimizer": "torch-adamw",
    "lr_warmup_steps": "0",
    "checkpoint_step_interval": "4",
    "validation_step_interval": "4",
    "validation_resolution": "64x64",
    "validation_num_inference_steps": "1",
}
"""What a processor computes quickly, for the fields of the admin."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("ways"), free_port()).start() as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


def choose_images(page: Page, server: LiveServer, name: str, own: Path) -> None:
    """Type a name into ``/new`` and send 30 images, one file that is none and one that is too large."""
    images = generate_images(own, count=IMAGES)
    (own / "notes.png").write_text("no image")
    with (own / "huge.png").open("wb") as huge:
        huge.truncate(65_000_000)
    page.fill("#id_name", name)
    page.fill("#id_trigger_word", "shp")
    page.set_input_files("[data-files]", [*images, own / "notes.png", own / "huge.png"])
    expect(page.locator("[data-said]")).to_contain_text(f"are in datasets/{name} now")
    assert sorted(one.split(" ")[0] for one in texts(page.locator("[data-refused] li"))) == ["'notes.png'", "huge.png:"]
    expect(page.locator("#id_images")).to_have_value(f"datasets/{name}")
    assert len(list((server.home / "datasets" / name).iterdir())) == IMAGES


def start_first_lora(page: Page) -> None:
    """Choose the small model and start."""
    page.click("#more summary")
    page.select_option("#id_model", "pixart_sigma/900M-1024-v0.6")
    page.select_option("#id_memory", "0")
    for id, value in {"id_weights": str(tiny_pixart()), "id_resolution": "64", "id_steps": "8"}.items():
        page.fill(f"#{id}", value)


def look_at_the_images(page: Page) -> None:
    """The image of the base model lies over the newest one, and a slider says how much of it."""
    page.click("#compare-1 summary")
    page.wait_for_load_state("networkidle")
    assert page.evaluate("[...document.querySelectorAll('.compare img')].map((one) => one.naturalWidth)") == [64, 64]
    page.fill("#split-1", "20")
    expect(page.locator(".compare .above")).to_have_css("clip-path", "inset(0px 80% 0px 0px)")
    assert texts(page.locator("[data-part=images] .prompt")) == ["a photograph of shp"]


def export_and_download(page: Page, server: LiveServer, name: str) -> None:
    """Export for ComfyUI, and download the file that the page offers then."""
    page.click("[id^=press-][id$=-export]")
    file = f"comfyui/{name}-checkpoint-8.safetensors"
    link = page.locator(f".downloads a:text-is('{file}')")
    with page.expect_download() as download:
        link.click()
    assert Path(download.value.path()).read_bytes() == (server.home / "output" / name / file).read_bytes()


@pytest.mark.parametrize("width", [400, 1400])
def test_a_stranger_trains_a_lora_on_thirty_images(width: int, server: LiveServer, browser: Browser, tmp_path: Path) -> None:
    name = f"shapes-{width}"
    with open_tab(browser, width) as tab:
        page = tab.page
        page.goto(f"{server.url}/")
        page.click("header >> text=New LoRA")
        choose_images(page, server, name, tmp_path)
        start_first_lora(page)
        tab.check_page("new")
        page.click("[value=start]")
        page.wait_for_url("**/runs/*")
        expect(page.locator(".state")).to_have_text("completed")
        expect(page.locator("#live")).to_have_text("ended")
        look_at_the_images(page)
        tab.check_page("first-run")
        export_and_download(page, server, name)
        tab.check_quiet(server.url)


@pytest.fixture(scope="module")
def prepared(server: LiveServer) -> ServedRuns:
    """An environment ``buttons`` whose runs train until they are ended."""
    options = {
        "pretrained_model_name_or_path": str(tiny_pixart()),
        "resolution": 64,
        "mixed_precision": "no",
        "optimizer": "torch-adamw",
        "max_train_steps": ENDLESS,
        "checkpoint_step_interval": ENDLESS,
        "validation_step_interval": ENDLESS,
        "validation_num_inference_steps": 1,
        "validation_resolution": "64x64",
        "validation_prompt": "a shape",
    }
    generate_images(server.home / "datasets/few", count=4)
    wanted = {"name": "buttons", "model_family": "pixart_sigma", "model_type": "lora", "images": "datasets/few", "options": options}
    server.post("/api/configs/environments", json=wanted).raise_for_status()
    return ServedRuns(server, server.home / "output")


@dataclass
class Watched:
    """The page of a run in a tab, and the run behind it."""

    tab: Tab
    runs: ServedRuns
    number: int
    job: str

    def open(self) -> None:
        self.tab.page.goto(f"{self.runs.server.url}/runs/{self.number}")

    def press(self, button: str, message: str) -> None:
        """Press a button on the run's page, and read what the next page says about it."""
        self.tab.page.click(f"#press-{self.number}-{button}")
        expect(self.tab.page.locator(".message.success")).to_contain_text(message)

    def cancel(self) -> None:
        self.open()
        self.tab.page.click(f"#open-{self.number}-cancel")
        self.press("cancel", f"Run {self.number} was cancelled.")
        assert self.runs.wait_for_end(self.job)["status"] == "cancelled"


def of_page(tab: Tab, runs: ServedRuns) -> Watched:
    """The run whose page is open."""
    tab.page.wait_for_url("**/runs/*")
    return Watched(tab, runs, int(tab.page.url.rsplit("/", 1)[1]), str(tab.page.get_attribute("body", "data-job")))


def start(tab: Tab, runs: ServedRuns) -> Watched:
    """Start the environment on its page."""
    tab.page.goto(f"{runs.server.url}/environments/buttons")
    tab.page.click("[value=start]")
    return of_page(tab, runs)


def test_every_button_of_a_run_acts(prepared: ServedRuns, browser: Browser) -> None:
    runs = prepared
    with open_tab(browser, 400) as tab:
        page = tab.page
        first = start(tab, runs)
        runs.wait_for_step(first.job, 2)
        first.press("sample", "Validation images are generated after the current step.")
        expect(page.locator(".pair figcaption", has_text="step ").first).to_be_visible()
        first.press("save", "A checkpoint is saved after the current step.")
        expect(page.locator("[data-part=checkpoints] tbody tr")).to_have_count(1)
        saved = runs.wait_for_checkpoint(first.job)
        assert verify(runs.output("buttons") / saved) == []

        second, third = start(tab, runs), start(tab, runs)
        expect(page.locator("[data-part=head]")).to_contain_text(f"Waits for run {first.number}")
        third.press("go-first", f"Run {third.number} is the next to start.")
        assert [runs.job(one.job)["job_info"]["queue_position"] for one in (third, second)] == [1, 2]
        second.open()
        second.press("dequeue", f"Run {second.number} is taken out of the queue.")
        assert runs.wait_for_end(second.job)["status"] == "cancelled"

        first.open()
        first.press("stop", "finishes its step, saves a checkpoint and ends.")
        expect(page.locator("[data-part=head] .state")).to_have_text("stopped")
        reached = runs.step(first.job)
        assert verify(runs.output("buttons") / f"checkpoint-{reached}") == []
        third.cancel()

        first.open()
        first.press("go-on", f"goes on from the newest checkpoint of run {first.number}")
        onward = of_page(tab, runs)
        runs.wait_for_step(onward.job, reached + 1)
        assert runs.steps(onward.job)[0] == reached + 1
        onward.cancel()

        first.open()
        page.click("text=Start again with changes")
        page.fill("#id_option_max_train_steps", "123456")
        page.click("[value=start]")
        changed = of_page(tab, runs)
        runs.wait_for_status(changed.job, "starting", "running")
        assert runs.job(changed.job)["config"]["--max_train_steps"] == 123456
        changed.cancel()
        tab.check_quiet(runs.server.url)


def in_the_admin(page: Page, changes: dict[str, str]) -> None:
    """Fill in options of an environment's page, whose groups are closed at first."""
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    for option, value in changes.items():
        field = page.locator(f"#id_option_{option}")
        if field.evaluate("(one) => one.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(value)


@pytest.mark.parametrize("width", [400, 1400])
def test_the_admin_alone_leads_from_an_example_to_an_image(width: int, server: LiveServer, browser: Browser) -> None:
    name = f"from-admin-{width}"
    generate_images(server.home / "datasets" / name, count=IMAGES)
    with open_tab(browser, width) as tab:
        page = tab.page
        page.goto(f"{server.url}/admin/environments/environment/add/")
        page.fill("#id_name", name)
        page.select_option("#id_example", "pixart_sigma_900m_full")
        page.select_option("#id_model_type", "lora")
        tab.check_page("admin-add")
        page.click("[name=_save]")
        page.wait_for_url("**/environment/*/change/")
        tab.check_page("admin-environment")
        datasets = json.loads(page.input_value("#id_datasets_text"))
        datasets[0] |= {"instance_data_dir": f"datasets/{name}", "resolution": 64, "resolution_type": "pixel"}
        page.fill("#id_datasets_text", json.dumps(datasets))
        in_the_admin(page, {"pretrained_model_name_or_path": str(tiny_pixart()), "max_train_steps": "4", **FOR_A_PROCESSOR})
        page.click("[value=check] >> nth=0")
        expect(page.locator(".messagelist")).to_contain_text(f"{name} can be started")
        page.click("[value=start] >> nth=0")
        page.wait_for_url("**/runs/*")
        page.get_by_role("link", name="Admin", exact=True).click()
        page.wait_for_url("**/admin/training/job/**")
        expect(page.locator(".field-status")).to_contain_text("completed")  # the page renews itself
        expect(page.locator("[data-goes-on]")).to_have_count(0)
        expect(page.locator(".field-grid img").first).not_to_have_js_property("naturalWidth", 0)
        tab.check_page("admin-run")
        tab.check_quiet(server.url)
