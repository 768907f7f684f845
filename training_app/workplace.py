"""Folders on the worker's own disk: one for each run, and caches kept between runs.

Nothing here is needed for a training to come to the same end; all of it may be lost.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from django.conf import settings

from datasets_app.models import Dataset
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
    folder = _caches() / str(job.owner_id) / str(job.dataset_id or job.pk)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tidy() -> None:
    """Drop what ended trainings and deleted datasets left, and caches beyond their ceiling."""
    running = TrainingJob.objects.running().values_list("pk", flat=True)
    _keep_only(_runs().glob("*"), {str(pk) for pk in running})
    datasets = Dataset.objects.live().values_list("pk", flat=True)
    _keep_only(_caches().glob("*/*"), {str(pk) for pk in datasets})
    _trim(_caches())


def _keep_only(folders: Iterable[Path], names: set[str]) -> None:
    for folder in list(folders):
        if folder.name not in names:
            shutil.rmtree(folder, ignore_errors=True)


def _trim(folder: Path) -> None:
    """Remove the files that were written longest ago until the ceiling is kept."""
    found = []
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if path.is_file():
            found.append((status.st_mtime, status.st_size, path))
    total = sum(size for _moment, size, _path in found)
    for _moment, size, path in sorted(found):
        if total <= settings.STUDIO_CACHE_MAX_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= size
