"""Makes clips from a picture with Stable Video Diffusion.

The loop is that of the plain diffusers pipeline, operation by operation, written out so that each
step is watched; see ``denoise``. Guidance rises from the first frame to the last.

Shapes: latents (1, F, C, H/8, W/8) for F frames; pixels (F, 3, H, W), -1 to 1.
Source: diffusers, StableVideoDiffusionPipeline.__call__; Blattmann et al. 2023 (arXiv 2311.15127).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from generation_app.engine import inputs, preview
from generation_app.engine.clips import save_animation, save_mp4
from generation_app.engine.denoise import require_finite
from generation_app.engine.order import Order
from generation_app.engine.pipelines import WarmPipeline
from generation_app.engine.precision import without_overflow
from generation_app.engine.request import ImageToVideoRequest
from generation_app.engine.work import Line, Stopwatch, Work


@dataclass(frozen=True)
class _Told:
    """What the UNet is told beside the latents; with guidance the unguided half comes first.

    ``image_latents`` (B, F, C, h, w), ``image_embeds`` (B, 1, D), ``time_ids`` (B, 3),
    ``guidance`` (1, F, 1, 1, 1).
    """

    image_latents: torch.Tensor
    image_embeds: torch.Tensor
    time_ids: torch.Tensor
    guidance: torch.Tensor
    is_guided: bool


class Clips(Work):
    """One request for clips at work; each seed makes one."""

    def __init__(self, warm: WarmPipeline, order: Order, line: Line, stopwatch: Stopwatch) -> None:
        super().__init__(warm, order, line, stopwatch)
        request = order.request
        if not isinstance(request, ImageToVideoRequest):
            raise TypeError(f"{order.mode} makes no clips")
        self._request = request

    @torch.inference_mode()
    def run(self) -> list[dict[str, Any]]:
        """Make every clip; see ``Work.run``."""
        request, pipe = self._request, self._warm.pipe
        size = (request.width, request.height)
        image = inputs.open_picture(self._order.inputs["image"], size)
        self._total_steps = len(self._order.seeds) * request.num_inference_steps
        self._phase("encoding")
        guided = request.max_guidance_scale > 1
        embeds = pipe._encode_image(image, pipe.unet.device, 1, guided)
        self.stopwatch.lap("encode")
        made = []
        for index, seed in enumerate(self._order.seeds):
            generator = torch.Generator("cpu").manual_seed(seed)
            told = self._tell(image, embeds, generator)
            latents = self._denoise(index, told, generator)
            made.append(self._finish(index, self._decode(latents)))
        return made

    def _tell(self, image: Image.Image, embeds: torch.Tensor, generator: torch.Generator) -> _Told:
        """Encode the picture with a little noise on it, and put together what the UNet is told."""
        request, pipe = self._request, self._warm.pipe
        device, dtype, frames = pipe.unet.device, embeds.dtype, request.num_frames
        guided = request.max_guidance_scale > 1
        pixels = pipe.video_processor.preprocess(
            image, height=request.height, width=request.width
        ).to(device)
        noise = randn_tensor(pixels.shape, generator=generator, device=device, dtype=pixels.dtype)
        pixels = pixels + request.noise_aug_strength * noise
        with without_overflow(pipe.vae):
            latents = pipe._encode_vae_image(pixels, device, 1, guided).to(dtype)
        # The model was taught the rate less one.
        time_ids = pipe._get_add_time_ids(
            request.fps - 1,
            request.motion_bucket_id,
            request.noise_aug_strength,
            dtype,
            1,
            1,
            guided,
        )
        scales = torch.linspace(request.min_guidance_scale, request.max_guidance_scale, frames)
        return _Told(
            image_latents=latents.unsqueeze(1).repeat(1, frames, 1, 1, 1),
            image_embeds=embeds,
            time_ids=time_ids.to(device),
            guidance=scales.to(device, dtype).view(1, frames, 1, 1, 1),
            is_guided=guided,
        )

    def _denoise(self, index: int, told: _Told, generator: torch.Generator) -> torch.Tensor:
        """Return the clean latents (1, F, C, h, w) of one clip."""
        request, pipe = self._request, self._warm.pipe
        self._phase("denoising")
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        scheduler.set_timesteps(request.num_inference_steps, device=pipe.unet.device)
        latents = _draw_noise(pipe, request, told.image_embeds.dtype, generator)
        latents = latents * scheduler.init_noise_sigma
        timesteps = scheduler.timesteps
        for done, timestep in enumerate(timesteps, start=1):
            model_pred = self._predict(
                scheduler.scale_model_input(latents, timestep), timestep, told
            )
            stepped = scheduler.step(model_pred, timestep, latents, return_dict=False)
            latents, clean = stepped[0], stepped[-1]
            self._stepped(
                index,
                lambda clean=clean: self._render(clean),  # type: ignore[misc]
                is_last=done == len(timesteps),
            )
        self.stopwatch.lap("denoise")
        return latents

    def _predict(
        self, model_input: torch.Tensor, timestep: torch.Tensor, told: _Told
    ) -> torch.Tensor:
        if told.is_guided:
            model_input = torch.cat([model_input] * 2)
        model_pred: torch.Tensor = self._warm.pipe.unet(
            torch.cat([model_input, told.image_latents], dim=2),
            timestep,
            encoder_hidden_states=told.image_embeds,
            added_time_ids=told.time_ids,
            return_dict=False,
        )[0]
        if not told.is_guided:
            return model_pred
        unguided, guided = model_pred.chunk(2)
        return unguided + told.guidance * (guided - unguided)

    def _render(self, latents: torch.Tensor) -> Image.Image:
        """Show the middle frame; a VAE that decodes over time is too dear for a preview."""
        middle = latents[:, latents.shape[1] // 2]
        return preview.render(self._warm, middle, may_decode=False)

    def _decode(self, latents: torch.Tensor) -> list[Image.Image]:
        request, pipe = self._request, self._warm.pipe
        self._phase("decoding")
        frames = pipe.decode_latents(latents, request.num_frames, request.decode_chunk_size)
        require_finite(frames)
        images: list[Image.Image] = pipe.video_processor.postprocess_video(frames, "pil")[0]
        self.stopwatch.lap("decode")
        return images

    def _finish(self, index: int, frames: list[Image.Image]) -> dict[str, Any]:
        """Write and announce one clip."""
        self._phase("saving")
        parameters, written = self._written(index)
        path, fps = self._path(index, "mp4"), self._request.fps
        save_mp4(frames, path, fps=fps, parameters=written)
        animation = self._path(index, "webp")
        save_animation(frames, animation, fps=fps, parameters=written)
        still = self._path(index, "png")
        frames[0].save(still)
        return self._announce(
            index, path, frames[0], parameters, animation=str(animation), still=str(still)
        )


def _draw_noise(
    pipe: Any, request: ImageToVideoRequest, dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """Draw the noise (1, F, C, h, w) a clip grows from."""
    factor = pipe.vae_scale_factor
    shape = (
        1,
        request.num_frames,
        pipe.unet.config.in_channels // 2,
        request.height // factor,
        request.width // factor,
    )
    noise: torch.Tensor = randn_tensor(
        shape, generator=generator, device=pipe.unet.device, dtype=dtype
    )
    return noise
