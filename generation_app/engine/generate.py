"""Paints the pictures of one text-to-image request on a warm pipeline.

Each picture has its own seed, its own generator on the CPU and a batch of its own, so it can be
made again alone, bit for bit. What a request means is checked here once more: the engine trusts
nobody. It neither loads pipelines nor catches failures; ``resident`` does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from generation_app.engine import preview, prompts
from generation_app.engine.adapters import LoraFile
from generation_app.engine.denoise import (
    Conditioning,
    Step,
    condition,
    decode,
    denoise,
    needs_negative,
    require_finite,
)
from generation_app.engine.errors import EngineError, RequestError, StoppedError
from generation_app.engine.metadata import FORMAT_VERSION, library_versions, save_png
from generation_app.engine.pipelines import WarmPipeline
from generation_app.engine.request import FIELD_NAMES, GenerationRequest, Limits, resolve_request
from generation_app.engine.schedulers import build_scheduler

# The site's limits are tighter; these only keep nonsense from the networks.
_ENGINE_LIMITS = Limits(max_side=8192, max_pixels=8192 * 8192, max_images=256)
_SEED_LIMIT = 2**32


class Line(Protocol):
    """What the engine needs of its line to the worker."""

    def send(self, message_type: str, /, **fields: Any) -> None:
        """Send one message."""

    def stop_requested(self) -> str | None:
        """How the request shall stop, or None."""


@dataclass(frozen=True)
class PictureOrder:
    """One request of the worker, checked."""

    request: GenerationRequest
    seeds: tuple[int, ...]
    loras: tuple[LoraFile, ...]
    base_folder: Path
    base_sha256: str
    base_name: str
    architecture: str
    output_folder: Path
    device: str
    threads: int
    preview: bool
    metadata: dict[str, Any]


class Stopwatch:
    """Adds up how long each part of a request takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Count the time since the last lap to a part."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def as_metrics(self) -> dict[str, float]:
        """Return ``{part}_seconds``, and ``seconds`` for the whole."""
        named = {f"{part}_seconds": round(value, 4) for part, value in self.seconds.items()}
        return {"seconds": round(sum(self.seconds.values()), 4), **named}


def read_order(message: Mapping[str, Any]) -> PictureOrder:
    """Check a request of the worker.

    Raises:
        EngineError: ``invalid_request`` naming the field, or ``mode_unavailable``.
    """
    if message.get("mode", "text-to-image") != "text-to-image":
        raise EngineError("mode_unavailable", mode=str(message["mode"])[:50])
    seeds = _seeds(message)
    body = {k: v for k, v in message.items() if k in FIELD_NAMES - {"loras", "seed", "num_images"}}
    body |= {"seed": seeds[0], "num_images": len(seeds)}
    architecture = _text(message, "architecture")
    try:
        request = resolve_request(body, architecture=architecture, limits=_ENGINE_LIMITS)
    except RequestError as error:
        raise EngineError("invalid_request", field=error.field, reason=error.code) from error
    metadata = message.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise EngineError("invalid_request", field="metadata")
    threads = message.get("threads", 1)
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= 1024:
        raise EngineError("invalid_request", field="threads")
    return PictureOrder(
        request=request,
        seeds=seeds,
        loras=tuple(_lora(entry) for entry in message.get("loras") or ()),
        base_folder=Path(_text(message, "base_folder")),
        base_sha256=_text(message, "base_sha256"),
        base_name=str(metadata.get("base_name") or message.get("model_name") or ""),
        architecture=architecture,
        output_folder=Path(_text(message, "output_folder")),
        device=_device(message),
        threads=threads,
        preview=bool(message.get("preview", False)),
        metadata=metadata,
    )


def _text(message: Mapping[str, Any], field: str) -> str:
    value = message.get(field)
    if not isinstance(value, str) or not value:
        raise EngineError("invalid_request", field=field)
    return value


def _seeds(message: Mapping[str, Any]) -> tuple[int, ...]:
    seeds = message.get("seeds")
    if not isinstance(seeds, list) or not seeds:
        raise EngineError("invalid_request", field="seeds")
    if any(type(seed) is not int or not 0 <= seed < _SEED_LIMIT for seed in seeds):
        raise EngineError("invalid_request", field="seeds")
    return tuple(seeds)


