"""What a step of a training costs on this device: a few real ones on made-up pictures.

Of the pictures only the sizes count, of the words nothing: a step takes as long for any.
Of a training on several devices the share of one is measured, without what they say to each other.
Nothing is written but what a training would find in the cache as well, and no random state
changes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from training_app.trainer.cache import cache_prompts, made_up_latents
from training_app.trainer.config import TrainingConfig
from training_app.trainer.dataset import Example, make_examples
from training_app.trainer.learner import compute_dtype
from training_app.trainer.memory import peak_memory_bytes, settle_checkpointing
from training_app.trainer.reporting import Reporter
from training_app.trainer.request import TrainingRequest
from training_app.trainer.training import Training

#: The first step also makes the optimizer's state and chooses kernels.
WARM_UP_STEPS = 1
MEASURED_STEPS = 3


def measure_steps(request: TrainingRequest, reporter: Reporter) -> dict[str, Any]:
    """Does some steps and times them.

    Args:
        request: The training; of its pictures only the sizes are looked at.
        reporter: Is told the phases and asked whether to stop.

    Returns:
        ``seconds_per_step`` (the median), ``images_per_second``, ``peak_memory_bytes`` (on a
        GPU that of the steps, else of the process) and ``gradient_checkpointing``.

    Raises:
        StopRun: If it shall stop.
        ConfigError: If the optimizer is not installed.
        LoadingError: If the base model cannot be loaded.
        torch.OutOfMemoryError: If a step does not fit.
    """
    device, all_pictures = request.device, request.config.effective_batch_size
    request = replace(request, config=_share(request.config))
    on_gpu = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=on_gpu):
        reporter.phase("preparing")
        training = _made_up(request, reporter)
        is_checkpointed = settle_checkpointing(
            training, request.config.gradient_checkpointing, device
        )
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        reporter.phase("training")
        seconds = []
        for _ in range(WARM_UP_STEPS + MEASURED_STEPS):
            reporter.raise_if_stopped(training.step)
            started_at = time.monotonic()
            # Reading the loss waits for the device.
            training.do_step().loss.item()
            seconds.append(time.monotonic() - started_at)
    seconds_per_step = statistics.median(seconds[WARM_UP_STEPS:])
    return {
        "seconds_per_step": seconds_per_step,
        "images_per_second": all_pictures / seconds_per_step,
        "peak_memory_bytes": peak_memory_bytes(device),
        "gradient_checkpointing": is_checkpointed,
    }


def _share(config: TrainingConfig) -> TrainingConfig:
    """What one of the devices does."""
    size = config.train_batch_size // config.num_devices
    return replace(config, train_batch_size=size, num_devices=1)


def _made_up(request: TrainingRequest, reporter: Reporter) -> Training:
    """The training with noise for pictures and without words."""
    examples = [
        replace(example, prompts=("",)) for example in make_examples(request.images, request.config)
    ]
    class_examples: Sequence[Example] = examples if request.config.has_prior else ()
    latents = made_up_latents([*examples, *class_examples], request)
    bank = None
    if not request.config.train_text_encoder:
        dtype = compute_dtype(request.config, request.device)
        bank = cache_prompts([], request, dtype, reporter)
    return Training(request, examples, latents, bank, class_examples)
