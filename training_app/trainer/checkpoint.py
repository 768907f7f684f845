"""Checkpoints: everything that a run needs to go on as if it had never stopped.

A checkpoint is a folder of safetensors and JSON, no pickle. Its weights can be used as they
are: the adapters as one file, or whole networks in folders. If the run keeps a moving
average, they are that, and the weights that learn lie beside them. It is written aside, synced,
sealed with a manifest of hashes and renamed, so it is whole or not there; one that was
damaged later is skipped for the one before.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from training_app.trainer.export import export_lora, read_lora
from training_app.trainer.files import (
    CorruptFileError,
    hash_file,
    read_tensors,
    sync_folder,
    write_file,
    write_tensors,
)
from training_app.trainer.folder_export import (
    component_files,
    component_names,
    read_networks,
    write_networks,
)
from training_app.trainer.optimizers import OptimizerState
from training_app.trainer.recovery import Adjustments
from training_app.trainer.reporting import logger
from training_app.trainer.request import TrainingRequest

#: How many of its own checkpoints a run leaves on the disk.
KEPT = 3
MANIFEST = "manifest.json"
#: Folder of the best checkpoint's weights in a later one.
BEST = "best"
#: The adapters as a weights file that can be used as it is.
ADAPTER = "adapter.safetensors"
_MASTERS = "masters.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_RANDOM = "random.safetensors"
_STATE = "state.json"
_FORMAT = 1
_NAME = re.compile(r"step-(\d{8})")
_LIBRARIES = ("torch", "diffusers", "peft", "transformers", "safetensors")


@dataclass(frozen=True)
class Best:
    """The checkpoint whose weights are the best ones so far.

    Attributes:
        step: Optimizer steps done.
        held_out_loss: What it is best by.
        folder: Where its weights lie.
    """

    step: int
    held_out_loss: float
    folder: Path


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two steps.

    Attributes:
        step: Optimizer steps done.
        position: What the sampler has dealt.
        weights: What learns, by component and name.
        average: The moving average of it, if the run keeps one.
        optimizer: State of the optimizer and the gradient scaler.
        random_states: The libraries' random states as bytes, by device.
        learning_rate: Of the last step.
        loss: Mean of the last steps that were read.
        held_out_loss: Loss of the held-out pictures, if there are any.
        adjustments: What faults have changed about the run.
        best: The checkpoint with the lowest held-out loss so far, if the run wants it.
        folder: Where it was read from.
    """

    step: int
    position: dict[str, int]
    weights: Mapping[str, torch.Tensor]
    average: Mapping[str, torch.Tensor] | None
    optimizer: OptimizerState
    random_states: Mapping[str, torch.Tensor]
    learning_rate: float
    loss: float | None
    held_out_loss: float | None
    adjustments: Adjustments
    best: Best | None
    folder: Path | None = None


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies among those of its run."""
    return folder / f"step-{step:08d}"


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, request: TrainingRequest
) -> tuple[Path, list[dict[str, Any]]]:
    """Writes a checkpoint and removes the run's oldest ones.

    Args:
        folder: Where the run's checkpoints lie.
        checkpoint: What to keep.
        request: The run it belongs to.

    Returns:
        The checkpoint's folder and ``{name, size, sha256}`` of each file in it.

    Raises:
        ChildError: ``non_finite_loss`` if a weight is not finite.
        OSError: If it cannot be written; nothing half-written is left.
    """
    best, final = checkpoint.best, checkpoint_folder(folder, checkpoint.step)
    aside = folder / f".{final.name}.{uuid.uuid4().hex}"
    state = {
        "format": _FORMAT,
        "identity": request.identity,
        "step": checkpoint.step,
        "position": checkpoint.position,
        "learning_rate": checkpoint.learning_rate,
        "loss": checkpoint.loss,
        "held_out_loss": checkpoint.held_out_loss,
        "optimizer": checkpoint.optimizer.numbers,
        "adjustments": asdict(checkpoint.adjustments),
        "best": best and [best.step, best.held_out_loss],
        "config": request.config.as_dict(),
        "versions": _versions(),
    }
    try:
        aside.mkdir(parents=True)
        _write_weights(aside, checkpoint, request)
        write_tensors(aside / _OPTIMIZER, checkpoint.optimizer.tensors, {})
        write_tensors(aside / _RANDOM, checkpoint.random_states, {})
        write_file(aside / _STATE, json.dumps(state, sort_keys=True).encode())
        names = _file_names(checkpoint.weights, request)
        if best is not None and best.step != checkpoint.step:
            names += _link_best(best.folder, aside, _weight_names(checkpoint.weights, request))
        files = [_describe(aside, name) for name in sorted(names)]
        write_file(aside / MANIFEST, json.dumps({"files": files}, sort_keys=True).encode())
        files.append(_describe(aside, MANIFEST))
        if final.exists():
            # A run that was broken off comes to the same step with the same content.
            shutil.rmtree(final)
        aside.replace(final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(folder)
    _prune(folder)
    return final, files


def _write_weights(folder: Path, checkpoint: Checkpoint, request: TrainingRequest) -> None:
    result = checkpoint.weights
    if checkpoint.average is not None:
        result = checkpoint.average
        write_tensors(folder / _MASTERS, checkpoint.weights, {})
    if request.config.tune == "unet":
        write_networks(folder, result, request)
    else:
        export_lora(folder / ADAPTER, result, request, checkpoint.step)


def _link_best(source: Path, folder: Path, names: Iterable[str]) -> list[str]:
    """Takes the best checkpoint's weights into a later one, which may outlive it.

    Returns:
        The names that they have there.
    """
    for name in names:
        target = folder / BEST / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(source / name)
        except OSError:  # another disk
            write_file(target, (source / name).read_bytes())
        sync_folder(target.parent)
    return [f"{BEST}/{name}" for name in names]


def _file_names(parameters: Collection[str], request: TrainingRequest) -> list[str]:
    """The files that a checkpoint of these parameters has beside the manifest."""
    names = [_OPTIMIZER, _RANDOM, _STATE, *_weight_names(parameters, request)]
    return [*names, _MASTERS] if request.config.use_ema else names


def _weight_names(parameters: Collection[str], request: TrainingRequest) -> list[str]:
    """The files that the weights of these parameters are in."""
    if request.config.tune != "unet":
        return [ADAPTER]
    return [name for each in component_names(parameters) for name in component_files(each)]


def read_weights(
    folder: Path, request: TrainingRequest, parameters: Collection[str]
) -> Mapping[str, torch.Tensor]:
    """Reads the weights that a checkpoint shows the world.

    Args:
        folder: The checkpoint, or what it keeps of the best one.
        request: The run.
        parameters: Names of what learns in it.

    Raises:
        CorruptFileError: If a file is damaged.
        FileNotFoundError: If a file is not there.
    """
    if request.config.tune == "unet":
        return read_networks(folder, parameters)
    return read_lora(folder / ADAPTER)


def _describe(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return {"name": name, "size": path.stat().st_size, "sha256": hash_file(path)}


def _prune(folder: Path) -> None:
    for old in list_checkpoints(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first; whether they are whole is not asked."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, reverse=True)


def load_checkpoint(
    folder: Path, request: TrainingRequest, parameters: Collection[str]
) -> Checkpoint:
    """Reads a checkpoint after checking every file of it.

    Args:
        folder: The checkpoint.
        request: The run.
        parameters: Names of what learns in it.

    Raises:
        CorruptFileError: If anything is missing, changed, or of another run.
    """
    try:
        state = json.loads((folder / _STATE).read_bytes())
        names = _file_names(parameters, request)
        best = _read_best(state, folder)
        if best is not None and best.step != state["step"]:
            names += [f"{BEST}/{name}" for name in _weight_names(parameters, request)]
        written = json.loads((folder / MANIFEST).read_bytes())["files"]
        if written != [_describe(folder, name) for name in sorted(names)]:
            raise CorruptFileError("its files are not those that were written")
        if state["format"] != _FORMAT or state["identity"] not in request.identities:
            raise CorruptFileError("it belongs to another run")
        result, has_average = read_weights(folder, request, parameters), request.config.use_ema
        return Checkpoint(
            step=int(state["step"]),
            position=state["position"],
            weights=read_tensors(folder / _MASTERS)[0] if has_average else result,
            average=result if has_average else None,
            optimizer=OptimizerState(read_tensors(folder / _OPTIMIZER)[0], state["optimizer"]),
            random_states=read_tensors(folder / _RANDOM)[0],
            learning_rate=float(state["learning_rate"]),
            loss=state["loss"],
            held_out_loss=state["held_out_loss"],
            adjustments=Adjustments(**state["adjustments"]),
            best=best,
            folder=folder,
        )
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise CorruptFileError(f"{type(exc).__name__}: {exc}") from exc


def _read_best(state: Mapping[str, Any], folder: Path) -> Best | None:
    if state["best"] is None:
        return None
    step, loss = state["best"]
    return Best(step, loss, folder if step == state["step"] else folder / BEST)


def _candidates(resume_folder: Path) -> Iterator[Path]:
    """The named checkpoint or those in the named folder, then older ones beside it."""
    is_named = _NAME.fullmatch(resume_folder.name) is not None
    if not is_named and not (resume_folder / _STATE).exists():
        yield from list_checkpoints(resume_folder)
        return
    yield resume_folder
    if not is_named:
        return
    for other in list_checkpoints(resume_folder.parent):
        if other.name < resume_folder.name:
            yield other


def find_checkpoint(
    request: TrainingRequest, parameters: Collection[str], on_damaged: Callable[[str], None]
) -> Checkpoint | None:
    """The newest checkpoint that is whole, of those that the run may go on from.

    Args:
        request: The run; its ``resume_folder`` is a checkpoint or a folder of them.
        parameters: Names of what learns in it.
        on_damaged: Is told the name of each one that had to be skipped.

    Returns:
        ``None`` if there is none: the run then begins anew and comes to the same end.
    """
    if request.resume_folder is None:
        return None
    for folder in _candidates(request.resume_folder):
        try:
            return load_checkpoint(folder, request, parameters)
        except CorruptFileError as exc:
            logger.warning("checkpoint %s is skipped: %s", folder.name, exc)
            on_damaged(folder.name)
    return None
