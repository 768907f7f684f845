"""A picture of a trained model through the site is the one that plain diffusers paints."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from tests.e2e import work
from tests.e2e.site import ROOT, Site

PROMPT = "a zorp on a red background"
STEPS, GUIDANCE, SEED = 12, 5.0, 77


def test_the_exported_file_paints_the_same_in_plain_diffusers(site: Site, tmp_path: Path) -> None:
    client = site.user()
    # An alpha that is not the rank: a file that loses it would paint another picture.
    job = work.start_training(client, work.dataset(client), max_train_steps=12, rank=8, alpha=3)
    state = work.finished(client, f"/api/training/{job}/progress")
    assert state["status"] == "completed", state
    model = state["output_model"]["id"]
    settings = {
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "scheduler": "ddim",
        "seed": SEED,
    }
    done = work.generate(client, model, PROMPT, **settings)
    painted = Image.open(io.BytesIO(client.fetch(done["images"][0]["url"]))).convert("RGB")
    weights = tmp_path / "lora.safetensors"
    weights.write_bytes(client.fetch(f"/api/models/{model}/download"))

    pipeline = StableDiffusionPipeline.from_pretrained(
        ROOT / "models_app" / "starter" / "weights", dtype=torch.float32
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)

    def plain() -> np.ndarray:
        generator = torch.Generator("cpu").manual_seed(SEED)
        result = pipeline(
            PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator
        )
        return np.asarray(result.images[0], dtype=np.int16)

    without = plain()
    pipeline.load_lora_weights(tmp_path, weight_name=weights.name)
    difference = np.abs(plain() - np.asarray(painted, dtype=np.int16))
    assert difference.max() <= 2
    assert difference.mean() <= 0.1
    assert np.abs(without - np.asarray(painted, dtype=np.int16)).mean() > 1
