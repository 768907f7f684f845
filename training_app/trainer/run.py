"""A training from its request to a proven weights file: prepare, cache, train, save.

What a step is stands in ``loop``; this module puts the parts together and says what
came out.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models_app.architectures import ARCHITECTURES
from models_app.loading import LoadingError
from studio_project.child_protocol import ChildError
from training_app.trainer.cache import cache_latents, cache_prompts
from training_app.trainer.checkpoint import find_checkpoint
from training_app.trainer.config import ConfigError
from training_app.trainer.dataset import Example, make_examples
from training_app.trainer.export import export_lora, verify_export
from training_app.trainer.files import CorruptFileError
from training_app.trainer.kohya import export_kohya
from training_app.trainer.loop import Training, compute_dtype, sample_now, train
from training_app.trainer.preview import Previewer, Sample, choose_prompts
from training_app.trainer.reporting import Channel, Reporter, StopRun
from training_app.trainer.request import TrainingRequest

WEIGHTS_NAME = "adapter.safetensors"
KOHYA_NAME = "adapter.kohya.safetensors"
#: On a CPU in fp32 the exported file must give the trained network's own picture.
EXPORT_TOLERANCE = 2 / 255


def run(channel: Channel, values: Mapping[str, Any]) -> None:
    """Does one training and says how it ended: ``done`` or ``stopped``.

    Args:
        channel: Where messages go and wishes come from.
        values: The request as it came over the pipe.

    Raises:
        ChildError: ``model_incompatible``, ``non_finite_loss``, ``out_of_memory`` or
            ``internal`` (a request that the site should not have sent).
        OSError: If files cannot be read or written.
    """
    reporter = Reporter(channel)
    try:
        _run(TrainingRequest.from_dict(values), reporter)
    except StopRun as stop:
        reporter.send("stopped", how=stop.how, step=stop.step)
    except ConfigError as exc:
        raise ChildError("internal", field=exc.field, detail=exc.message) from exc
    except LoadingError as exc:
        raise ChildError("model_incompatible", detail=str(exc)) from exc
    except RuntimeError as exc:
        # The CPU allocator has no exception class of its own.
        if "can't allocate memory" in str(exc):
            raise ChildError("out_of_memory") from exc
        raise


def _run(request: TrainingRequest, reporter: Reporter) -> None:
    reporter.phase("preparing")
    family = ARCHITECTURES.get(request.architecture)
    if family is None or not family.trainable:
        raise ChildError("model_incompatible", architecture=request.architecture)
    if request.threads > 0:
        torch.set_num_threads(request.threads)
    request.output_folder.mkdir(parents=True, exist_ok=True)
    examples = make_examples(
        request.images,
        resolution=request.config.resolution,
        trigger_word=request.config.trigger_word,
    )

    training, previewer = _load(examples, request, reporter)
    started_at, first_step = time.monotonic(), training.step
    meter = train(training, previewer, request, reporter)
    metrics = {
        "steps": training.step,
        "train_seconds": round(time.monotonic() - started_at, 3),
        "resumed_at_step": first_step,
        "loss": meter.mean,
        "images_per_second": meter.images_per_second,
    }
    samples = sample_now(training, previewer, reporter)
    # Everything is in the last checkpoint: a worker that must go loses nothing.
    reporter.raise_if_stopped(training.step)
    reporter.phase("saving")
    weights, kohya = _save(training, previewer, samples, reporter)
    reporter.send(
        "done",
        outputs={
            "weights": str(weights),
            "kohya": str(kohya),
            # Their prompts have been told; many long ones would not fit into a line.
            "samples": [
                {"step": sample.step, "index": sample.index, "path": str(sample.path)}
                for sample in samples
            ],
        },
        metrics=metrics | {"peak_memory_bytes": _peak_memory_bytes(request.device)},
    )


def _load(
    examples: Sequence[Example], request: TrainingRequest, reporter: Reporter
) -> tuple[Training, Previewer]:
    """Fills the caches, then loads the denoiser and the checkpoint to go on from."""
    reporter.phase("caching", 0, len(examples))
    prompts = choose_prompts(examples, request)
    latents = cache_latents(examples, request, reporter)
    bank = cache_prompts(
        [*(example.prompt for example in examples), *prompts],
        request,
        compute_dtype(request.config, request.device),
        reporter,
    )
    reporter.phase("preparing")
    try:
        training = Training(request, examples, latents, bank)
    except ValueError as exc:
        raise ChildError("model_incompatible", detail=str(exc)) from exc
    checkpoint = find_checkpoint(
        request, lambda name: reporter.note("checkpoint_skipped", checkpoint=name)
    )
    if checkpoint is not None:
        training.restore(checkpoint)
        reporter.note("resumed", step=checkpoint.step)
    elif request.resume_folder is not None:
        reporter.note("started_anew")
    return training, Previewer(request, training.denoiser, bank, prompts, reporter)


def _save(
    training: Training, previewer: Previewer, samples: Sequence[Sample], reporter: Reporter
) -> tuple[Path, Path]:
    """Writes the weights file in both layouts and proves each in a plain pipeline.

    Returns:
        The file in diffusers' layout and the one in kohya's.

    Raises:
        CorruptFileError: If a file does not hold what was trained; both are removed.
        StopRun: If the run shall stop.
    """
    request, step = training.request, training.step
    paths = request.output_folder / WEIGHTS_NAME, request.output_folder / KOHYA_NAME
    export_lora(paths[0], training.parameters, request, step)
    export_kohya(paths[1], training.parameters, request, step)
    weights = {name: value.detach().cpu() for name, value in training.parameters.items()}
    dtype = compute_dtype(request.config, request.device)
    settings = previewer.settings[0]
    # The plain pipeline gets the memory of the trained network.
    training.release()
    previewer.release()
    gc.collect()
    try:
        pictures = verify_export(
            paths,
            weights,
            request,
            settings,
            dtype=dtype,
            on_step=lambda: reporter.raise_if_stopped(step),
        )
        own = [sample.pixels for sample in samples if sample.index == 0]
        if own and request.device == "cpu" and dtype == torch.float32:
            for pixels in pictures:
                _require_same_picture(pixels, own[0])
    except CorruptFileError:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    return paths


def _require_same_picture(pixels: np.ndarray, own: np.ndarray) -> None:
    difference = float(np.abs(pixels - own).max())
    if difference > EXPORT_TOLERANCE:
        raise CorruptFileError(f"the weights file gives another picture (by {difference:.4f})")


def _peak_memory_bytes(device: str) -> int:
    """The most memory that was held: of the GPU, else of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    # macOS counts in bytes, Linux in KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
