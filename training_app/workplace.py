"""Folders on the worker's own disk: one for each run, and caches kept between runs.

Nothing here is needed for a training to come to the same end; all of it may be lost.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from django.conf import settings

from datasets_app.models import Dataset
from studio_project.cache_ceiling import trim
from training_app.models import TrainingJob


def _runs() -> Path:
    return Path(settings.STUDIO_WORK_DIR) / "training"


def _caches() -> Path:
    return Path(settings.STUDIO_WORK_DIR) / "cache"


def run_folder(job: TrainingJob) -> Path:
    """Return an empty folder for one run of a training; those of its earlier runs go."""
    shutil.rmtree(_runs() / str(job.pk), ignore_errors=True)
    folder = _runs() / str(job.pk) / str(job.epoch)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def clear_runs(job: TrainingJob) -> None:
    """Remove what a run left on this disk."""
    shutil.rmtree(_runs() / str(job.pk) / str(job.epoch), ignore_errors=True)


def cache_folder(job: TrainingJob) -> Path:
    """Return where one owner's latents of one dataset are kept between trainings."""
    folder = _cache_of(job)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cache_of(job: TrainingJob) -> Path:
    return _caches() / str(job.owner_id) / str(job.dataset_id or job.pk)


def tidy() -> None:
    """Drop what ended trainings and deleted datasets left, and caches beyond their ceiling."""
    # First the folders, then the rows: who claims a job meanwhile must not lose its folder.
    runs, caches = list(_runs().glob("*")), list(_caches().glob("*/*"))
    running = list(TrainingJob.objects.running())
    _keep_only(runs, {str(job.pk) for job in running})
    datasets = Dataset.objects.live().values_list("pk", flat=True)
    in_use = {_cache_of(job) for job in running}
    _keep_only(caches, {str(pk) for pk in datasets} | {folder.name for folder in in_use})
    trim(_caches(), spared=in_use)


def _keep_only(folders: Iterable[Path], names: set[str]) -> None:
    for folder in folders:
        if folder.name not in names:
            shutil.rmtree(folder, ignore_errors=True)
