"""Measure an exported starter model on prompts whose combinations it has never seen.

The judging is ``judge``'s, which uses no model. The lines that the model must reach
stand here as ``LINES``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

from models_app.starter.judge import judge, judge_background
from models_app.starter.world import COLOURS, figure_caption, held_out_scenes

STEPS = 20
GUIDANCE_SCALE = 5.0
BATCH_SIZE = 25
# Least share of right pictures, in per cent, over the held-out prompts.
LINES = {"colour": 95.0, "background": 98.0, "shape": 85.0}
SLOWEST_PICTURE_SECONDS = 2.0


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The exported model in fp32 on the CPU, silent."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    first_seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> list[Image.Image]:
    """Paint one picture for each prompt; the n-th has the seed ``first_seed + n``."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        seeds = range(first_seed + start, first_seed + start + len(batch))
        pictures += pipeline(
            batch,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE_SCALE,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images
    return pictures


def score_held_out(pipeline: StableDiffusionPipeline, count: int = 100) -> dict[str, float]:
    """Per cent of held-out prompts whose colour, background and shape came out right."""
    scenes = held_out_scenes(count)
    pictures = generate(pipeline, [scene.caption for scene in scenes])
    agreements = [
        judge(picture).agrees_with(scene) for picture, scene in zip(pictures, scenes, strict=True)
    ]
    return {part: round(100 * float(np.mean([a[part] for a in agreements])), 1) for part in LINES}


def score_unknown_nouns(
    pipeline: StableDiffusionPipeline, count: int = 100, seed: int = 11
) -> float:
    """Per cent of right backgrounds behind made-up words."""
    rng = np.random.default_rng(seed)
    backgrounds = [list(COLOURS)[i % len(COLOURS)] for i in range(count)]
    pictures = generate(
        pipeline, [figure_caption(background, rng) for background in backgrounds], 5000
    )
    right = [
        judge_background(picture) == wanted
        for picture, wanted in zip(pictures, backgrounds, strict=True)
    ]
    return round(100 * float(np.mean(right)), 1)


def seconds_per_picture(pipeline: StableDiffusionPipeline) -> float:
    """The time of one warm picture on one core: the best of three."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        durations = []
        for attempt in range(4):
            began = time.perf_counter()
            generate(pipeline, ["a red circle on a blue background"], attempt)
            durations.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return round(min(durations[1:]), 2)


def score_folder(folder: Path, count: int = 100) -> dict[str, Any]:
    """All scores of an exported model, as the card wants them."""
    pipeline = load_pipeline(folder)
    return {
        "prompts": count,
        "steps": STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        **score_held_out(pipeline, count),
        "unknown_noun_background": score_unknown_nouns(pipeline, count),
        "seconds_per_picture": seconds_per_picture(pipeline),
    }


def reaches_lines(scores: dict[str, Any]) -> bool:
    """Whether the scores are good enough for the model to be shipped."""
    fast = bool(scores["seconds_per_picture"] <= SLOWEST_PICTURE_SECONDS)
    return fast and all(scores[part] >= least for part, least in LINES.items())
