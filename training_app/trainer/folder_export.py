"""Whole networks as files: in checkpoints, and as a complete base model of its own.

A trained network is written as fp32 under the names that other programs read. A complete
folder holds beside it everything else of the base, as hard links where the file system
has them: no byte is stored twice and none is missing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models_app.architectures import get_architecture
from models_app.loading import load_pipeline
from studio_project.child_protocol import ChildError
from training_app.trainer.export import RenderSettings, render
from training_app.trainer.files import CorruptFileError, read_tensors, write_file, write_tensors
from training_app.trainer.request import TrainingRequest

_INDEX = "model_index.json"
_CONFIG = "config.json"
#: What of a base is taken over: never a pickle.
_SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".model"})
_TEXT_PREFIX = "text_model."


def component_names(parameters: Iterable[str]) -> list[str]:
    """The networks that parameters belong to."""
    return sorted({name.partition(".")[0] for name in parameters})


def component_files(component: str) -> tuple[str, str]:
    """The files of one network: its configuration and its weights."""
    is_text = component.startswith("text_encoder")
    weights = "model.safetensors" if is_text else "diffusion_pytorch_model.safetensors"
    return f"{component}/{_CONFIG}", f"{component}/{weights}"


def _name_in_file(component: str, name: str) -> str:
    # transformers 5 took a level out of CLIP's names; older readers look for it.
    is_flat = component.startswith("text_encoder") and not name.startswith(
        (_TEXT_PREFIX, "text_projection.")
    )
    return _TEXT_PREFIX + name if is_flat else name


def write_networks(
    folder: Path, weights: Mapping[str, torch.Tensor], request: TrainingRequest
) -> None:
    """Writes each network that has weights, with the base's configuration of it.

    Args:
        folder: Gets a folder for each network.
        weights: All weights of the networks, by component and name.
        request: The run.

    Raises:
        ChildError: ``non_finite_loss`` if a weight is not finite; nothing is written.
        OSError: If a file cannot be written.
    """
    if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
        raise ChildError("non_finite_loss")
    for component in component_names(weights):
        config, file = component_files(component)
        own = {
            _name_in_file(component, name.removeprefix(f"{component}.")): weight.detach()
            for name, weight in weights.items()
            if name.startswith(f"{component}.")
        }
        write_file(folder / config, (request.base_folder / config).read_bytes())
        write_tensors(folder / file, own, {"format": "pt"})


def read_networks(folder: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Reads what :func:`write_networks` wrote.

    Args:
        folder: Where it wrote.
        names: The weights by component and name.

    Raises:
        CorruptFileError: If a file is damaged or holds other weights.
        FileNotFoundError: If one is not there.
    """
    names, found = list(names), {}
    for component in component_names(names):
        stored, _ = read_tensors(folder / component_files(component)[1])
        for name in names:
            if not name.startswith(f"{component}."):
                continue
            try:
                found[name] = stored.pop(
                    _name_in_file(component, name.removeprefix(f"{component}."))
                )
            except KeyError:
                raise CorruptFileError(f"{name} is missing") from None
        if stored:
            raise CorruptFileError(f"{component} holds weights of something else")
    return found


def export_folder(
    folder: Path, weights: Mapping[str, torch.Tensor], request: TrainingRequest
) -> None:
    """Writes a complete base model: the trained networks, and the rest of the base.

    Args:
        folder: Where it goes; what an earlier try left there is removed.
        weights: All weights of the trained networks, by component and name.
        request: The run.

    Raises:
        ChildError: ``non_finite_loss`` if a weight is not finite; nothing is written.
        OSError: If a file cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        write_networks(folder, weights, request)
        trained = component_names(weights)
        kept = [*get_architecture(request.architecture).classes, "scheduler"]
        for component in kept:
            if component not in trained:
                _take_over(request.base_folder / component, folder / component)
        index = json.loads((request.base_folder / _INDEX).read_bytes())
        for name, value in index.items():
            # What is not taken over (a safety checker, say) is not asked for either.
            if isinstance(value, list) and len(value) == 2 and name not in kept:
                index[name] = [None, None]
        write_file(folder / _INDEX, json.dumps(index, indent=2).encode())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _take_over(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in _SUFFIXES:
            try:
                # The file itself, should the base hold links to it.
                os.link(path.resolve(), target / path.name)
            except OSError:
                shutil.copyfile(path, target / path.name)


@torch.no_grad()
def verify_folder(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    request: TrainingRequest,
    settings: RenderSettings,
    *,
    dtype: torch.dtype,
    on_step: Callable[[], None],
) -> np.ndarray:
    """Loads a folder as a plain pipeline and renders a picture with it.

    Args:
        folder: The base model that was written.
        weights: What its trained networks should hold.
        request: The run.
        settings: The picture.
        dtype: What the pipeline computes in.
        on_step: Is called after every denoising step; may raise to break off.

    Returns:
        Pixels (H, W, 3) in 0…1.

    Raises:
        CorruptFileError: If the pipeline does not end up with exactly these weights, or
            the picture is not finite.
    """
    pipeline = load_pipeline(folder, request.architecture, dtype=dtype, device=request.device)
    for component in component_names(weights):
        _require_weights(component, getattr(pipeline, component), weights)
    pixels = render(pipeline, settings, on_step=on_step)
    if not np.isfinite(pixels).all():
        raise CorruptFileError("a picture made with the model is not finite")
    return pixels


def _require_weights(component: str, network: Any, weights: Mapping[str, torch.Tensor]) -> None:
    for name, value in network.named_parameters():
        if not torch.equal(value, weights[f"{component}.{name}"].to(value)):
            raise CorruptFileError(f"{component}.{name} is not what was trained")
