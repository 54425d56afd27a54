"""``simpletuner demo``: from an empty folder to a trained model and a report of the run, using only the API."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from rich.console import Console

from simpletuner_site.demo import api_steps
from simpletuner_site.demo.api_steps import StepFailed
from simpletuner_site.demo.configuration import STEPS
from simpletuner_site.demo.folders import REPOSITORY, DemoFolders
from simpletuner_site.demo.pictures import generate_images
from simpletuner_site.demo.processes import ModelNotMade, ServerFailed, make_base_model, running_server
from simpletuner_site.train.run_screen import RunScreen

MADE_BY_DEMO = "made-by-demo"


class NotOurFolder(Exception):
    """The folder holds files that the demo did not create."""


@contextmanager
def stage(console: Console, title: str) -> Iterator[None]:
    """Print what is done and how long it took."""
    began = time.monotonic()
    with console.status(f"{title} …"):
        yield
    console.print(f"[green]✓[/] {title}  [dim]{time.monotonic() - began:.1f} s[/]", highlight=False)


def run(folder: Path, *, keep: bool = False) -> int:
    """The exit code: 0 when the run completed."""
    console = Console()
    folders = DemoFolders(folder.absolute())
    try:
        empty(folders.root)
        prepare(console, folders)
        with running_server(folders, keep=keep) as (client, server_pid):
            console.print(f"[green]✓[/] The server answers on {client.base_url}", highlight=False)
            job_id = walk(console, client, folders)
            show_results(console, client, folders, job_id)
            number = api_steps.run_number(client, job_id)
            say_goodbye(console, folders, server_pid if keep else None, f"{str(client.base_url).rstrip('/')}/runs/{number}")
    except (NotOurFolder, ModelNotMade, ServerFailed, StepFailed, httpx.HTTPError) as error:
        console.print(f"[red]✗[/] {error}", highlight=False, markup=True)
        return 1
    except KeyboardInterrupt:
        console.print("Ended by Ctrl-C.")
        return 130
    return 0


def empty(root: Path) -> None:
    """Empty the folder if a demo created it. Raises NotOurFolder otherwise."""
    if root.exists() and any(root.iterdir()):
        if not (root / MADE_BY_DEMO).is_file():
            raise NotOurFolder(f"{root} holds other files; choose an empty folder with --output")
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / MADE_BY_DEMO).write_text("The demo empties this folder when it runs again.\n")


def prepare(console: Console, folders: DemoFolders) -> None:
    with stage(console, f"Create a small PixArt Sigma in place of {REPOSITORY}"):
        make_base_model(folders)
    with stage(console, f"Generate training images in {folders.pictures}"):
        generate_images(folders.pictures)


def walk(console: Console, client: httpx.Client, folders: DemoFolders) -> str:
    """The tutorial's steps 1 to 7; the job's id."""
    with stage(console, "1. Create the environment"):
        api_steps.create_environment(client)
    with stage(console, "2. Describe the dataset and the validation prompts"):
        api_steps.describe_datasets(folders)
    with stage(console, "3. Set the hyperparameters"):
        api_steps.set_hyperparameters(client, folders)
    with stage(console, "4. Activate the environment"):
        api_steps.activate(client)
    with stage(console, "5. Validate"):
        api_steps.submit(client, "validate")
    with stage(console, f"6. Start a run of {STEPS} steps"):
        job_id = str(api_steps.submit(client, "start")["job_id"])
    console.print(f"7. Watch job {job_id}", highlight=False)
    with RunScreen(console) as screen:
        for event in api_steps.stream_events(client, job_id):
            screen.show(event)
    status = api_steps.finished_job(client)
    if status["status"] != "completed":
        raise StepFailed(f"The run ended as {status['status']}: {status['job_info']}\nServer's log: {folders.server_log}")
    return job_id


def show_results(console: Console, client: httpx.Client, folders: DemoFolders, job_id: str) -> None:
    """Print where the results are."""
    with stage(console, "Fetch the report of the run"):
        for path in (folders.grid, folders.curves):
            path.write_bytes(api_steps.picture(client, job_id, path.name))
    newest = api_steps.list_checkpoints(client)[0]
    verdict = "its hashes verify" if api_steps.verify_checkpoint(client, newest["name"]) else "[red]its hashes do not verify[/]"
    lines = {
        "checkpoint": f"{newest['path']}  [dim]({verdict})[/]",
        "pipeline": f"{folders.output / 'pipeline'}  [dim](diffusers loads it)[/]",
        "images": f"{folders.grid}  [dim](single ones: {folders.output / 'validation_images'})[/]",
        "curves": f"{folders.curves}  [dim](loss and learning rate)[/]",
    }
    console.print()
    for name, text in lines.items():
        console.print(f"  [bold]{name:<11}[/] {text}", highlight=False, soft_wrap=True)
    console.print()


def say_goodbye(console: Console, folders: DemoFolders, server_pid: int | None, page: str) -> None:
    """Print where to look now; ``server_pid`` is None if the server ends with the demo, else ``page`` is open."""
    again = f"simpletuner server --home {folders.root}"
    if server_pid is None:
        lines = [f"The server stops now. [bold]{again}[/] starts it again, with the same run and model; then open {page}"]
    else:
        lines = [
            f"The server keeps running (log: {folders.server_log}). [bold]kill {server_pid}[/] stops it, [bold]{again}[/] starts it again.",
            f"Open [bold]{page}[/]",
        ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
