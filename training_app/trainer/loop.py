"""What happens between the steps of a training: reporting, samples, checkpoints, stopping.

:func:`train` does steps until the run is over or somebody wants it to stop; it neither
fills caches nor writes weights files. What a step is stands in ``training``.
"""

from __future__ import annotations

import time
from pathlib import Path

from training_app.trainer.checkpoint import checkpoint_folder, save_checkpoint
from training_app.trainer.meter import LossMeter
from training_app.trainer.preview import Previewer, Sample
from training_app.trainer.reporting import Reporter, StopRun
from training_app.trainer.request import TrainingRequest
from training_app.trainer.rhythm import checkpoint_rhythm
from training_app.trainer.training import Training
from training_app.trainer.validation import held_out_loss


class _Rhythm:
    """When samples and checkpoints are due."""

    def __init__(self, request: TrainingRequest) -> None:
        config = request.config
        self._sample_every = config.sample_every_steps
        self._checkpoint_every = checkpoint_rhythm(
            config.max_train_steps, config.sample_every_steps, config.checkpoint_every_steps
        )
        self._checkpoint_seconds = request.checkpoint_seconds
        self._last = config.max_train_steps
        # A run that ends with its best checkpoint makes the last samples of that.
        self._samples_last = config.choose == "best"
        self._saved_at = time.monotonic()

    def wants_sample(self, step: int) -> bool:
        if step == self._last:
            return self._samples_last  # else they are made by whoever ends the run
        return self._sample_every > 0 and step % self._sample_every == 0

    @property
    def is_late(self) -> bool:
        """Whether a checkpoint is due by the clock; the first rank's clock counts."""
        return time.monotonic() - self._saved_at >= self._checkpoint_seconds

    def wants_checkpoint(self, step: int) -> bool:
        return step % self._checkpoint_every == 0 or step == self._last

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
        RankLost: If another rank is gone.
    """
    meter, rhythm, ranks = LossMeter(request.config), _Rhythm(request), training.ranks
    if save_first:
        checkpoint_now(training, meter, request, reporter)
    saved_step = training.step
    while training.step < request.config.max_train_steps:
        reporter.phase("training")
        if reporter.is_in_the_way:
            meter.tell(training.step, reporter)
            with meter.paused():
                reporter.give_way()
        if how := ranks.agree_on_word(reporter.stop_requested()):
            meter.tell(training.step, reporter)
            if how in ("pause", "yield", "keep") and training.step > saved_step:
                checkpoint_now(training, meter, request, reporter)
            if how == "keep" and training.step > 0:
                reporter.keep()
                return meter
            raise StopRun(how, training.step)
        meter.add(training.do_step())
        is_due, is_late = ranks.agree(reporter.is_due, rhythm.is_late)
        if is_due or training.step == request.config.max_train_steps:
            meter.tell(training.step, reporter)
            reporter.memory()
        if rhythm.wants_sample(training.step):
            meter.tell(training.step, reporter)
            with meter.paused(), ranks.together():
                sample_now(training, previewer, reporter)
        if is_late or rhythm.wants_checkpoint(training.step):
            meter.tell(training.step, reporter)
            with meter.paused():
                checkpoint_now(training, meter, request, reporter)
            rhythm.saved()
            saved_step = training.step
    return meter


def sample_now(training: Training, previewer: Previewer, reporter: Reporter) -> list[Sample]:
    """Makes the sample pictures of where the training stands; the first rank does."""
    reporter.phase("sampling")
    return previewer.sample(training.step) if training.ranks.is_first else []


def checkpoint_now(
    training: Training, meter: LossMeter, request: TrainingRequest, reporter: Reporter
) -> None:
    """Writes a checkpoint of where the training stands and tells the worker.

    The first rank does; the others wait, and remember where it lies.
    """
    parent = request.output_folder / "checkpoints"
    folder = checkpoint_folder(parent, training.step)
    with training.ranks.together():
        if training.ranks.is_first:
            _write_checkpoint(training, meter, folder, reporter)
    training.settle(folder)


def _write_checkpoint(
    training: Training, meter: LossMeter, folder: Path, reporter: Reporter
) -> None:
    # A run that stands aside can be kept, but compute nothing.
    loss, step = None if reporter.is_aside else held_out_loss(training), training.step
    if loss is not None:
        reporter.send("validation", step=step, loss=loss)
    training.consider(loss, folder)
    state = training.state(meter.mean, loss)
    _, files = save_checkpoint(folder.parent, state, training.request)
    reporter.send("checkpoint", step=step, folder=str(folder), files=files, held_out_loss=loss)
