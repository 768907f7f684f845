"""The training loop: what happens in a step, and what happens between steps.

A step of :class:`Training` draws everything random from a generator that the step's
number seeds, so a run that was broken off and resumed equals an unbroken one bit for bit
(CPU, fp32, same threads). Inside a step nothing waits for the device: losses stay on it
and are read a few times a second. :func:`train` does steps until the run is over or
somebody wants it to stop; it neither fills caches nor writes weights files.

Shape legend: B pictures of a micro-batch, C, h, w channels and sides of latents.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from models_app.architectures import denoiser_arguments, get_architecture
from models_app.loading import load_components
from studio_project.child_protocol import ChildError
from training_app.trainer.adapters import add_adapters, load_adapters
from training_app.trainer.cache import LatentBank, PromptBank
from training_app.trainer.checkpoint import (
    Checkpoint,
    optimizer_state,
    restore_optimizer,
    save_checkpoint,
)
from training_app.trainer.config import TrainingConfig
from training_app.trainer.dataset import Example, ImageSampler
from training_app.trainer.objective import Objective, draw
from training_app.trainer.preview import Previewer, Sample
from training_app.trainer.randomness import (
    global_states,
    restore_global_states,
    step_generator,
)
from training_app.trainer.reporting import Reporter, StopRun
from training_app.trainer.request import TrainingRequest

#: Checkpoints are at most this share of the run apart.
CHECKPOINT_SHARE = 10


def compute_dtype(config: TrainingConfig, device: str) -> torch.dtype:
    """What the denoiser computes in; the adapters are fp32 in any case."""
    if config.mixed_precision == "bf16":
        return torch.bfloat16
    if config.mixed_precision == "auto" and device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.float32


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """The learning rate of a step, counted from 0: a linear warmup, then the shape.

    ``linear`` and ``cosine`` would reach zero one step after the last.
    """
    warmup = min(config.lr_warmup_steps, config.max_train_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.max_train_steps - warmup)
    factor = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }[config.lr_scheduler]
    return config.learning_rate * factor


class Training:
    """A denoiser that learns: everything that changes from step to step."""

    def __init__(
        self,
        request: TrainingRequest,
        examples: Sequence[Example],
        latents: LatentBank,
        prompts: PromptBank,
    ) -> None:
        """Loads the denoiser and gives it fresh adapters.

        Args:
            request: The run.
            examples: Its pictures.
            latents: Their posteriors.
            prompts: Their conditioning.

        Raises:
            LoadingError: If the base model cannot be loaded.
        """
        self.request, self.config = request, request.config
        self._family = get_architecture(request.architecture)
        self._dtype = compute_dtype(self.config, request.device)
        parts = load_components(
            request.base_folder,
            request.architecture,
            only=("unet", "scheduler"),
            dtype=self._dtype,
            device=request.device,
        )
        self.denoiser = parts["unet"]
        self.parameters = add_adapters(self.denoiser, self.config)
        self._weights = list(self.parameters.values())
        self.optimizer = torch.optim.AdamW(
            self._weights,
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        self._objective = Objective(
            parts["scheduler"], snr_gamma=self.config.snr_gamma, device=request.device
        )
        self.sampler = ImageSampler(
            [example.bucket for example in examples], self.config.train_batch_size, self.config.seed
        )
        self._latents, self._prompts = latents, prompts
        self._prompt_places = [prompts.places[example.prompt] for example in examples]
        self.step = 0

    def do_step(self) -> torch.Tensor:
        """One optimizer step.

        Returns:
            Its loss, on the device; not a number if a gradient was not finite.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, config)
        losses = []
        for micro_batch in range(config.gradient_accumulation_steps):
            loss = self._loss_of(micro_batch) / config.gradient_accumulation_steps
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        norm = self._update()
        self.step += 1
        # Adds nothing, but makes a gradient that is not finite seen with the loss.
        return torch.stack(losses).sum() + 0 * norm

    def _loss_of(self, micro_batch: int) -> torch.Tensor:
        config, device = self.config, self.request.device
        bucket, members = self.sampler.deal()
        mean, std = self._latents.mean[bucket], self._latents.std[bucket]
        draws = draw(
            step_generator(config.seed, self.step, micro_batch),
            (len(members), *mean.shape[2:]),
            num_timesteps=self._objective.num_timesteps,
            num_variants=self._latents.variants,
            caption_dropout=config.caption_dropout,
        )
        rows = torch.tensor([self._latents.rows[member] for member in members])
        places = torch.tensor([self._prompt_places[member] for member in members])
        # The empty prompt has a place of its own: a dropped caption is another index.
        places = torch.where(draws.keeps_caption, places, self._prompts.places[""])
        picked = (rows.to(device), draws.variants.to(device))
        noise, timesteps = draws.noise.to(device), draws.timesteps.to(device)

        latents = mean[picked] + std[picked] * draws.posterior_noise.to(device)
        noisy_latents = self._objective.add_noise(latents, noise, timesteps)
        conditioning = self._prompts.pick(places.to(device))
        with torch.autocast(
            torch.device(device).type, self._dtype, enabled=self._dtype != torch.float32
        ):
            model_pred = self.denoiser(
                noisy_latents.to(self._dtype),
                timesteps,
                return_dict=False,
                **denoiser_arguments(self._family, conditioning),
            )[0]
        target = self._objective.target(latents, noise, timesteps)
        return self._objective.loss(model_pred, target, timesteps)

    def _update(self) -> torch.Tensor:
        """Clips and applies the gradients; if one is not finite, nothing changes.

        Returns:
            The gradients' norm before clipping, on the device.
        """
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        if self.config.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(
                self._weights, self.config.max_grad_norm, norm, foreach=True
            )
        # The fused optimizer reads this on the device and skips the update; the host
        # learns of it from the loss.
        self.optimizer.found_inf = torch.isfinite(norm).logical_not().float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self, loss: float | None) -> Checkpoint:
        """Everything that changes from step to step."""
        return Checkpoint(
            step=self.step,
            position=self.sampler.position,
            adapters=self.parameters,
            optimizer=optimizer_state(self.optimizer, self.parameters),
            random_states=global_states(),
            learning_rate=learning_rate_at(max(0, self.step - 1), self.config),
            loss=loss,
        )

    def release(self) -> None:
        """Lets go of the networks and the optimizer; there will be no further step."""
        del self.denoiser, self.optimizer, self.parameters, self._weights

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back, or on, to a checkpoint of the same run."""
        load_adapters(self.parameters, checkpoint.adapters)
        restore_optimizer(self.optimizer, self.parameters, checkpoint.optimizer)
        self.sampler.restore(checkpoint.position)
        restore_global_states(dict(checkpoint.random_states))
        self.step = checkpoint.step


class LossMeter:
    """Losses that were not read from the device yet, and what reading them told."""

    def __init__(self, config: TrainingConfig) -> None:
        """Starts to count the time.

        Args:
            config: For the learning rates and the batch size.
        """
        self._config = config
        self._waiting: list[torch.Tensor] = []
        self._read_at = time.monotonic()
        self.images_per_second = 0.0
        self.mean: float | None = None

    def add(self, loss: torch.Tensor) -> None:
        """Takes the loss of one more step, without looking at it."""
        self._waiting.append(loss)

    def tell(self, training: Training, reporter: Reporter) -> None:
        """Reads what waits and tells the worker.

        Raises:
            ChildError: ``non_finite_loss``; no such step has changed a weight.
        """
        if not self._waiting:
            return
        losses = torch.stack(self._waiting).tolist()
        first = training.step - len(losses)
        for number, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise ChildError("non_finite_loss", step=first + number + 1)
        now = time.monotonic()
        seconds = max(1e-6, now - self._read_at)
        self.images_per_second = len(losses) * self._config.effective_batch_size / seconds
        self.mean = sum(losses) / len(losses)
        self._waiting, self._read_at = [], now
        rates = [learning_rate_at(first + number, self._config) for number in range(len(losses))]
        reporter.progress(
            "step",
            step=training.step,
            total_steps=self._config.max_train_steps,
            loss=self.mean,
            learning_rate=rates[-1],
            images_per_second=self.images_per_second,
            history=[[first + n + 1, losses[n], rates[n]] for n in range(len(losses))],
        )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves time that is not spent on steps out of the speed."""
        started_at = time.monotonic()
        yield
        self._read_at += time.monotonic() - started_at


