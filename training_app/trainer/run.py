"""A training from its request to a proven weights file: prepare, cache, train, save.

What a step is stands in ``loop``; this module puts the parts together and says what
came out.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models_app.architectures import ARCHITECTURES
from models_app.device_memory import free_memory
from models_app.inspection import read_json
from models_app.kohya_file import to_kohya
from models_app.loading import LoadingError
from studio_project.child_protocol import ChildError, is_out_of_memory
from training_app.trainer.attempts import train_through
from training_app.trainer.cache import LatentBank, PromptBank, cache_latents, cache_prompts
from training_app.trainer.checkpoint import find_checkpoint
from training_app.trainer.checks import report_problems
from training_app.trainer.class_images import ClassImages
from training_app.trainer.compiling import settle_compiling
from training_app.trainer.config import ConfigError
from training_app.trainer.dataset import Example, make_examples
from training_app.trainer.export import RenderSettings, export_lora, verify_export
from training_app.trainer.files import CorruptFileError
from training_app.trainer.folder_export import export_folder, verify_folder
from training_app.trainer.learner import compute_dtype
from training_app.trainer.loop import sample_now
from training_app.trainer.memory import keep_to, peak_memory_bytes, settle_checkpointing
from training_app.trainer.preflight import measure_steps
from training_app.trainer.preview import Previewer, Sample, choose_prompts
from training_app.trainer.ranks import Ranks
from training_app.trainer.recovery import Adjustments
from training_app.trainer.reporting import Channel, Reporter, StopRun
from training_app.trainer.request import TrainingRequest
from training_app.trainer.training import Training
from training_app.trainer.validation import take_best

WEIGHTS_NAME = "adapter.safetensors"
KOHYA_NAME = "adapter.kohya.safetensors"
FOLDER_NAME = "model"
#: On a CPU in fp32 the exported file must give the trained network's own picture.
EXPORT_TOLERANCE = 2 / 255


def run(channel: Channel, values: Mapping[str, Any], ranks: Ranks | None = None) -> None:
    """Does one training, or measures its steps, and says how it ended: ``done`` or ``stopped``.

    Args:
        channel: Where messages go and wishes come from.
        values: The request as it came over the pipe, to the first rank.
        ranks: Who else does the same; nobody unless said.

    Raises:
        RankLost: Another rank is gone; nothing was said.
        ChildError: ``model_incompatible``, ``non_finite_loss``, ``out_of_memory``,
            ``checkpoint_gone``, ``invalid_request`` (an optimizer that is not installed here)
            or ``internal`` (a request that the site should not have sent).
        OSError: If files cannot be read or written.
    """
    reporter, ranks = Reporter(channel), ranks or Ranks()
    try:
        values = ranks.share(values)
        request = TrainingRequest.from_dict(values)
        reporter.device = ranks.take_device(request.device)
        request = replace(request, device=reporter.device)
        _settle(request)
        if values.get("dry_run"):
            metrics = measure_steps(request, reporter)
            reporter.send("done", outputs={}, metrics=metrics)
        else:
            _run(request, reporter, ranks)
    except StopRun as stop:
        reporter.send("stopped", how=stop.how, step=stop.step)
    except ConfigError as exc:
        # Only what this machine lacks can be news to the site.
        code = "invalid_request" if exc.code == "not_installed" else "internal"
        raise ChildError(code, field=exc.field, detail=exc.message) from exc
    except LoadingError as exc:
        raise ChildError("model_incompatible", detail=str(exc)) from exc
    except RuntimeError as exc:
        if is_out_of_memory(exc):
            raise ChildError("out_of_memory") from exc
        raise


def _settle(request: TrainingRequest) -> None:
    """Refuses a family that cannot be trained, and keeps to the threads and memory given."""
    family = ARCHITECTURES.get(request.architecture)
    if family is None or not family.trainable:
        raise ChildError("model_incompatible", architecture=request.architecture)
    if request.threads > 0:
        torch.set_num_threads(request.threads)
    keep_to(request.device, request.memory_bytes)


def _run(request: TrainingRequest, reporter: Reporter, ranks: Ranks) -> None:
    reporter.phase("preparing")
    request.output_folder.mkdir(parents=True, exist_ok=True)
    examples = make_examples(request.images, request.config)
    if request.resume_folder is None and ranks.is_first:
        report_problems(examples, request, reporter)

    material = _prepare(examples, request, reporter, ranks)
    begin = partial(_begin, material, request, reporter, ranks)
    training, previewer = begin(request.resume_folder, None)
    started_at, first_step = time.monotonic(), training.step
    aside_before = reporter.seconds_aside
    training, previewer, meter = train_through(training, previewer, begin, request, reporter)
    ranks.leave()
    if not ranks.is_first:
        return
    metrics = {
        "steps": training.step,
        "train_seconds": round(
            time.monotonic() - started_at - (reporter.seconds_aside - aside_before), 3
        ),
        "resumed_at_step": first_step,
        "loss": meter.mean,
        "images_per_second": meter.images_per_second,
    }
    take_best(training)
    samples = sample_now(training, previewer, reporter)
    # Everything is in the last checkpoint: a worker that must go loses nothing.
    reporter.raise_if_stopped(training.step)
    reporter.phase("saving")
    outputs = _save(training, previewer, samples, reporter)
    reporter.send(
        "done",
        outputs=outputs,
        metrics=metrics | {"peak_memory_bytes": peak_memory_bytes(request.device)},
    )


@dataclass(frozen=True)
class _Material:
    """What is trained on, ready on the device.

    Attributes:
        examples: The own pictures.
        class_examples: Pictures of the class that is preserved.
        latents: The posteriors of those, then of these.
        prompts: Their conditioning; ``None`` if text encoders learn.
        sample_prompts: What the sample pictures show.
    """

    examples: Sequence[Example]
    class_examples: Sequence[Example]
    latents: LatentBank
    prompts: PromptBank | None
    sample_prompts: Sequence[str]


def _prepare(
    examples: Sequence[Example], request: TrainingRequest, reporter: Reporter, ranks: Ranks
) -> _Material:
    """Fills the caches; the first rank does, then the others read them."""
    with ranks.together():
        if ranks.is_first:
            material = _read_or_make(examples, request, reporter)
    with ranks.together():
        if not ranks.is_first:
            material = _read_or_make(examples, request, reporter)
    return material


def _read_or_make(
    examples: Sequence[Example], request: TrainingRequest, reporter: Reporter
) -> _Material:
    config = request.config
    class_examples, latents = _cache_pictures(examples, request, reporter)
    prompts = choose_prompts(examples, request)
    bank = None
    if not config.train_text_encoder:
        texts = [text for each in (*examples, *class_examples) for text in each.prompts]
        dtype = compute_dtype(config, request.device)
        bank = cache_prompts([*texts, *prompts], request, dtype, reporter)
    reporter.phase("preparing")
    return _Material(examples, class_examples, latents, bank, prompts)


def _begin(
    material: _Material,
    request: TrainingRequest,
    reporter: Reporter,
    ranks: Ranks,
    resume_folder: Path | None,
    adjustments: Adjustments | None,
) -> tuple[Training, Previewer]:
    """Loads what learns and the checkpoint to go on from.

    Args:
        material: What is trained on.
        request: The run.
        reporter: Is told from where it goes on.
        ranks: Who does the same at the same time.
        resume_folder: A checkpoint, or a folder of them.
        adjustments: What a fault has changed; ``None`` at the beginning of the run.
    """
    with ranks.together():
        training = _load(material, replace(request, resume_folder=resume_folder), reporter, ranks)
        if adjustments is not None:
            training.adjustments = adjustments
        else:
            _tell_beginning(training, resume_folder, reporter)
        settle_checkpointing(training, request.config.gradient_checkpointing, request.device)
        settle_compiling(training, reporter)
        previewer = Previewer(
            request, training.learner, training.prompts, material.sample_prompts, reporter
        )
    # A checkpoint that only some ranks can read would let them part.
    ranks.require_same(training.step)
    return training, previewer


def _load(
    material: _Material, request: TrainingRequest, reporter: Reporter, ranks: Ranks
) -> Training:
    """The networks that learn, as they stood in the newest checkpoint that is whole."""
    try:
        training = Training(
            request,
            material.examples,
            material.latents,
            material.prompts,
            material.class_examples,
            ranks,
        )
    except ConfigError:
        raise
    except ValueError as exc:
        raise ChildError("model_incompatible", detail=str(exc)) from exc
    checkpoint = find_checkpoint(
        request,
        training.learner.parameters,
        lambda name: reporter.note("checkpoint_skipped", checkpoint=name),
    )
    if checkpoint is not None:
        training.restore(checkpoint)
    return training


def _tell_beginning(training: Training, resume_folder: Path | None, reporter: Reporter) -> None:
    """Says from where a run goes on that was begun before."""
    if training.saved is not None:
        reporter.note("resumed", step=training.step)
    elif training.request.extends:
        # Without the run before, this would be another training.
        raise ChildError("checkpoint_gone")
    elif resume_folder is not None:
        reporter.note("started_anew")


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
    names = [FOLDER_NAME] if is_folder else [WEIGHTS_NAME, KOHYA_NAME]
    paths = [request.output_folder / name for name in names]
    weights = {name: value.detach().cpu() for name, value in training.learner.weights().items()}
    settings = previewer.settings[0]
    # The plain pipeline gets the memory of the trained network.
    training.release()
    previewer.release()
    free_memory()
    if is_folder:
        export_folder(paths[0], weights, request)
    else:
        export_lora(paths[0], weights, request, step)
        unet_config = read_json(request.base_folder / "unet" / "config.json")
        paths[1].unlink(missing_ok=True)
        to_kohya(*paths, architecture=request.architecture, unet_config=unet_config)
    try:
        pictures = _prove(
            paths, weights, request, settings, lambda: reporter.raise_if_stopped(step)
        )
        own = [sample.pixels for sample in samples if sample.index == 0]
        if own and request.device == "cpu" and _dtype(request) == torch.float32:
            for pixels in pictures:
                _require_same_picture(pixels, own[0])
    except CorruptFileError:
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        raise
    return {
        "layout": "folder" if is_folder else "file",
        "weights": str(paths[0]),
        "kohya": None if is_folder else str(paths[1]),
        "step": step,
        # Their prompts have been told; many long ones would not fit into a line.
        "samples": [
            {"step": sample.step, "index": sample.index, "path": str(sample.path)}
            for sample in samples
        ],
    }


def _dtype(request: TrainingRequest) -> torch.dtype:
    return compute_dtype(request.config, request.device)


def _prove(
    paths: Sequence[Path],
    weights: Mapping[str, torch.Tensor],
    request: TrainingRequest,
    settings: RenderSettings,
    on_step: Callable[[], None],
) -> list[np.ndarray]:
    """A picture made with each of the files or with the folder that was written."""
    dtype = _dtype(request)
    if request.config.tune == "unet":
        return [verify_folder(paths[0], weights, request, settings, dtype=dtype, on_step=on_step)]
    return verify_export(paths, weights, request, settings, dtype=dtype, on_step=on_step)


def _require_same_picture(pixels: np.ndarray, own: np.ndarray) -> None:
    difference = float(np.abs(pixels - own).max())
    if difference > EXPORT_TOLERANCE:
        raise CorruptFileError(f"the weights file gives another picture (by {difference:.4f})")
