"""Folders on the worker's own disk: which stay and which go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from datasets_app import services as dataset_services
from studio_project.models import User
from tests.factories import make_dataset, make_training
from training_app import workplace
from training_app.models import TrainingJob

Status = TrainingJob.Status


def test_what_no_running_training_uses_goes(alice: User) -> None:
    running, ended = (
        make_training(alice, status=status, dataset=make_dataset(alice))
        for status in (Status.RUNNING, Status.COMPLETED)
    )
    for job in (running, ended):
        workplace.run_folder(job)
        workplace.cache_folder(job)
        assert job.dataset is not None
        dataset_services.delete_dataset(alice, job.dataset)
    workplace.tidy()
    assert [path.name for path in workplace._runs().iterdir()] == [str(running.pk)]
    assert [path.name for path in workplace._caches().glob("*/*")] == [str(running.dataset_id)]


def test_a_training_that_is_claimed_meanwhile_keeps_its_folders(
    alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, folders = make_training(alice, status=Status.QUEUED), list[Path]()
    original = workplace._keep_only

    def claim_first(*args: Any) -> None:
        if not folders:
            TrainingJob.objects.filter(pk=job.pk).update(status=Status.RUNNING)
            folders.extend([workplace.run_folder(job), workplace.cache_folder(job)])
        original(*args)

    monkeypatch.setattr(workplace, "_keep_only", claim_first)
    workplace.tidy()
    assert all(folder.is_dir() for folder in folders)


def test_caches_of_running_trainings_do_not_make_room(alice: User, settings: Any) -> None:
    settings.STUDIO_CACHE_MAX_BYTES = 1
    folder = workplace.cache_folder(make_training(alice, status=Status.RUNNING))
    (folder / "latents").write_bytes(b"12345")
    os.utime(folder / "latents", (1.0, 1.0))
    workplace.tidy()
    assert (folder / "latents").exists()
