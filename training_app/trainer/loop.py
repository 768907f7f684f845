"""What happens between the steps of a training: reporting, samples, checkpoints, stopping.

:func:`train` does steps until the run is over or somebody wants it to stop; it neither
fills caches nor writes weights files. What a step is stands in ``training``.
"""

from __future__ import annotations

import math
import time

from training_app.trainer.checkpoint import checkpoint_folder, save_checkpoint
from training_app.trainer.meter import LossMeter
from training_app.trainer.preview import Previewer, Sample
from training_app.trainer.reporting import Reporter, StopRun
from training_app.trainer.request import TrainingRequest
from training_app.trainer.training import Training
from training_app.trainer.validation import held_out_loss

#: Unless asked otherwise, checkpoints are at most this share of the run apart.
CHECKPOINT_SHARE = 10


class _Rhythm:
    """When samples and checkpoints are due."""

    def __init__(self, request: TrainingRequest) -> None:
        config = request.config
        self._sample_every = config.sample_every_steps
        self._checkpoint_every = config.checkpoint_every_steps or math.ceil(
            config.max_train_steps / CHECKPOINT_SHARE
        )
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
    training: Training,
    previewer: Previewer,
    request: TrainingRequest,
    reporter: Reporter,
    *,
    save_first: bool = False,
) -> LossMeter:
    """Does steps until the run is over, or until the user wants to keep what there is.

    Args:
        training: Where it stands; afterwards, where it came to.
        previewer: Makes the sample pictures.
        request: The run.
        reporter: Is told everything and asked whether to stop.
        save_first: Whether where it stands is worth a checkpoint.

    Raises:
        StopRun: If the run shall stop; unless it was canceled a checkpoint was made.
        ChildError: ``non_finite_loss``.
        OSError: If a checkpoint cannot be written.
    """
    meter, rhythm = LossMeter(request.config), _Rhythm(request)
    if save_first:
        checkpoint_now(training, meter, request, reporter)
    saved_step = training.step
    while training.step < request.config.max_train_steps:
        reporter.phase("training")
        if reporter.is_in_the_way:
            meter.tell(training.step, reporter)
            with meter.paused():
                reporter.give_way()
        if how := reporter.stop_requested():
            meter.tell(training.step, reporter)
            if how in ("pause", "yield", "keep") and training.step > saved_step:
                checkpoint_now(training, meter, request, reporter)
            if how == "keep" and training.step > 0:
                reporter.keep()
                return meter
            raise StopRun(how, training.step)
        meter.add(training.do_step())
        if reporter.is_due or training.step == request.config.max_train_steps:
            meter.tell(training.step, reporter)
            reporter.memory()
        if rhythm.wants_sample(training.step):
            meter.tell(training.step, reporter)
            with meter.paused():
                sample_now(training, previewer, reporter)
        if rhythm.wants_checkpoint(training.step):
            meter.tell(training.step, reporter)
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
    # A run that stands aside can be kept, but compute nothing.
    loss, step = None if reporter.is_aside else held_out_loss(training), training.step
    if loss is not None:
        reporter.send("validation", step=step, loss=loss)
    parent = request.output_folder / "checkpoints"
    training.consider(loss, checkpoint_folder(parent, step))
    folder, files = save_checkpoint(parent, training.state(meter.mean, loss), request)
    training.settle(folder)
    reporter.send("checkpoint", step=step, folder=str(folder), files=files, held_out_loss=loss)