def _device(message: Mapping[str, Any]) -> str:
    device = str(message.get("device") or "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise EngineError("invalid_request", field="device") from error
    return device


def _lora(entry: Any) -> LoraFile:
    try:
        lora = LoraFile(
            path=Path(entry["path"]),
            sha256=str(entry["sha256"]),
            weight=float(entry.get("weight", 1.0)),
            name=str(entry.get("name") or "LoRA"),
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise EngineError("invalid_request", field="loras") from error
    if not abs(lora.weight) <= _ENGINE_LIMITS.max_lora_weight:  # also refuses NaN
        raise EngineError("invalid_request", field="loras")
    return lora


class TextToImage:
    """One request at work on one warm pipeline."""

    def __init__(
        self, warm: WarmPipeline, order: PictureOrder, line: Line, stopwatch: Stopwatch
    ) -> None:
        self._warm = warm
        self._order = order
        self._line = line
        self._stopwatch = stopwatch
        self._clock = preview.PreviewClock()
        self._scheduler: Any = None
        self.text_encoder_calls = 0
        self.unet_calls = 0

    @torch.inference_mode()
    def run(self) -> list[dict[str, Any]]:
        """Paint every picture.

        Returns:
            What each ``image`` message said, without its parameters.

        Raises:
            EngineError: A value does not fit this model, or a picture is not finite.
            StoppedError: A stop was asked for.
        """
        order = self._order
        prompts.check_clip_skip(self._warm.pipe, order.request.clip_skip)
        conditioning = self._encode()
        made = []
        for index, seed in enumerate(order.seeds):
            latents = self._denoise(index, seed, conditioning)
            made.append(self._finish(index, seed, latents))
        return made

    def notes(self) -> list[dict[str, Any]]:
        """Say what the person should know: a prompt that is longer than the model reads."""
        found = []
        for field in ("prompt", "negative_prompt"):
            text = getattr(self._order.request, field)
            tokens, limit = prompts.count_tokens(self._warm.pipe, text)
            if tokens > limit:
                params = {"field": field, "tokens": tokens, "limit": limit}
                found.append({"code": "prompt_truncated", "params": params})
        return found

    def _check_stop(self) -> None:
        how = self._line.stop_requested()
        if how is not None:
            raise StoppedError(how)

    def _phase(self, phase: str) -> None:
        self._check_stop()
        self._line.send("phase", phase=phase)

    def _encode(self) -> Conditioning:
        request = self._order.request
        positive = self._embed(request.prompt, negative=False)
        negative = None
        if needs_negative(self._warm.pipe, request.guidance_scale):
            negative = self._embed(request.negative_prompt, negative=True)
        self._stopwatch.lap("encode")
        return condition(
            self._warm.pipe,
            positive,
            negative,
            guidance_scale=request.guidance_scale,
            size=(request.width, request.height),
        )

    def _embed(self, text: str, *, negative: bool) -> prompts.Embeddings:
        warm, clip_skip = self._warm, self._order.request.clip_skip
        # Layers are never left out for the negative prompt.
        skipped = 0 if negative else clip_skip
        key = (text, skipped, negative, warm.adapters.text_encoder_key)
        found = warm.prompts.get(key)
        if found is None:
            if not self.text_encoder_calls:
                self._phase("encoding")
            self.text_encoder_calls += 1
            found = prompts.encode_text(
                warm.pipe, warm.architecture, text, clip_skip=skipped, negative=negative
            )
            warm.prompts.put(key, found)
        return found

    def _denoise(self, index: int, seed: int, conditioning: Conditioning) -> torch.Tensor:
        request, pipe = self._order.request, self._warm.pipe
        self._phase("denoising")
        self._scheduler = build_scheduler(
            request.scheduler, pipe.scheduler.config, request.num_inference_steps
        )
        latents = denoise(
            pipe,
            self._scheduler,
            conditioning,
            num_inference_steps=request.num_inference_steps,
            size=(request.width, request.height),
            generator=torch.Generator("cpu").manual_seed(seed),
            on_step=lambda step: self._on_step(index, step),
        )
        self._stopwatch.lap("denoise")
        return latents

    def _on_step(self, image_index: int, step: Step) -> None:
        """Tell of a step over the whole request, show a preview if one is due, obey a stop."""
        self.unet_calls += 1
        self._line.send(
            "step",
            step=image_index * step.total + step.index + 1,
            total_steps=len(self._order.seeds) * step.total,
            image_index=image_index,
        )
        self._check_stop()
        is_last = step.index + 1 == step.total
        if self._order.preview and not is_last and self._clock.is_due():
            started = time.monotonic()
            latents = preview.predicted_original(self._scheduler, step)
            data = preview.encode_jpeg(preview.render(self._warm, latents))
            self._clock.made(time.monotonic() - started)
            self._line.send("preview", image_index=image_index, data=data)

    def _finish(self, index: int, seed: int, latents: torch.Tensor) -> dict[str, Any]:
        """Decode, check, write and announce one picture."""
        self._phase("decoding")
        pixels = decode(self._warm.pipe, latents)
        require_finite(pixels)
        processor = self._warm.pipe.image_processor
        image: Image.Image = processor.postprocess(pixels, output_type="pil")[0]
        self._stopwatch.lap("decode")
        self._phase("saving")
        parameters = self._parameters(index, seed)
        path = self._order.output_folder / f"{index:03d}-{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        extra = {"metadata": self._order.metadata} if self._order.metadata else {}
        size = save_png(image, path, parameters | extra)
        made = {
            "index": index,
            "seed": seed,
            "path": str(path),
            "width": image.width,
            "height": image.height,
            "size_bytes": size,
        }
        self._stopwatch.lap("save")
        self._line.send("image", **made, parameters=parameters)
        return made

    def _parameters(self, index: int, seed: int) -> dict[str, Any]:
        """Every resolved value of one picture; made alone it has this seed and one picture."""
        order, warm = self._order, self._warm
        values = order.request.as_parameters()
        loras = [{"name": x.name, "weight": x.weight, "sha256": x.sha256} for x in order.loras]
        return values | {
            "format": FORMAT_VERSION,
            "software": "Studio",
            "mode": "text-to-image",
            "seed": seed,
            "num_images": 1,
            "index": index,
            "model": {
                "name": order.base_name,
                "sha256": order.base_sha256,
                "architecture": warm.architecture,
            },
            "loras": loras,
            "libraries": dict(library_versions()),
            "device": torch.device(order.device).type,
            "dtype": str(warm.pipe.unet.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }
