"""The main job's steps over HTTP, as several tests take them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from safetensors.numpy import load

from models_app.starter.creatures import draw_creature
from studio_project.management.demo_client import FINAL, DemoClient
from tests.e2e.site import poll

COLOURS = ("red", "blue", "white", "yellow", "purple")
#: Samples are made five times, as ever, but small ones: by default they are most of such a run.
QUICK = {
    "trigger_word": "zorp",
    "max_train_steps": 40,
    "train_batch_size": 2,
    "seed": 3,
    "sample_prompts": ["a zorp"],
    "control_prompt": "",
    "sample_inference_steps": 2,
}


def pictures(number: int, *, kind: str = "A", seed: int = 1) -> dict[str, bytes]:
    """Draw captioned pictures of a creature as files to upload."""
    rng = np.random.default_rng(seed)
    files = {}
    for index in range(number):
        colour = COLOURS[index % len(COLOURS)]
        buffer = io.BytesIO()
        draw_creature(kind, colour, rng).save(buffer, "PNG")
        files[f"{index:03}.png"] = buffer.getvalue()
        files[f"{index:03}.txt"] = f"a zorp on a {colour} background".encode()
    return files


def dataset(client: DemoClient, number: int = 6) -> int:
    """Make a dataset with pictures and return its id."""
    row = client.call("POST", "/api/datasets/", {"name": "creatures", "type": "image"})
    answer = client.upload(row["id"], pictures(number))
    assert len(answer["created"]) == number, answer
    return int(row["id"])


def starter(client: DemoClient) -> int:
    """Return the id of the ready base model."""
    query = "/api/models/?category=image&type=base_model&availability=ready"
    return int(client.call("GET", query)["results"][0]["id"])


def start_training(client: DemoClient, dataset_id: int, **config: Any) -> str:
    """Create and start a quick training and return its id."""
    wish = {
        "dataset_id": dataset_id,
        "base_model_id": starter(client),
        "type": "lora",
        "config": {**QUICK, **config},
    }
    job = str(client.call("POST", "/api/training/", wish)["id"])
    client.call("POST", f"/api/training/{job}/start")
    return job


def training(client: DemoClient, job: str) -> Any:
    """Return a training's progress."""
    return client.call("GET", f"/api/training/{job}/progress")


def finished(client: DemoClient, path: str, *, seconds: float = 240) -> Any:
    """Wait for a job to be final and return it."""

    def final() -> Any:
        state = client.call("GET", path)
        return state if state["status"] in FINAL else None

    # Whoever is final stays so: nothing is missed between two questions.
    return poll(final, seconds=seconds, what=f"{path} final", longest_pause_seconds=1.0)


def weights(client: DemoClient, model: int) -> dict[str, np.ndarray]:
    """Download a model's file and return its tensors."""
    return load(client.fetch(f"/api/models/{model}/download"))


def generate(client: DemoClient, model: int, prompt: str, **fields: Any) -> Any:
    """Ask for pictures and wait for them."""
    body = {"model": model, "prompt": prompt, "seed": 1, **fields}
    job = client.call("POST", "/api/generate/text-to-image", body)["id"]
    return finished(client, f"/api/generate/{job}")
