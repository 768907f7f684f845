"""A compiled denoiser: the same step as fewer, larger kernels. It pays for itself in long runs.

The network is compiled once for each shape of its batches, before the first step, so that no
step waits for it. Samples and held-out losses go the ordinary way (``Learner.at_rest``): their
shapes would be compiled too. Compiled steps differ from ordinary ones by rounding; a run and
what it is resumed to are compiled alike, by its settings.
"""

from __future__ import annotations

import os

import torch

from studio_project.child_protocol import is_out_of_memory
from training_app.trainer.reporting import Reporter, logger
from training_app.trainer.training import Training

#: ``auto`` compiles on a GPU from so many steps on for each shape: minutes at the start of hours,
#: of which others have published a tenth to a half less. On a CPU it gains less
#: (docs/benchmarks.md: 8 to 20 % of a step, for 100 s at the beginning of every turn), so there it
#: must be asked for.
PAYS_AFTER_STEPS = 20_000
#: Who makes the kernels; needs a C++ compiler, on a GPU also Triton.
BACKEND = "inductor"


def settle_compiling(training: Training, reporter: Reporter) -> bool:
    """Compiles the denoiser if the run asks for it, or is long enough to gain by it.

    Args:
        training: What shall be trained; a step of each shape is rehearsed.
        reporter: Is told that it takes a while, or that it cannot be done here.

    Returns:
        Whether it is compiled.

    Raises:
        StopRun: If the run shall stop.
        torch.OutOfMemoryError: Memory ran out.
    """
    config, shapes = training.config, training.sampler.buckets
    on_gpu = training.request.device.startswith("cuda")
    pays = on_gpu and config.max_train_steps >= PAYS_AFTER_STEPS * len(shapes)
    if config.torch_compile == "off" or (config.torch_compile == "auto" and not pays):
        return False
    _prepare_libraries(training)
    training.learner.compile(BACKEND)
    try:
        for number, bucket in enumerate(shapes):
            reporter.phase("compiling", number, len(shapes))
            reporter.raise_if_stopped(training.step)
            training.rehearse(bucket)
    except RuntimeError as exc:
        if is_out_of_memory(exc):
            raise
        logger.exception("the network cannot be compiled here")
        training.learner.compile(None)
        reporter.note("not_compiled")
        return False
    return True


def _prepare_libraries(training: Training) -> None:
    # An earlier attempt's network, which a fault has ended, is another one.
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = len(training.sampler.buckets) + 1
    # What is compiled is code: it lies with the run's own caches, not in a folder of everybody's.
    folder = training.request.cache_folder.resolve() / "compiled"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    # No helper processes, which would outlive a trainer that is killed.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
