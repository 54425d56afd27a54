"""``simpletuner demo``: from an empty folder to a trained model and a picture of how it learned, through the API alone."""

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
from simpletuner_site.demo.pictures import generate_images
from simpletuner_site.demo.place import REPOSITORY, Place
from simpletuner_site.demo.processes import ModelNotMade, ServerFailed, make_base_model, running_server
from simpletuner_site.train.run_screen import RunScreen

MADE_BY_DEMO = "made-by-demo"


class NotOurFolder(Exception):
    """The folder holds something that the demo did not make."""


@contextmanager
def stage(console: Console, title: str) -> Iterator[None]:
    """A line that says what was done and how long it took, or where it failed."""
    began = time.monotonic()
    with console.status(f"{title} …"):
        yield
    console.print(f"[green]✓[/] {title}  [dim]{time.monotonic() - began:.1f} s[/]", highlight=False)


def run(folder: Path, *, keep: bool = False) -> int:
    """The exit code: 0 when the run completed."""
    console = Console()
    place = Place(folder.absolute())
    try:
        empty(place.root)
        prepare(console, place)
        with running_server(place, keep=keep) as (client, server_pid):
            console.print(f"[green]✓[/] The server answers on {client.base_url}", highlight=False)
            job_id = walk(console, client, place)
            show_results(console, client, place, job_id)
            say_goodbye(console, place, server_pid if keep else None)
    except (NotOurFolder, ModelNotMade, ServerFailed, StepFailed, httpx.HTTPError) as error:
        console.print(f"[red]✗[/] {error}", highlight=False, markup=True)
        return 1
    except KeyboardInterrupt:
        console.print("Ended by Ctrl-C.")
        return 130
    return 0


def empty(root: Path) -> None:
    """Start anew, but delete only what a demo made. Raises NotOurFolder."""
    if root.exists() and any(root.iterdir()):
        if not (root / MADE_BY_DEMO).is_file():
            raise NotOurFolder(f"{root} holds something else; choose an empty folder with --output")
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / MADE_BY_DEMO).write_text("The demo empties this folder when it runs again.\n")


def prepare(console: Console, place: Place) -> None:
    with stage(console, f"A small PixArt Sigma in the place of {REPOSITORY}"):
        make_base_model(place)
    with stage(console, f"Pictures to train on, in {place.pictures}"):
        generate_images(place.pictures)


def walk(console: Console, client: httpx.Client, place: Place) -> str:
    """The tutorial's steps 1 to 7; the job's id."""
    with stage(console, "1. Create the environment"):
        api_steps.create_environment(client)
    with stage(console, "2. Describe the dataset, and the prompts to draw"):
        api_steps.describe_datasets(place)
    with stage(console, "3. Set the hyperparameters"):
        api_steps.set_hyperparameters(client, place)
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
        raise StepFailed(f"The run ended as {status['status']}: {status['job_info']}\nServer's log: {place.server_log}")
    return job_id


def show_results(console: Console, client: httpx.Client, place: Place, job_id: str) -> None:
    """Where everything is."""
    with stage(console, "Fetch the picture of the run"):
        for path in (place.grid, place.curves):
            path.write_bytes(api_steps.picture(client, job_id, path.name))
    newest = api_steps.list_checkpoints(client)[0]
    verdict = "its hashes verify" if api_steps.verify_checkpoint(client, newest["name"]) else "[red]its hashes do not verify[/]"
    lines = {
        "checkpoint": f"{newest['path']}  [dim]({verdict})[/]",
        "pipeline": f"{place.output / 'pipeline'}  [dim](diffusers loads it)[/]",
        "images": f"{place.grid}  [dim](single ones: {place.output / 'validation_images'})[/]",
        "curves": f"{place.curves}  [dim](loss and learning rate)[/]",
        "docs": f"{client.base_url}/docs  [dim](while the server runs)[/]",
    }
    console.print()
    for name, text in lines.items():
        console.print(f"  [bold]{name:<11}[/] {text}", highlight=False, soft_wrap=True)
    console.print()


def say_goodbye(console: Console, place: Place, server_pid: int | None) -> None:
    """``server_pid`` is None where the server ends with the demo."""
    if server_pid is None:
        text = "The server ends now; [bold]make demo KEEP=1[/] leaves it running, to look at /docs and /admin."
    else:
        text = f"The server goes on; [bold]kill {server_pid}[/] ends it. Its log: {place.server_log}"
    console.print(text, highlight=False, soft_wrap=True)
