"""Draws with a freshly uploaded adapter on Replicate, and prints where the images are.

--post_upload_script='simpletuner/examples/external-validation/replicate_post_upload.py {remote_checkpoint_path} {model_family} \
{model_type} {lora_type} {huggingface_path} --prompt {validation_prompt}'

The key: REPLICATE_API_TOKEN, listed in SIMPLETUNER_HOOKS_ENV where the server is started, or --token-file.
"""

from __future__ import annotations

import argparse

import httpx
from hosted_service import Service, Trouble, arguments_of, ask, end, inputs_of, key_of, own_address, say, wait_for, weights_of

REPLICATE = Service("Replicate", "https://api.replicate.com", "REPLICATE_API_TOKEN", "REPLICATE_BASE_URL")
MODELS = {"flux": "black-forest-labs/flux-dev-lora"}
"""Family -> the model of Replicate's that draws with an adapter of it, for lack of --model."""
OVER = ("succeeded", "failed", "canceled", "aborted")


def main() -> None:
    parser = arguments_of(REPLICATE, "Draw with a freshly uploaded adapter on Replicate.")
    parser.add_argument("--version", default="", help="id of the version, for models that are not Replicate's own")
    parser.add_argument("--weights-input", default="lora_weights", help="the model's input for the adapter (default: lora_weights)")
    parser.add_argument("--strength-input", default="lora_scale", help="the model's input for its strength; empty: none")
    arguments = parser.parse_args()
    weights, inputs = weights_of(arguments), inputs_of(arguments.input)
    with REPLICATE.client(key_of(REPLICATE, arguments.token_file)) as client:
        prediction = _create(client, arguments, {**_inputs(arguments, weights), **inputs})
        _emit(_result(client, prediction, arguments.seconds))


def _inputs(arguments: argparse.Namespace, weights: str) -> dict[str, object]:
    strength = {arguments.strength_input: arguments.strength} if arguments.strength_input else {}
    return {"prompt": arguments.prompt, arguments.weights_input: weights, **strength}


def _create(client: httpx.Client, arguments: argparse.Namespace, inputs: dict[str, object]) -> dict[str, object]:
    if arguments.version:
        return ask(client, "POST", "/v1/predictions", {"version": arguments.version, "input": inputs})
    model = arguments.model or MODELS.get(arguments.model_family, "")
    if not model:
        raise Trouble(f"there is no usual model for the family {arguments.model_family or '(none)'}: give --model owner/name or --version")
    return ask(client, "POST", f"/v1/models/{model}/predictions", {"input": inputs})


def _result(client: httpx.Client, prediction: dict[str, object], seconds: float) -> dict[str, object]:
    identity, urls = prediction.get("id"), prediction.get("urls")
    if not identity:
        raise Trouble("Replicate accepted the request and named no prediction")
    address = own_address(client, urls.get("get") if isinstance(urls, dict) else None, f"/v1/predictions/{identity}")
    say(f"prediction {identity}")
    return wait_for(lambda: ask(client, "GET", address), lambda found: found.get("status") in OVER, seconds)


def _emit(found: dict[str, object]) -> None:
    if found.get("status") != "succeeded":
        raise Trouble(f"the prediction {found.get('status')}: {found.get('error') or 'Replicate gives no reason'}")
    output = found.get("output")
    for image in output if isinstance(output, list) else [output]:
        say(f"image: {image}")


if __name__ == "__main__":
    end(main)
