"""A training as what changes from step to step, and what a step is.

A step draws everything random from a generator that the step's number seeds, so a run
that was broken off and resumed equals an unbroken one bit for bit (CPU, fp32, same
threads). Inside a step nothing waits for the device: losses stay on it.

Several ranks make the same steps as one: whatever is random is drawn for the whole
micro-batch, of which each computes its rows.

Shape legend: B pictures of a micro-batch, or of a rank's share of it, own ones first, then as
many of the class if it is preserved; C, h, w channels and sides of latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from models_app.architectures import Conditioning, denoiser_arguments, get_architecture
from models_app.loading import load_components
from training_app.trainer.buckets import Bucket
from training_app.trainer.cache import LatentBank, PromptBank
from training_app.trainer.checkpoint import BEST, Best, Checkpoint
from training_app.trainer.dataset import Example, ImageSampler, choose_held_out
from training_app.trainer.learner import Learner, compute_dtype
from training_app.trainer.learning_rate import learning_rate_factor
from training_app.trainer.objective import Draws, Objective, draw
from training_app.trainer.optimizers import WeightUpdate
from training_app.trainer.prompts import LivePrompts
from training_app.trainer.randomness import (
    derive_seed,
    global_states,
    restore_global_states,
    step_generator,
)
from training_app.trainer.ranks import Ranks
from training_app.trainer.recovery import Adjustments
from training_app.trainer.request import TrainingRequest
from training_app.trainer.shared_dropout import share_dropout


class StepResult(NamedTuple):
    """What an optimizer step tells of itself.

    Attributes:
        loss: Of all ranks, on the device; not a number if a gradient was not finite.
        grad_norm: Norm of the gradients before clipping, on the device.
        learning_rate: Of the denoiser; with Prodigy the one that it has found.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor
    learning_rate: float