class _Rhythm:
    """When samples and checkpoints are due."""

    def __init__(self, request: TrainingRequest) -> None:
        config = request.config
        self._sample_every = config.sample_every_steps
        self._checkpoint_every = math.ceil(config.max_train_steps / CHECKPOINT_SHARE)
        self._checkpoint_seconds = request.checkpoint_seconds
        self._last = config.max_train_steps
        self._saved_at = time.monotonic()

    def wants_sample(self, step: int) -> bool:
        # The last step's samples are made by whoever ends the run.
        return self._sample_every > 0 and step % self._sample_every == 0 and step < self._last

    def wants_checkpoint(self, step: int) -> bool:
        is_late = time.monotonic() - self._saved_at >= self._checkpoint_seconds
        return is_late or step % self._checkpoint_every == 0 or step == self._last

    def saved(self) -> None:
        self._saved_at = time.monotonic()


def train(
    training: Training, previewer: Previewer, request: TrainingRequest, reporter: Reporter
) -> LossMeter:
    """Does steps until the run is over, or until the user wants to keep what there is.

    Args:
        training: Where it stands; afterwards, where it came to.
        previewer: Makes the sample pictures.
        request: The run.
        reporter: Is told everything and asked whether to stop.

    Raises:
        StopRun: If the run shall stop; unless it was canceled a checkpoint was made.
        ChildError: ``non_finite_loss``.
        OSError: If a checkpoint cannot be written.
    """
    meter, rhythm = LossMeter(request.config), _Rhythm(request)
    saved_step = training.step
    while training.step < request.config.max_train_steps:
        reporter.phase("training")
        if how := reporter.stop_requested():
            meter.tell(training, reporter)
            if how in ("pause", "yield", "keep") and training.step > saved_step:
                checkpoint_now(training, meter, request, reporter)
            if how == "keep" and training.step > 0:
                reporter.keep()
                return meter
            raise StopRun(how, training.step)
        meter.add(training.do_step())
        if reporter.is_due or training.step == request.config.max_train_steps:
            meter.tell(training, reporter)
        if rhythm.wants_sample(training.step):
            meter.tell(training, reporter)
            with meter.paused():
                sample_now(training, previewer, reporter)
        if rhythm.wants_checkpoint(training.step):
            meter.tell(training, reporter)
            with meter.paused():
                checkpoint_now(training, meter, request, reporter)
            rhythm.saved()
            saved_step = training.step
    return meter


def sample_now(training: Training, previewer: Previewer, reporter: Reporter) -> list[Sample]:
    """Makes the sample pictures of where the training stands."""
    reporter.phase("sampling")
    return previewer.sample(training.step)


def checkpoint_now(
    training: Training, meter: LossMeter, request: TrainingRequest, reporter: Reporter
) -> None:
    """Writes a checkpoint of where the training stands and tells the worker."""
    folder, files = save_checkpoint(
        request.output_folder / "checkpoints", training.state(meter.mean), request
    )
    reporter.send("checkpoint", step=training.step, folder=str(folder), files=files)
