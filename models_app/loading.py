"""Loads a base model from its diffusers folder: whole as a pipeline, or part by part.

Only local files, only safetensors, only the classes that ``architectures`` names: a
folder cannot choose what code runs. Nothing is fetched, nothing is moved between
devices later, and no Django is imported.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from safetensors import SafetensorError

from models_app.architectures import Architecture, get_architecture
from studio_project.child_protocol import is_out_of_memory

#: Libraries that read their own configuration and have no weights.
_WITHOUT_WEIGHTS = ("tokenizer", "tokenizer_2", "feature_extractor")


class LoadingError(Exception):
    """A folder that is no base model of the architecture it is said to be."""


def quieten_libraries() -> None:
    """Keeps progress bars and advice of diffusers and transformers out of the log."""
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _class_of(library: str, name: str) -> Any:
    return getattr(importlib.import_module(library), name)


def _index(folder: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((folder / "model_index.json").read_text())
    except (OSError, ValueError) as exc:
        raise LoadingError(f"{folder.name} has no readable model_index.json") from exc
    return index


def _require_safetensors(folder: Path, component: str) -> None:
    # The libraries read a pickle where no safetensors file is, if one lets them.
    if not any((folder / component).glob("*.safetensors")):
        raise LoadingError(f"{component} has no .safetensors file")


def load_noise_scheduler(folder: Path, class_name: str | None = None) -> Any:
    """Makes the noise scheduler of a base model from its configuration.

    Args:
        folder: The base model.
        class_name: Another scheduler class of diffusers to make from the same
            configuration; by default the one that the base names.

    Raises:
        LoadingError: If the configuration is missing or names no scheduler of diffusers.
    """
    name = class_name or str(_index(folder).get("scheduler", [None, ""])[1])
    chosen = getattr(diffusers, name, None)
    if not (isinstance(chosen, type) and issubclass(chosen, SchedulerMixin)):
        raise LoadingError(f"{name!r} is no noise scheduler of diffusers")
    try:
        # `from_config` announces every key of the former class that it leaves out.
        return chosen.from_pretrained(folder, subfolder="scheduler", local_files_only=True)  # type: ignore[attr-defined]
    except OSError as exc:
        raise LoadingError(f"{folder.name} has no readable scheduler configuration") from exc


def load_components(
    folder: Path,
    architecture: str,
    *,
    only: Collection[str] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> dict[str, Any]:
    """Loads parts of a base model, ready to run: evaluation mode, no gradients.

    Args:
        folder: The base model in diffusers' layout.
        architecture: Name of its family.
        only: Folders of the parts to load (``unet``, ``vae``, ``text_encoder``,
            ``tokenizer``, ``scheduler``); all by default.
        dtype: What the weights are converted to.
        device: Where the networks go.

    Returns:
        The parts by the name of their folder. ``scheduler`` is the DDPM scheduler of the
        base's configuration: the one that adds noise in training.

    Raises:
        LoadingError: If a part is missing, unreadable or of another family.
    """
    family = get_architecture(architecture)
    wanted = {*family.classes, "scheduler"} if only is None else set(only)
    quieten_libraries()
    parts: dict[str, Any] = {}
    for component, (library, name) in family.classes.items():
        if component not in wanted:
            continue
        try:
            parts[component] = _load_part(folder, component, _class_of(library, name), dtype)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as exc:
            if is_out_of_memory(exc):
                raise
            raise LoadingError(f"{component} cannot be loaded as {name}: {exc}") from exc
        if isinstance(parts[component], torch.nn.Module):
            parts[component].to(device).eval().requires_grad_(False)
    if "scheduler" in wanted:
        parts["scheduler"] = load_noise_scheduler(folder, "DDPMScheduler")
    return parts


def _load_part(folder: Path, component: str, part_class: Any, dtype: torch.dtype) -> Any:
    if component in _WITHOUT_WEIGHTS:
        return part_class.from_pretrained(folder / component, local_files_only=True)
    _require_safetensors(folder, component)
    own_class = json.loads((folder / component / "config.json").read_text()).get("_class_name")
    if own_class not in (None, part_class.__name__):
        raise ValueError(f"it is a {own_class}")
    return part_class.from_pretrained(
        folder / component, local_files_only=True, use_safetensors=True, dtype=dtype
    )


def load_pipeline(
    folder: Path, architecture: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Any:
    """Loads a whole base model as the pipeline of its family.

    Args:
        folder: The base model in diffusers' layout.
        architecture: Name of its family.
        dtype: What the weights are converted to.
        device: Where the networks go.

    Raises:
        LoadingError: If the folder is no such model.
    """
    family = get_architecture(architecture)
    parts = load_components(
        folder, architecture, only=family.classes.keys(), dtype=dtype, device=device
    )
    return make_pipeline(family, scheduler=load_noise_scheduler(folder), **parts)


def make_pipeline(architecture: Architecture, **parts: Any) -> Any:
    """Puts loaded parts together; a part that is not given stays empty.

    A pipeline without text encoder and tokenizer takes ready prompt embeddings.
    """
    pipeline_class = _class_of("diffusers", architecture.pipeline)
    missing: dict[str, Any] = {name: None for name in architecture.classes if name not in parts}
    if architecture.pipeline == "StableDiffusionPipeline":
        # Pictures are judged by the people who ask for them: no checker, no warning of it.
        missing |= {"safety_checker": None, "feature_extractor": None}
        parts["requires_safety_checker"] = False
    if architecture.pipeline == "StableDiffusionXLPipeline":
        # It would draw a mark into every picture wherever a certain library is installed.
        parts["add_watermarker"] = False
    pipeline = pipeline_class(**parts, **missing)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
