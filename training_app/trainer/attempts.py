"""A training from its first step to its last, over the faults that it can be helped over.

What is changed after a fault stands in ``recovery``. Nothing of a faulty attempt is used
again: the networks are loaded anew and go on from the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models_app.device_memory import free_memory
from studio_project.child_protocol import ChildError
from training_app.trainer.loop import train
from training_app.trainer.meter import LossMeter
from training_app.trainer.preview import Previewer
from training_app.trainer.recovery import Adjustments, adjust, tell
from training_app.trainer.reporting import Reporter, logger
from training_app.trainer.request import TrainingRequest
from training_app.trainer.training import Training

#: Loads what learns: from a checkpoint or from nothing, with what faults have changed.
Begin = Callable[[Path | None, Adjustments], tuple[Training, Previewer]]


def train_through(
    training: Training,
    previewer: Previewer,
    begin: Begin,
    request: TrainingRequest,
    reporter: Reporter,
) -> tuple[Training, Previewer, LossMeter]:
    """Trains to the end, if need be in several attempts.

    Args:
        training: The first attempt's beginning.
        previewer: Makes its sample pictures.
        begin: Loads the beginning of another one.
        request: The run.
        reporter: Is told everything and asked whether to stop.

    Returns:
        The last attempt: where it came to, its previewer and its meter.

    Raises:
        StopRun: If the run shall stop.
        ChildError: ``non_finite_loss`` if it came back with a smaller learning rate.
        torch.OutOfMemoryError: If a smaller micro-batch does not fit either.
        RankLost: If another rank is gone.
        OSError: If a checkpoint cannot be written.
    """
    is_first = True
    while True:
        try:
            # A later attempt saves at once what was changed, so that a resumed run knows it.
            save_first = not is_first and training.step > 0
            meter = train(training, previewer, request, reporter, save_first=save_first)
            return training, previewer, meter
        except (ChildError, RuntimeError, MemoryError) as fault:
            training.ranks.require_known(fault)
            before, folder = training.adjustments, training.saved
            after = adjust(before, fault, request.config)
            if after is None:
                raise
            logger.warning("%s at step %d", fault, training.step)
        # Outside of the handler: a fault keeps what it came through alive.
        training.release()
        previewer.release()
        free_memory()
        training, previewer = begin(folder, after)
        tell(before, after, request.config, training.step, reporter)
        is_first = False
