"""Sample pictures while a training runs: the same prompts and seeds every time.

They show what has been learned and, by one prompt without the trigger word, what may
have been lost. They touch nothing that the training draws from, and whatever goes wrong
with them, the training goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models_app.architectures import get_architecture
from models_app.device_memory import free_memory
from models_app.loading import load_components, load_noise_scheduler, make_pipeline
from studio_project.child_protocol import is_out_of_memory
from training_app.trainer.cache import PromptBank
from training_app.trainer.captions import has_word
from training_app.trainer.config import MAXIMUM_SEED
from training_app.trainer.dataset import Example
from training_app.trainer.export import RenderSettings, render
from training_app.trainer.learner import Learner, compute_dtype
from training_app.trainer.prompts import LivePrompts
from training_app.trainer.reporting import Reporter, StopRun, logger
from training_app.trainer.request import TrainingRequest

#: How many prompts are taken from the captions when none were asked for.
AUTOMATIC_PROMPTS = 2


@dataclass(frozen=True)
class Sample:
    """One sample picture that was made.

    Attributes:
        step: Optimizer steps done before it.
        index: Which of the run's prompts.
        prompt: The prompt.
        seed: Of its noise.
        path: The PNG.
        pixels: (H, W, 3) in 0…1.
    """

    step: int
    index: int
    prompt: str
    seed: int
    path: Path
    pixels: np.ndarray

    def as_message(self) -> dict[str, Any]:
        """What the worker is told of it."""
        return {
            "step": self.step,
            "index": self.index,
            "prompt": self.prompt,
            "seed": self.seed,
            "path": str(self.path),
        }


def choose_prompts(examples: Sequence[Example], request: TrainingRequest) -> list[str]:
    """The prompts of a run's samples: those asked for, else some captions; then the control.

    Of the captions the first ones are taken that differ. The control prompt is left out
    if it contains the trigger word.
    """
    config = request.config
    prompts = list(config.sample_prompts)
    if not prompts:
        prompts = list(dict.fromkeys(example.prompt for example in examples))[:AUTOMATIC_PROMPTS]
    control, word = config.control_prompt, config.trigger_word
    if control and control not in prompts and not (word and has_word(control, word)):
        prompts.append(control)
    return prompts


def save_picture(pixels: np.ndarray, path: Path) -> None:
    """Writes pixels (H, W, 3) in 0…1 as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 255).round().astype("uint8")).save(path)


def _in_own_type(decode: Any) -> Any:
    """A VAE's decoder outside of autocast: in fp16 that of SDXL overflows."""

    def decoded(latents: torch.Tensor, *given: Any, **named: Any) -> Any:
        with torch.autocast(latents.device.type, enabled=False):
            return decode(latents.to(decode.__self__.dtype), *given, **named)

    return decoded


class Previewer:
    """Makes the sample pictures of a run."""

    def __init__(
        self,
        request: TrainingRequest,
        learner: Learner,
        source: PromptBank | LivePrompts,
        prompts: Sequence[str],
        reporter: Reporter,
    ) -> None:
        """Chooses a seed for every prompt.

        Args:
            request: The run.
            learner: The networks that learn.
            source: Has, or makes, the conditioning of every prompt and the empty one.
            prompts: What the pictures show.
            reporter: Is told of every picture and asked whether to stop.
        """
        self._request = request
        self._learner = learner
        self._source = source
        self._dtype = compute_dtype(request.config, request.device)
        self._reporter = reporter
        self.settings = [
            RenderSettings(prompt, (request.config.seed + i) % (MAXIMUM_SEED + 1), request.config)
            for i, prompt in enumerate(prompts)
        ]

    def release(self) -> None:
        """Lets go of the networks; there will be no further sample."""
        del self._learner, self._source

    def sample(self, step: int) -> list[Sample]:
        """Makes one picture for every prompt and tells the worker of each.

        Returns:
            What was made: fewer than there are prompts if something went wrong, or none if
            the run was asked to stop meanwhile.
        """
        samples: list[Sample] = []
        pipeline: Any = None
        device = torch.device(self._request.device)
        devices = [device] if device.type == "cuda" else []
        # A whole network is kept in fp32 and computes in the run's type all the same.
        is_cast = self._learner.dtype != self._dtype
        with (
            torch.random.fork_rng(devices=devices),
            torch.autocast(device.type, self._dtype, enabled=is_cast),
            self._learner.at_rest(),
        ):
            try:
                pipeline = self._make_pipeline()
                for index, settings in enumerate(self.settings):
                    samples.append(self._make(pipeline, step, index, settings))
                    self._reporter.send("sample", **samples[-1].as_message())
            except StopRun:
                logger.info("samples at step %d were broken off", step)
            except Exception as exc:
                # A picture to look at is not worth a training: say so and go on.
                logger.exception("samples at step %d failed", step)
                code = "sample_out_of_memory" if is_out_of_memory(exc) else "sample_failed"
                self._reporter.note(code, step=step)
        pipeline = None
        free_memory()
        return samples

    def _make_pipeline(self) -> Any:
        request = self._request
        vae = load_components(
            request.base_folder,
            request.architecture,
            only=("vae",),
            dtype=self._learner.dtype,
            device=request.device,
        )["vae"]
        vae.decode = _in_own_type(vae.decode)
        return make_pipeline(
            get_architecture(request.architecture),
            unet=self._learner.denoiser,
            vae=vae,
            scheduler=load_noise_scheduler(request.base_folder),
        )

    def _make(self, pipeline: Any, step: int, index: int, settings: RenderSettings) -> Sample:
        conditioning = self._source.of(settings.prompt).tensors
        empty = self._source.of("").tensors
        ready = dict(conditioning) | {f"negative_{name}": empty[name] for name in empty}
        pixels = render(
            pipeline, settings, on_step=lambda: self._reporter.raise_if_stopped(step), **ready
        )
        path = self._request.output_folder / "samples" / f"step-{step:08d}-{index}.png"
        save_picture(pixels, path)
        return Sample(step, index, settings.prompt, settings.seed, path, pixels)
