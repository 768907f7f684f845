"""Tells what a diffusers folder holds and which of its files are needed; no torch, no Django.

Only safetensors weights, JSON and tokenizer text are ever chosen. What a folder carries besides
(pickles beside safetensors, safety checkers, single-file copies) is left where it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from models_app.inspection import InspectionError, read_header, read_json

INDEX_NAME = "model_index.json"
# Not part of the weights: the picture that may stand for them.
THUMBNAIL_NAME = "thumbnail.webp"
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
VAE_FACTOR = 8
SD2_TEXT_WIDTH = 1024

_STILL = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_STILL_XL = (*_STILL, "text_encoder_2", "tokenizer_2")
COMPONENTS = {
    "StableDiffusionPipeline": _STILL,
    "StableDiffusionInpaintPipeline": _STILL,
    "StableDiffusionXLPipeline": _STILL_XL,
    "StableDiffusionXLInpaintPipeline": _STILL_XL,
    "StableVideoDiffusionPipeline": (
        "unet",
        "vae",
        "image_encoder",
        "feature_extractor",
        "scheduler",
    ),
}
# The file that says what a component is, and the stem of its weights.
CONFIGS = {
    "scheduler": "scheduler_config.json",
    "feature_extractor": "preprocessor_config.json",
    "tokenizer": "tokenizer_config.json",
    "tokenizer_2": "tokenizer_config.json",
}
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "image_encoder": "model",
}
TOKENIZER_FILES = {
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
}
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


@dataclass(frozen=True)
class ChosenFile:
    """One needed file: where it lies in the source, and its name in ours (both relative)."""

    source: str
    target: str


@dataclass(frozen=True)
class FolderReport:
    """What a diffusers folder is, as far as its headers and configurations tell.

    Attributes:
        architecture: ``sd1 | sd2 | sdxl | svd``.
        category: ``image | video``.
        prediction_type: ``epsilon | v_prediction | sample``.
        width: Picture width the UNet was made for, in pixels.
        height: Picture height, in pixels.
        is_inpainting: Whether the UNet reads a mask and the picture around it beside the latents,
            and so paints nothing but parts of pictures.
        files: All needed files but ``model_index.json``.
        model_index: The index, without the components that are not kept.
    """

    architecture: str
    category: str
    prediction_type: str
    width: int
    height: int
    is_inpainting: bool
    files: tuple[ChosenFile, ...]
    model_index: dict[str, Any]


def pipeline_components(index: dict[str, Any]) -> tuple[str, ...]:
    """Return the components a pipeline of this index needs.

    Raises:
        InspectionError: ``unsupported_pipeline``.
    """
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in COMPONENTS:
        known = ", ".join(COMPONENTS)
        raise InspectionError(
            "unsupported_pipeline", f"This is a {str(name)[:80]!r}; the site runs {known}."
        )
    return COMPONENTS[name]


def choose_files(
    names: Iterable[str], components: tuple[str, ...], *, half_precision: bool = False
) -> tuple[ChosenFile, ...]:
    """Choose the needed files among the names of a folder or repository.

    Full-precision weights are preferred; 16-bit variants are taken where nothing else lies there,
    or everywhere on request, and then carry the plain name, so that every folder loads alike.

    Args:
        names: Relative names with slashes.
        components: From `pipeline_components`.
        half_precision: Prefer the ``fp16`` variants.

    Raises:
        InspectionError: A component's configuration or weights are missing or pickled.
    """
    by_component: dict[str, set[str]] = {component: set() for component in components}
    for name in names:
        parts = PurePosixPath(name).parts
        if len(parts) == 2 and parts[0] in by_component:
            by_component[parts[0]].add(parts[1])
    chosen: list[ChosenFile] = []
    for component, inside in by_component.items():
        config = CONFIGS.get(component, "config.json")
        if config not in inside:
            raise InspectionError("files_missing", f"{component}/{config} is missing.")
        kept = {config: config}
        if component.startswith("tokenizer"):
            kept |= _tokenizer(component, inside)
        if component in STEMS:
            kept |= _weights(component, inside, half_precision)
        chosen += [
            ChosenFile(f"{component}/{source}", f"{component}/{target}")
            for source, target in sorted(kept.items())
        ]
    return tuple(chosen)


def _tokenizer(component: str, inside: set[str]) -> dict[str, str]:
    if "tokenizer.json" not in inside and not {"vocab.json", "merges.txt"} <= inside:
        raise InspectionError("files_missing", f"{component} has neither a vocabulary nor merges.")
    return {name: name for name in inside & TOKENIZER_FILES}


def _weights(component: str, inside: set[str], half_precision: bool) -> dict[str, str]:
    """Map the weight files of a component to the names they get."""
    stem = STEMS[component]
    plain, half = f"{stem}.safetensors", f"{stem}.fp16.safetensors"
    if half in inside and (half_precision or plain not in inside):
        return {half: plain}
    if plain in inside:
        return {plain: plain}
    index = f"{plain}.index.json"
    if index in inside:
        shards = {n: n for n in inside if n.startswith(stem) and _SHARD.search(n)}
        return {index: index, **shards}
    if any(name.endswith(PICKLE_SUFFIXES) for name in inside):
        raise InspectionError(
            "pickle_weights",
            f"{component} has only pickled weights, which can run code when they are loaded. "
            "Use a version with .safetensors weights.",
        )
    raise InspectionError("files_missing", f"{component}/{plain} is missing.")


def inspect_folder(folder: Path, *, half_precision: bool = False) -> FolderReport:
    """Decide what a diffusers folder is and check all that is needed of it.

    Args:
        folder: A folder with ``model_index.json``.
        half_precision: See `choose_files`.

    Raises:
        InspectionError: With a code and a sentence; nothing was loaded.
    """
    if not (folder / INDEX_NAME).is_file():
        raise InspectionError(
            "not_diffusers", f"{folder} is no diffusers folder: it has no {INDEX_NAME}."
        )
    index = read_json(folder / INDEX_NAME)
    components = pipeline_components(index)
    names = [path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_file()]
    files = choose_files(names, components, half_precision=half_precision)
    configs = {name: _config(folder, name) for name in components}
    shapes = _check_files(folder, files)
    architecture = _architecture(index["_class_name"], configs)
    is_inpainting = _reads_masks(architecture, configs, shapes)
    scheduler = configs["scheduler"]
    default = "v_prediction" if architecture == "svd" else "epsilon"
    prediction = scheduler.get("prediction_type", default)
    if prediction not in PREDICTION_TYPES:
        raise InspectionError(
            "config_invalid", f"The scheduler predicts {str(prediction)[:40]!r}, which is unknown."
        )
    width, height = _picture_size(configs["unet"], architecture)
    return FolderReport(
        architecture=architecture,
        category="video" if architecture == "svd" else "image",
        prediction_type=prediction,
        width=width,
        height=height,
        is_inpainting=is_inpainting,
        files=files,
        model_index=_kept_index(index, components),
    )


def _config(folder: Path, component: str) -> dict[str, Any]:
    return read_json(folder / component / CONFIGS.get(component, "config.json"))


def _check_files(folder: Path, files: tuple[ChosenFile, ...]) -> dict[str, tuple[int, ...]]:
    """Check every file; return the shapes of the UNet's tensors by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        path = folder / file.source
        if path.name.endswith(".index.json"):
            _check_shards(path)
        elif path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".safetensors":
            header = read_header(path)
            if file.source.startswith("unet/"):
                shapes |= {name: entry.shape for name, entry in header.tensors.items()}
    return shapes


