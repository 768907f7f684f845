"""Paints the pictures of one request on a warm pipeline: from words, a picture, or one with a hole.

Each picture has its own seed, its own noise scheduler and its own generator on the CPU, so it can
be made again alone; painted alone, bit for bit. It neither loads pipelines nor answers for
failures: ``resident`` does; with whom a picture shares the UNet is the business of ``company``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from operator import attrgetter
from typing import Any

import torch
from PIL import Image

from generation_app.engine import inputs, preview, prompts, starts
from generation_app.engine.company import Painting, paint
from generation_app.engine.denoise import (
    Call,
    Conditioning,
    Step,
    condition,
    decode,
    denoise,
    needs_negative,
    require_finite,
)
from generation_app.engine.errors import EngineError
from generation_app.engine.metadata import save_picture
from generation_app.engine.order import Order
from generation_app.engine.pipelines import WarmPipeline
from generation_app.engine.request import (
    ImageToImageRequest,
    InpaintRequest,
    PictureRequest,
    TextToImageRequest,
)
from generation_app.engine.schedulers import build_scheduler
from generation_app.engine.work import Line, Stopwatch, Work

_CPU = torch.device("cpu")
_length = attrgetter("tokens")
# Makes the start of one pass with a fresh noise scheduler and the picture's own generator.
StartOf = Callable[[Any, torch.Generator], starts.Start]


class Pictures(Work):
    """One request for still pictures at work."""

    def __init__(
        self,
        warm: WarmPipeline,
        order: Order,
        line: Line,
        stopwatch: Stopwatch,
        clock: preview.PreviewClock | None = None,
    ) -> None:
        super().__init__(warm, order, line, stopwatch, clock)
        request = order.request
        if not isinstance(request, PictureRequest):
            raise TypeError(f"{order.mode} makes no still pictures")
        self._request = request
        self._embedded: dict[str, tuple[prompts.Embeddings, prompts.Embeddings | None]] = {}
        # Puts back, pixel by pixel, what lies around the hole of an inpainted picture.
        self._overlay: Callable[[Image.Image], Image.Image] = lambda image: image

    def run(self) -> list[dict[str, Any]]:
        """Paint every picture; see ``Work.run``."""
        ((_, result),) = paint(self._warm.pipe, [self], together=self._order.together)
        if isinstance(result, Exception):
            raise result
        return result

    def paintings(self) -> list[Painting]:
        """Read the words, and return each picture as what is still to be painted.

        Raises:
            EngineError: As ``Work.run``.
            StoppedError: Likewise.
        """
        request, order = self._request, self._order
        prompts.check_clip_skip(self._warm.pipe, request.clip_skip)
        for prompt in dict.fromkeys(order.prompts):
            self._embedded[prompt] = self._embed_pair(prompt)
        self.stopwatch.lap("encode")
        start_of = self._first_start()
        self._total_steps = len(order.seeds) * self._count_steps()
        return [self._painting(index, start_of) for index in range(len(order.seeds))]

    def notes(self) -> list[dict[str, Any]]:
        """Say what the person should know: a prompt that is longer than the model reads."""
        found = []
        for field, texts in (
            ("prompt", self._order.prompts),
            ("negative_prompt", (self._request.negative_prompt,)),
        ):
            read = max((prompts.understand(self._warm.pipe, t) for t in texts), key=_length)
            if read.tokens > read.limit:
                params = {"field": field, "tokens": read.tokens, "limit": read.limit}
                found.append({"code": "prompt_truncated", "params": params})
        return found

    # --- words --------------------------------------------------------------------------------
    def _embed_pair(self, prompt: str) -> tuple[prompts.Embeddings, prompts.Embeddings | None]:
        positive = self._embed(prompt, negative=False)
        if not needs_negative(self._warm.pipe, self._request.guidance_scale):
            return positive, None
        text = self._request.negative_prompt
        negative = self._embed(text, negative=True)
        lengths = [embedded.prompt_embeds.shape[1] for embedded in (positive, negative)]
        if lengths[0] > lengths[1]:
            # Without a negative prompt its filler is what stands for none (SDXL: zeros).
            filler = self._embed("", negative=not text)
            negative = prompts.lengthened(negative, lengths[0], filler)
        elif lengths[0] < lengths[1]:
            positive = prompts.lengthened(positive, lengths[1], self._embed("", negative=False))
        return positive, negative

    def _embed(self, text: str, *, negative: bool) -> prompts.Embeddings:
        warm, clip_skip = self._warm, self._request.clip_skip
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

    def _conditioning(self, prompt: str, size: tuple[int, int]) -> Conditioning:
        positive, negative = self._embedded[prompt]
        scale = self._request.guidance_scale
        return condition(self._warm.pipe, positive, negative, guidance_scale=scale, size=size)

    # --- passes -------------------------------------------------------------------------------
    def _first_start(self) -> StartOf:
        """Prepare what all seeds of the request share, and return how each of them starts."""
        pipe, request, files = self._warm.pipe, self._request, self._order.inputs
        steps, size = request.num_inference_steps, (request.width, request.height)
        if starts.reads_holes(pipe) and not isinstance(request, InpaintRequest):
            raise EngineError("invalid_request", field="model", reason="needs_mask")
        if not isinstance(request, ImageToImageRequest):
            return lambda scheduler, generator: starts.from_noise(
                pipe, scheduler, num_inference_steps=steps, size=size, generator=generator
            )
        strength = request.strength
        image = inputs.open_picture(files["image"], size)
        if not isinstance(request, InpaintRequest):
            encoded = inputs.encode_picture(pipe, image)
            return lambda scheduler, generator: starts.from_latents(
                pipe,
                scheduler,
                encoded.draw(generator),
                num_inference_steps=steps,
                strength=strength,
                generator=generator,
            )
        mask = inputs.open_mask(files["mask_image"], files["image"], size, blur=request.mask_blur)
        self._overlay = lambda made: pipe.image_processor.apply_overlay(mask, image, made)
        holed = starts.HoledPicture(pipe, image, mask)
        return lambda scheduler, generator: holed.start(
            scheduler, num_inference_steps=steps, strength=strength, generator=generator
        )

    def _count_steps(self) -> int:
        """Count the timesteps of all passes of one picture."""
        request = self._request
        passes = [(request.num_inference_steps, getattr(request, "strength", 1.0))]
        if isinstance(request, TextToImageRequest) and request.hires_size:
            passes.append((request.second_steps, request.hires_strength))
        return sum(
            len(starts.set_timesteps(self._fresh_scheduler(steps), steps, strength, _CPU))
            for steps, strength in passes
        )

    def _fresh_scheduler(self, steps: int) -> Any:
        config = self._warm.pipe.scheduler.config
        return build_scheduler(self._request.scheduler, config, steps)

    def _painting(self, index: int, start_of: StartOf) -> Painting:
        """Paint one picture through all passes, and write it."""
        request = self._request
        size = (request.width, request.height)
        second = request.hires_size if isinstance(request, TextToImageRequest) else None
        latents = yield from self._denoise(
            index, size, request.num_inference_steps, start_of, is_last=second is None
        )
        if isinstance(request, TextToImageRequest) and second is not None:
            latents = yield from self._refine(index, latents, request, second)
        return self._finish(index, latents)

    def _refine(
        self,
        index: int,
        latents: torch.Tensor,
        request: TextToImageRequest,
        size: tuple[int, int],
    ) -> Generator[Call, torch.Tensor, torch.Tensor]:
        """Enlarge a picture and paint over it: image to image, with the same seed."""
        pipe, steps = self._warm.pipe, request.second_steps
        if request.hires_upscaler == "latent":
            factor = pipe.vae_scale_factor
            small = (size[1] // factor, size[0] // factor)
            larger = torch.nn.functional.interpolate(latents, size=small, mode="bilinear")
            draw = lambda _generator: larger  # noqa: E731
        else:
            image = self._decoded(latents).resize(size, Image.Resampling.LANCZOS)
            draw = inputs.encode_picture(pipe, image).draw
        return self._denoise(
            index,
            size,
            steps,
            lambda scheduler, generator: starts.from_latents(
                pipe,
                scheduler,
                draw(generator),
                num_inference_steps=steps,
                strength=request.hires_strength,
                generator=generator,
            ),
            is_last=True,
        )

    def _denoise(
        self, index: int, size: tuple[int, int], steps: int, start_of: StartOf, *, is_last: bool
    ) -> Generator[Call, torch.Tensor, torch.Tensor]:
        """Run one pass from its start to clean latents."""
        self._phase("denoising")
        scheduler = self._fresh_scheduler(steps)
        generator = torch.Generator("cpu").manual_seed(self._order.seeds[index])

        def on_step(step: Step) -> None:
            def render() -> Image.Image:
                return preview.render(self._warm, preview.predicted_original(scheduler, step))

            self._stepped(index, render, is_last=is_last and step.index + 1 == step.total)

        latents = yield from denoise(
            scheduler,
            self._conditioning(self._order.prompts[index], size),
            start_of(scheduler, generator),
            generator=generator,
            on_step=on_step,
        )
        self.stopwatch.lap("denoise")
        return latents

    # --- the finished picture -----------------------------------------------------------------
    def _decoded(self, latents: torch.Tensor) -> Image.Image:
        self._phase("decoding")
        pixels = decode(self._warm.pipe, latents)
        require_finite(pixels)
        image: Image.Image = self._warm.pipe.image_processor.postprocess(pixels)[0]
        self.stopwatch.lap("decode")
        return image

    def _finish(self, index: int, latents: torch.Tensor) -> dict[str, Any]:
        """Decode, check, write and announce one picture."""
        image = self._overlay(self._decoded(latents))
        self._phase("saving")
        parameters, written = self._written(index)
        path = self._path(index, self._request.output_format)
        save_picture(image, path, written)
        return self._announce(index, path, image, parameters)
