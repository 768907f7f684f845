"""A training from its request to a proven weights file: prepare, cache, train, save.

What a step is stands in ``loop``; this module puts the parts together and says what
came out.
"""

from __future__ import annotations

import gc
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from models_app.architectures import ARCHITECTURES
from models_app.loading import LoadingError
from studio_project.child_protocol import ChildError
from training_app.trainer.cache import LatentBank, cache_latents, cache_prompts
from training_app.trainer.checkpoint import find_checkpoint
from training_app.trainer.class_images import ClassImages
from training_app.trainer.config import ConfigError
from training_app.trainer.dataset import Example, make_examples
from training_app.trainer.export import export_lora, verify_export
from training_app.trainer.files import CorruptFileError
from training_app.trainer.folder_export import export_folder, verify_folder
from training_app.trainer.learner import compute_dtype
from training_app.trainer.loop import sample_now, train
from training_app.trainer.memory import settle_checkpointing
from training_app.trainer.preview import Previewer, Sample, choose_prompts
from training_app.trainer.reporting import Channel, Reporter, StopRun
from training_app.trainer.request import TrainingImage, TrainingRequest
from training_app.trainer.training import Training

WEIGHTS_NAME = "adapter.safetensors"
FOLDER_NAME = "model"
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
        captioned(request),
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
    outputs = _save(training, previewer, samples, reporter)
    reporter.send(
        "done",
        outputs=outputs,
        metrics=metrics | {"peak_memory_bytes": _peak_memory_bytes(request.device)},
    )


def captioned(request: TrainingRequest) -> list[TrainingImage]:
    """The pictures; in DreamBooth those without a caption have the instance prompt."""
    return [
        image if image.caption.strip() else replace(image, caption=request.config.instance_prompt)
        for image in request.images
    ]


def _load(
    examples: Sequence[Example], request: TrainingRequest, reporter: Reporter
) -> tuple[Training, Previewer]:
    """Fills the caches, then loads what learns and the checkpoint to go on from."""
    config = request.config
    class_examples, latents = _cache_pictures(examples, request, reporter)
    prompts = choose_prompts(examples, request)
    bank = None
    if not config.train_text_encoder:
        texts = [example.prompt for example in (*examples, *class_examples)]
        dtype = compute_dtype(config, request.device)
        bank = cache_prompts([*texts, *prompts], request, dtype, reporter)
    reporter.phase("preparing")
    try:
        training = Training(request, examples, latents, bank, class_examples)
    except ValueError as exc:
        raise ChildError("model_incompatible", detail=str(exc)) from exc
    settle_checkpointing(training, config.gradient_checkpointing, request.device)
    checkpoint = find_checkpoint(
        request,
        training.learner.parameters,
        lambda name: reporter.note("checkpoint_skipped", checkpoint=name),
    )
    if checkpoint is not None:
        training.restore(checkpoint)
        reporter.note("resumed", step=checkpoint.step)
    elif request.resume_folder is not None:
        reporter.note("started_anew")
    return training, Previewer(request, training.learner, training.prompts, prompts, reporter)


def _cache_pictures(
    examples: Sequence[Example], request: TrainingRequest, reporter: Reporter
) -> tuple[list[Example], LatentBank]:
    """Paints the class's pictures if it is preserved, then encodes all pictures."""
    if not request.config.has_prior:
        reporter.phase("caching", 0, len(examples))
        return [], cache_latents(examples, request, reporter)
    reporter.phase("caching")
    wanted = ClassImages(examples, request)
    total = wanted.num_missing + wanted.num_wanted + len(examples)
    wanted.paint(reporter, total)
    class_examples = wanted.examples()
    latents = cache_latents(
        [*examples, *class_examples], request, reporter, done_before=wanted.num_missing
    )
    return class_examples, latents


def _save(
    training: Training, previewer: Previewer, samples: Sequence[Sample], reporter: Reporter
) -> dict[str, Any]:
    """Writes what was trained and proves it in a plain pipeline.

    Returns:
        What the worker is told of it.

    Raises:
        CorruptFileError: If the files do not hold what was trained; they are removed.
        StopRun: If the run shall stop.
    """
    request, step = training.request, training.step
    is_folder = request.config.tune == "unet"
    path = request.output_folder / (FOLDER_NAME if is_folder else WEIGHTS_NAME)
    weights = {name: value.detach().cpu() for name, value in training.learner.weights().items()}
    settings = previewer.settings[0]
    # The plain pipeline gets the memory of the trained network.
    training.release()
    previewer.release()
    gc.collect()
    if is_folder:
        export_folder(path, weights, request)
    else:
        export_lora(path, weights, request, step)
    dtype = compute_dtype(request.config, request.device)
    try:
        pixels = (verify_folder if is_folder else verify_export)(
            path,
            weights,
            request,
            settings,
            dtype=dtype,
            on_step=lambda: reporter.raise_if_stopped(step),
        )
        own = [sample.pixels for sample in samples if sample.index == 0]
        if own and request.device == "cpu" and dtype == torch.float32:
            _require_same_picture(pixels, own[0])
    except CorruptFileError:
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        raise
    return {
        "layout": "folder" if is_folder else "file",
        "weights": str(path),
        "kohya": None,
        "step": step,
        # Their prompts have been told; many long ones would not fit into a line.
        "samples": [
            {"step": sample.step, "index": sample.index, "path": str(sample.path)}
            for sample in samples
        ],
    }


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