def _check_shards(path: Path) -> None:
    """Check that an index names only shards that lie beside it."""
    mapping = read_json(path).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise InspectionError("config_invalid", f"{path.name} has no weight_map.")
    for shard in {str(value) for value in mapping.values()}:
        if not _SHARD.search(shard) or "/" in shard or not (path.parent / shard).is_file():
            raise InspectionError("files_missing", f"The weights {shard[:80]!r} are missing.")


def _architecture(pipeline: str, configs: dict[str, dict[str, Any]]) -> str:
    """Tell the family; the width of texts tells SD 1.x from 2.x."""
    if pipeline == "StableVideoDiffusionPipeline":
        return "svd"
    if "text_encoder_2" in COMPONENTS[pipeline]:
        return "sdxl"
    width = configs["unet"].get("cross_attention_dim")
    text = configs["text_encoder"].get("hidden_size")
    if width != text:
        raise InspectionError(
            "config_invalid",
            f"The UNet listens to texts of width {width} but the text encoder makes {text}.",
        )
    return "sd2" if width == SD2_TEXT_WIDTH else "sd1"


def _reads_masks(
    architecture: str, configs: dict[str, dict[str, Any]], shapes: dict[str, tuple[int, ...]]
) -> bool:
    """Check what the UNet reads, and tell whether it is made for inpainting.

    That is told by the UNet alone: the pipeline's name says only what its maker ran it with.
    """
    channels = configs["unet"].get("in_channels", 4)
    latent = configs["vae"].get("latent_channels", 4)
    # A clip's first picture stands beside its latents; a hole's mask and surroundings likewise.
    known = (2 * latent,) if architecture == "svd" else (latent, 2 * latent + 1)
    if channels not in known:
        raise InspectionError(
            "unsupported_pipeline",
            f"The UNet reads {channels} channels and the VAE makes {latent}: this is a model for "
            "editing or for depth, not one that paints from text or into a mask.",
        )
    first = shapes.get("conv_in.weight")
    if first is None or len(first) != 4 or first[1] != channels:
        raise InspectionError(
            "weights_invalid", "The UNet's weights do not belong to its configuration."
        )
    return architecture != "svd" and channels != latent


def _picture_size(unet: dict[str, Any], architecture: str) -> tuple[int, int]:
    """Return (width, height) in pixels; SVD's configuration does not tell its own."""
    if architecture == "svd":
        return 1024, 576
    size = unet.get("sample_size")
    if isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int for n in size):
        height, width = size
    elif type(size) is int:
        height = width = size
    else:
        raise InspectionError("config_invalid", "unet/config.json names no sample_size.")
    if not (1 <= width <= 512 and 1 <= height <= 512):
        raise InspectionError("config_invalid", "unet/config.json names an impossible sample_size.")
    return width * VAE_FACTOR, height * VAE_FACTOR


def _kept_index(index: dict[str, Any], components: tuple[str, ...]) -> dict[str, Any]:
    """Return the index with every component that is not kept marked as absent."""
    kept: dict[str, Any] = {}
    for name, value in index.items():
        is_component = isinstance(value, list) and len(value) == 2 and not name.startswith("_")
        kept[name] = [None, None] if is_component and name not in components else value
    if "safety_checker" in kept:
        kept["requires_safety_checker"] = False
    return kept
