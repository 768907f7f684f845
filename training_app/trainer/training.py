"""A training as what changes from step to step, and what a step is.

A step draws everything random from a generator that the step's number seeds, so a run
that was broken off and resumed equals an unbroken one bit for bit (CPU, fp32, same
threads). Inside a step nothing waits for the device: losses stay on it.

Shape legend: B pictures of a micro-batch, own ones first, then as many of the class if it
is preserved; C, h, w channels and sides of latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models_app.architectures import Conditioning, denoiser_arguments, get_architecture
from models_app.loading import load_components
from training_app.trainer.buckets import Bucket
from training_app.trainer.cache import LatentBank, PromptBank
from training_app.trainer.checkpoint import Checkpoint, optimizer_state, restore_optimizer
from training_app.trainer.dataset import Example, ImageSampler
from training_app.trainer.learner import Learner, compute_dtype
from training_app.trainer.learning_rate import learning_rate_at, learning_rate_factor
from training_app.trainer.objective import Draws, Objective, draw
from training_app.trainer.prompts import LivePrompts
from training_app.trainer.randomness import (
    derive_seed,
    global_states,
    restore_global_states,
    step_generator,
)
from training_app.trainer.request import TrainingRequest
from training_app.trainer.sizes import make_size_ids


class Training:
    """Networks that learn: everything that changes from step to step."""

    def __init__(
        self,
        request: TrainingRequest,
        examples: Sequence[Example],
        latents: LatentBank,
        prompts: PromptBank | None,
        class_examples: Sequence[Example] = (),
    ) -> None:
        """Loads the networks that learn.

        Args:
            request: The run.
            examples: Its own pictures.
            latents: The posteriors of those, then of the class's pictures.
            prompts: Their conditioning; ``None`` encodes prompts in every step.
            class_examples: Pictures of the class that is preserved; of every bucket that
                the own ones have.

        Raises:
            LoadingError: If the base model cannot be loaded.
        """
        self.request, self.config = request, request.config
        self._family = get_architecture(request.architecture)
        self._dtype = compute_dtype(self.config, request.device)
        noise_scheduler = load_components(
            request.base_folder, request.architecture, only=("scheduler",)
        )["scheduler"]
        self.learner = Learner(request)
        self._weights = list(self.learner.parameters.values())
        self.optimizer = torch.optim.AdamW(
            self.learner.groups(), weight_decay=self.config.weight_decay, fused=True
        )
        self._objective = Objective(
            noise_scheduler, snr_gamma=self.config.snr_gamma, device=request.device
        )
        self.sampler = ImageSampler(
            [example.bucket for example in examples], self.config.train_batch_size, self.config.seed
        )
        self._take(examples, class_examples, latents, prompts)
        self.step = 0

    def _take(
        self,
        examples: Sequence[Example],
        class_examples: Sequence[Example],
        latents: LatentBank,
        prompts: PromptBank | None,
    ) -> None:
        """Keeps what is trained on where steps find it by number."""
        together = [*examples, *class_examples]
        texts = [example.prompt for example in together]
        self._latents, self._buckets = latents, [example.bucket for example in together]
        self.prompts = prompts or LivePrompts(self.request, self.learner.networks, texts)
        self._rows = torch.tensor(latents.rows)
        self._places = torch.tensor([self.prompts.places[text] for text in texts])
        self._size_ids = make_size_ids(self._family, together, latents, self.request.device)
        self._class_members = {
            bucket: torch.tensor(
                [n for n in range(len(examples), len(together)) if self._buckets[n] == bucket]
            )
            for bucket in set(self._buckets)
        }

    def do_step(self) -> torch.Tensor:
        """One optimizer step.

        Returns:
            Its loss, on the device; not a number if a gradient was not finite.
        """
        config = self.config
        factor = learning_rate_factor(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_learning_rate"] * factor
        losses = []
        for micro_batch in range(config.gradient_accumulation_steps):
            loss = self._do_micro_batch(micro_batch) / config.gradient_accumulation_steps
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        norm = self._update()
        if self.learner.average is not None:
            self.learner.average.update(self.step)
        self.step += 1
        # Adds nothing, but makes a gradient that is not finite seen with the loss.
        return torch.stack(losses).sum() + 0 * norm

    def _do_micro_batch(self, micro_batch: int) -> torch.Tensor:
        names = (self.step, micro_batch)
        bucket, dealt = self.sampler.deal()
        members = torch.tensor(dealt)
        if self.config.has_prior:
            generator = step_generator(derive_seed(self.config.seed, "class"), *names)
            others = self._class_members[bucket]
            picks = torch.randint(len(others), (len(dealt),), generator=generator)
            members = torch.cat([members, others[picks]])
        draws = self._draw(bucket, len(members), step_generator(self.config.seed, *names))
        # Dropout inside the networks draws from the libraries' own state.
        torch.manual_seed(derive_seed(self.config.seed, "dropout", *names))
        return self._loss(bucket, members, draws)

    def _draw(self, bucket: Bucket, count: int, generator: torch.Generator) -> Draws:
        return draw(
            generator,
            (count, *self._latents.mean[bucket].shape[2:]),
            num_timesteps=self._objective.num_timesteps,
            num_variants=self._latents.variants,
            caption_dropout=self.config.caption_dropout,
        )

    def _loss(self, bucket: Bucket, members: torch.Tensor, draws: Draws) -> torch.Tensor:
        """The loss of a micro-batch.

        Args:
            bucket: Of all its pictures.
            members: (B,) which ones, by their places among all examples, on the CPU.
            draws: All that is random in it.
        """
        device = self.request.device
        mean, std = self._latents.mean[bucket], self._latents.std[bucket]
        # The empty prompt has a place of its own: a dropped caption is another index.
        places = torch.where(
            draws.keeps_caption, self._places[members], self.prompts.places[""]
        ).to(device)
        picked = (self._rows[members].to(device), draws.variants.to(device))
        noise, timesteps = draws.noise.to(device), draws.timesteps.to(device)

        latents = mean[picked] + std[picked] * draws.posterior_noise.to(device)
        noisy_latents = self._objective.add_noise(latents, noise, timesteps)
        with torch.autocast(
            torch.device(device).type, self._dtype, enabled=self._dtype != torch.float32
        ):
            tensors = dict(self.prompts.pick(places).tensors)
            if self._size_ids is not None:
                tensors["time_ids"] = self._size_ids[bucket][picked]
            model_pred = self.learner.denoiser(
                noisy_latents.to(self._dtype),
                timesteps,
                return_dict=False,
                **denoiser_arguments(self._family, Conditioning(tensors)),
            )[0]
        target = self._objective.target(latents, noise, timesteps)
        return self._weigh(model_pred, target, timesteps)

    def _weigh(
        self, model_pred: torch.Tensor, target: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """The loss of the own pictures, and that of the class's by its weight."""
        if not self.config.has_prior:
            return self._objective.loss(model_pred, target, timesteps)
        own, prior = (
            self._objective.loss(*halves)
            for halves in zip(
                *(whole.chunk(2) for whole in (model_pred, target, timesteps)), strict=True
            )
        )
        return own + self.config.prior_loss_weight * prior

    def rehearse(self) -> None:
        """Does what needs most memory in a step, and forgets it: nothing changes."""
        bucket = max(self._latents.mean, key=lambda each: each.width * each.height)
        count = self.config.train_batch_size * (2 if self.config.has_prior else 1)
        of_bucket = [n for n, each in enumerate(self._buckets) if each == bucket]
        members = torch.tensor([of_bucket[n % len(of_bucket)] for n in range(count)])
        try:
            draws = self._draw(bucket, count, torch.Generator().manual_seed(0))
            self._loss(bucket, members, draws).backward()  # type: ignore[no-untyped-call]
        finally:
            self.optimizer.zero_grad(set_to_none=True)

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
        average = self.learner.average
        return Checkpoint(
            step=self.step,
            position=self.sampler.position,
            weights=self.learner.parameters,
            average=None if average is None else average.weights,
            optimizer=optimizer_state(self.optimizer, self.learner.parameters),
            random_states=global_states(),
            learning_rate=learning_rate_at(max(0, self.step - 1), self.config),
            loss=loss,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back, or on, to a checkpoint of the same run."""
        self.learner.load(checkpoint.weights, checkpoint.average)
        restore_optimizer(self.optimizer, self.learner.parameters, checkpoint.optimizer)
        self.sampler.restore(checkpoint.position)
        restore_global_states(dict(checkpoint.random_states))
        self.step = checkpoint.step

    def release(self) -> None:
        """Lets go of the networks and the optimizer; there will be no further step."""
        del self.learner, self.optimizer, self._weights, self.prompts
