"""Draws with a freshly uploaded adapter on WaveSpeed, waits for the result, and prints where the images are.

--post_upload_script='simpletuner/examples/external-validation/wavespeed_post_upload.py {remote_checkpoint_path} {model_family} \
{model_type} {lora_type} {huggingface_path} --prompt {validation_prompt}'

The key: WAVESPEED_API_KEY, listed in SIMPLETUNER_HOOKS_ENV where the server is started, or --token-file.
"""

from __future__ import annotations

from typing import Any

import httpx
from hosted_service import Service, Trouble, arguments_of, ask, end, inputs_of, key_of, own_address, say, wait_for, weights_of

WAVESPEED = Service("WaveSpeed", "https://api.wavespeed.ai", "WAVESPEED_API_KEY", "WAVESPEED_BASE_URL")
MODELS = {"flux": "wavespeed-ai/flux-dev-lora"}
"""Family -> the model of WaveSpeed's that draws with an adapter of it, for lack of --model."""
OVER = ("completed", "failed")


def main() -> None:
    arguments = arguments_of(WAVESPEED, "Draw with a freshly uploaded adapter on WaveSpeed.").parse_args()
    loras = [{"path": weights_of(arguments), "scale": arguments.strength}]
    body = {"prompt": arguments.prompt, "loras": loras, **inputs_of(arguments.input)}
    model = arguments.model or MODELS.get(arguments.model_family, "")
    if not model:
        raise Trouble(f"there is no usual model for the family {arguments.model_family or '(none)'}: give --model owner/name")
    with WAVESPEED.client(key_of(WAVESPEED, arguments.token_file)) as client:
        task = _data(ask(client, "POST", f"/api/v3/{model}", body))
        if not task.get("id"):
            raise Trouble("WaveSpeed accepted the request and named no task")
        say(f"task {task['id']}")
        _emit(_result(client, task, arguments.seconds))


def _data(answer: dict[str, Any]) -> dict[str, Any]:
    """What WaveSpeed wraps its answers around. A refusal may come with HTTP's 200. Raises Trouble."""
    data = answer.get("data")
    if answer.get("code") not in (None, 200) or not isinstance(data, dict):
        raise Trouble(f"WaveSpeed refuses: {answer.get('message') or answer.get('code')}")
    return data


def _result(client: httpx.Client, task: dict[str, Any], seconds: float) -> dict[str, Any]:
    urls = task.get("urls")
    address = own_address(client, urls.get("get") if isinstance(urls, dict) else None, f"/api/v3/predictions/{task['id']}/result")
    return wait_for(lambda: _data(ask(client, "GET", address)), lambda found: found.get("status") in OVER, seconds)


def _emit(found: dict[str, Any]) -> None:
    if found.get("status") != "completed":
        raise Trouble(f"the task failed: {found.get('error') or 'WaveSpeed gives no reason'}")
    outputs = found.get("outputs")
    if not isinstance(outputs, list) or not outputs:
        raise Trouble("the task is complete, and there is no image")
    for image in outputs:
        say(f"image: {image}")


if __name__ == "__main__":
    end(main)
