"""The page that the walkthrough is read from has the commands that it should."""

from __future__ import annotations

import pytest

from tests.tutorial.commands import blocks

STEPS = {
    "1. Create the environment": "/api/configs/environments",
    "2. Describe the dataset": "config/pixart-api-demo/multidatabackend.json",
    "3. Set the hyperparameters": "-X PUT http://localhost:8001/api/configs/pixart-api-demo",
    "4. Activate the environment": "/api/configs/pixart-api-demo/activate",
    "5. Validate": "/api/training/validate",
    "6. Start": "/api/training/start",
    "7. Watch and stop": "/api/training/cancel -F job_id=<JOB_ID>",
}


@pytest.mark.parametrize(("heading", "command"), STEPS.items())
def test_every_step_has_its_command(heading: str, command: str) -> None:
    (block,) = blocks(heading)
    assert command in block


def test_the_fast_path_has_its_three_commands() -> None:
    dataloader, validate, start = blocks("Fast path: run without environments")
    assert dataloader.startswith("cat <<'JSON'")
    assert dataloader.rstrip().endswith("\nJSON")
    assert "/api/training/validate" in validate
    assert start.replace("/start", "/validate").startswith(validate.rstrip())


def test_a_heading_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AssertionError, match="not a heading"):
        blocks("8. Profit")