class Training:
    """Networks that learn: everything that changes from step to step.

    Attributes:
        step: Optimizer steps done.
        adjustments: What faults have changed about the run.
        best: The checkpoint with the lowest held-out loss so far.
        saved: Where its last checkpoint lies.
        ranks: The processes that share its batches.
    """

    def __init__(
        self,
        request: TrainingRequest,
        examples: Sequence[Example],
        latents: LatentBank,
        prompts: PromptBank | None,
        class_examples: Sequence[Example] = (),
        ranks: Ranks | None = None,
    ) -> None:
        """Loads the networks that learn.

        Args:
            request: The run.
            examples: Its own pictures.
            latents: The posteriors of those, then of the class's pictures.
            prompts: Their conditioning; ``None`` encodes prompts in every step.
            class_examples: Pictures of the class that is preserved; of every bucket that
                the own ones have.
            ranks: Who else does the same; nobody unless said.

        Raises:
            LoadingError: If the base model cannot be loaded.
        """
        self.request, self.config, self.ranks = request, request.config, ranks or Ranks()
        self._family = get_architecture(request.architecture)
        self._dtype = compute_dtype(self.config, request.device)
        noise_scheduler = load_components(
            request.base_folder, request.architecture, only=("scheduler",)
        )["scheduler"]
        self.learner = Learner(request)
        parts = 2 if self.config.has_prior else 1
        share_dropout(self.learner.networks.values(), self.ranks, parts)
        self.update = WeightUpdate(
            self.config, self.learner.groups(), dtype=self._dtype, device=request.device
        )
        self.objective = Objective(
            noise_scheduler,
            snr_gamma=self.config.snr_gamma,
            device=request.device,
            huber_delta=self.config.huber_delta if self.config.loss == "huber" else None,
        )
        self.held_out = choose_held_out(len(examples), self.config)
        members = [n for n in range(len(examples)) if n not in self.held_out]
        self.sampler = ImageSampler(examples, members, self.config.seed)
        self._take(examples, class_examples, latents, prompts)
        self.step, self.adjustments = 0, Adjustments()
        self.best: Best | None = None
        self.saved: Path | None = None

    def _take(
        self,
        examples: Sequence[Example],
        class_examples: Sequence[Example],
        latents: LatentBank,
        prompts: PromptBank | None,
    ) -> None:
        """Keeps what is trained on where steps find it by number."""
        together = [*examples, *class_examples]
        self.latents, self.buckets = latents, [example.bucket for example in together]
        texts = [text for example in together for text in example.prompts]
        self.prompts = prompts or LivePrompts(self.request, self.learner.networks, texts)
        self._places = [[self.prompts.places[text] for text in each.prompts] for each in together]
        self._class_members = {
            bucket: [n for n in range(len(examples), len(together)) if self.buckets[n] == bucket]
            for bucket in set(self.buckets)
        }

    @property
    def micro_batches(self) -> tuple[int, int]:
        """Own pictures per micro-batch, and micro-batches per step."""
        return self.adjustments.micro_batches(self.config)

    @property
    def own_share(self) -> int:
        """Own pictures that this rank computes at once."""
        return self.micro_batches[0] // self.ranks.count

    def do_step(self) -> StepResult:
        """One optimizer step; if something about it is not finite, no weight changes.

        Raises:
            torch.OutOfMemoryError: Memory ran out here or on another rank.
            RankLost: Another rank is gone.
        """
        with self.ranks.together():
            rate = self.update.set_rate(self._rate_factor(self.step))
            loss = self._add_up()
        self.ranks.average([*self.update.gradients(), loss])
        with self.ranks.together():
            norm = self.update.apply()
            if self.learner.average is not None:
                self.learner.average.update(self.step)
            loss += self.update.fault(norm)
        self.step += 1
        return StepResult(loss, norm, rate)

    def _add_up(self) -> torch.Tensor:
        """Leaves the gradients of this rank's rows of a step with the weights.

        Returns:
            Their mean loss.
        """
        size, count = self.micro_batches
        losses = []
        for micro_batch in range(count):
            loss = self._do_micro_batch(micro_batch, size) / count
            self.update.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _rate_factor(self, step: int) -> float:
        """Share of their peaks that learning rates have at a step."""
        return learning_rate_factor(step, self.config) * self.adjustments.learning_rate_factor

    def _do_micro_batch(self, micro_batch: int, size: int) -> torch.Tensor:
        names = (self.step, micro_batch)
        bucket, members = self.sampler.deal(size)
        if self.config.has_prior:
            generator = step_generator(derive_seed(self.config.seed, "class"), *names)
            others = self._class_members[bucket]
            picks = torch.randint(len(others), (size,), generator=generator).tolist()
            members += [others[pick] for pick in picks]
        draws = self._draw(bucket, len(members), step_generator(self.config.seed, *names))
        # Dropout inside the networks draws from the libraries' own state.
        torch.manual_seed(derive_seed(self.config.seed, "dropout", *names))
        if self.ranks.count > 1:
            mine = self._mine(size)
            members, draws = [members[row] for row in mine], draws.of(mine)
        return self._weigh(*self.predict(bucket, members, draws))

    def _mine(self, size: int) -> list[int]:
        """Rows of a micro-batch that this rank computes: of the own pictures and of the class."""
        own = list(range(size)[self.ranks.rows(size)])
        return own + [size + row for row in own] if self.config.has_prior else own

    def _draw(self, bucket: Bucket, count: int, generator: torch.Generator) -> Draws:
        return draw(
            generator,
            (count, *self.latents.mean[bucket].shape[1:]),
            num_timesteps=self.objective.num_timesteps,
            caption_dropout=self.config.caption_dropout,
            noise_offset=self.config.noise_offset,
        )

    def predict(
        self, bucket: Bucket, members: Sequence[int], draws: Draws
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the denoiser makes of some pictures.

        Args:
            bucket: Of all of them.
            members: Which ones, by their places among all examples.
            draws: All that is random about it.

        Returns:
            model_pred and target (B, C, h, w) and timesteps (B,), on the device.
        """
        device = self.request.device
        rows = torch.tensor(_chosen([self.latents.rows[n] for n in members], draws.variants))
        places = torch.tensor(_chosen([self._places[n] for n in members], draws.captions))
        # The empty prompt has a place of its own: a dropped caption is another index.
        places = torch.where(draws.keeps_caption, places, self.prompts.places[""])
        rows, places, noise, posterior_noise, timesteps = _sent(
            device, rows, places, draws.noise, draws.posterior_noise, draws.timesteps
        )

        mean, std = self.latents.mean[bucket][rows], self.latents.std[bucket][rows]
        latents = mean + std * posterior_noise
        noisy_latents = self.objective.add_noise(latents, noise, timesteps)
        with torch.autocast(
            torch.device(device).type, self._dtype, enabled=self._dtype != torch.float32
        ):
            tensors = dict(self.prompts.pick(places).tensors)
            if bucket in self.latents.sizes:
                tensors["time_ids"] = self.latents.sizes[bucket][rows]
            model_pred = self.learner.denoiser(
                noisy_latents.to(self._dtype),
                timesteps,
                return_dict=False,
                **denoiser_arguments(self._family, Conditioning(tensors)),
            )[0]
        return model_pred, self.objective.target(latents, noise, timesteps), timesteps

    def _weigh(
        self, model_pred: torch.Tensor, target: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """The loss of the own pictures, and that of the class's by its weight."""
        if not self.config.has_prior:
            return self.objective.loss(model_pred, target, timesteps)
        own, prior = (
            self.objective.loss(*halves)
            for halves in zip(
                *(whole.chunk(2) for whole in (model_pred, target, timesteps)), strict=True
            )
        )
        return own + self.config.prior_loss_weight * prior

    def rehearse(self, bucket: Bucket | None = None) -> None:
        """Does what needs memory in a step, and forgets it: nothing changes.

        Args:
            bucket: Of whose pictures; by default the one that needs most.
        """
        bucket = bucket or self.sampler.buckets[0]
        count = self.own_share * (2 if self.config.has_prior else 1)
        of_bucket = [n for n, each in enumerate(self.buckets) if each == bucket]
        members = [of_bucket[n % len(of_bucket)] for n in range(count)]
        device = torch.device(self.request.device)
        try:
            draws = self._draw(bucket, count, torch.Generator().manual_seed(0))
            # Dropout draws from the libraries' own state.
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                self._weigh(*self.predict(bucket, members, draws)).backward()  # type: ignore[no-untyped-call]
        finally:
            self.update.forget()

    def state(self, loss: float | None, held_out_loss: float | None) -> Checkpoint:
        """Everything that changes from step to step.

        Args:
            loss: Mean of the last steps that were read.
            held_out_loss: Loss of the held-out pictures now, if there are any.
        """
        average = self.learner.average
        return Checkpoint(
            step=self.step,
            position=self.sampler.position,
            weights=self.learner.parameters,
            average=None if average is None else average.weights,
            optimizer=self.update.state(self.learner.parameters),
            random_states=global_states(),
            learning_rate=self.config.learning_rate * self._rate_factor(max(0, self.step - 1)),
            loss=loss,
            held_out_loss=held_out_loss,
            adjustments=self.adjustments,
            best=self.best,
        )

    def consider(self, held_out_loss: float | None, folder: Path) -> None:
        """Takes the weights for the best ones if they are, and if the run wants those.

        Args:
            held_out_loss: How good they are.
            folder: The checkpoint that they go into.
        """
        if self.config.choose != "best" or held_out_loss is None:
            return
        if self.best is None or held_out_loss < self.best.held_out_loss:
            self.best = Best(self.step, held_out_loss, folder)

    def settle(self, folder: Path) -> None:
        """Remembers where the last checkpoint lies, with the best weights so far."""
        self.saved = folder
        if self.best is not None and self.best.step != self.step:
            self.best = replace(self.best, folder=folder / BEST)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back, or on, to a checkpoint of the same run."""
        self.learner.load(checkpoint.weights, checkpoint.average)
        self.update.restore(self.learner.parameters, checkpoint.optimizer)
        self.sampler.restore(checkpoint.position)
        restore_global_states(dict(checkpoint.random_states))
        self.step, self.adjustments = checkpoint.step, checkpoint.adjustments
        self.best, self.saved = checkpoint.best, checkpoint.folder

    def release(self) -> None:
        """Lets go of the networks and the optimizer; there will be no further step."""
        del self.learner, self.update, self.prompts


def _sent(device: str, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Tensors on their way to the device; a GPU is not waited for, as it would be with others."""
    if torch.device(device).type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    return [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]


def _chosen(choices: Sequence[Sequence[int]], shares: torch.Tensor) -> list[int]:
    """One of each list of choices, by a number in 0…1."""
    pairs = zip(choices, shares.tolist(), strict=True)
    return [among[min(int(share * len(among)), len(among) - 1)] for among, share in pairs]
