"""What a training has learned becomes a model, exactly once for each checkpoint.

The weights go to the storage first, under a key of their own; the model's row and the checkpoint's
link to it are one transaction. When a training ends, the job's completion is part of it, under the
worker's claim: whoever has lost the claim registers nothing and takes the files back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from models_app.adapter_names import KOHYA_FAMILIES
from models_app.folders import inspect_folder
from models_app.inspection import InspectionError, read_json
from models_app.installation import folder_sha256, read_contents, stored
from models_app.kohya_file import to_kohya
from models_app.layouts import KOHYA_SUFFIX, SUFFIX, describe_adapter, kohya_key
from models_app.models import DiffusionModel, trained_model_name
from models_app.thumbnails import make_thumbnail
from studio_project import storage
from training_app import files
from training_app.models import TrainingCheckpoint, TrainingJob, TrainingNote

Columns = dict[str, Any]


# --- when a training ends -------------------------------------------------------------------------
def register_model(
    job: TrainingJob, weights: Path, step: int, kohya: Path | None = None
) -> DiffusionModel:
    """Store the weights, make the model's row and complete the job.

    Args:
        job: The claimed job, whose trainer has finished.
        weights: What it exported: a file of adapters, or a whole pipeline in a folder.
        step: The optimizer step whose weights these are.
        kohya: The same adapters in kohya's layout.

    Raises:
        InvalidTransition: The claim is lost; nothing was registered.
        Problem: `disk_full`; nothing was registered.
    """
    base = job.base_model
    if base is None:
        raise FileNotFoundError(f"the base model of {job.pk} is gone")
    with (
        _stored_output(job, weights, kohya) as columns,
        _stored_thumbnail(job, step) as thumbnail_key,
    ):
        job.renew_lease()
        with transaction.atomic():
            model = DiffusionModel.objects.register(
                **_fields(job, base), **columns, title=job.title, thumbnail_key=thumbnail_key
            )
            job.move(
                TrainingJob.Status.COMPLETED,
                from_=[TrainingJob.Status.RUNNING],
                epoch=job.epoch,
                output_model=model,
            )
            TrainingCheckpoint.objects.update_or_create(
                job=job,
                step=step,
                defaults={"model": model},
                create_defaults={"model": model, "epoch": job.epoch, "is_whole": False},
            )
            TrainingNote.objects.create(job=job, code="registered", params={"model": model.title})
    return model


@contextmanager
def _stored_output(job: TrainingJob, weights: Path, kohya: Path | None) -> Iterator[Columns]:
    """Store what was exported for the time in which a row takes it over; see `stored`."""
    if weights.is_dir():
        with stored(read_contents(weights, inspect_folder(weights))) as columns:
            yield columns
        return
    key = storage.new_key("models", job.pk, suffix=SUFFIX)
    stored_files = {key: weights} if kohya is None else {key: weights, kohya_key(key): kohya}
    with _taken_back(list(stored_files)):
        for place, file in stored_files.items():
            storage.save(place, file)
        yield _columns_of_files(key, [describe_adapter(file) for file in stored_files.values()])


# --- when somebody chooses a checkpoint -----------------------------------------------------------
def register_choice(
    checkpoint: TrainingCheckpoint, base: DiffusionModel, title: str
) -> tuple[DiffusionModel, bool]:
    """Make a model of a checkpoint, unless there is one by now.

    Args:
        checkpoint: Of a training of the base; its files are there.
        base: What was trained.
        title: Of the model.

    Returns:
        The checkpoint's model, and whether this call has made it.

    Raises:
        FileNotFoundError: A file of the checkpoint or of the base is gone.
        Problem: `disk_full`.
    """
    job = checkpoint.job
    with (
        _copied(checkpoint, base) as (columns, keys),
        _stored_thumbnail(job, checkpoint.step) as thumbnail_key,
    ):
        with transaction.atomic():
            rows = TrainingCheckpoint.objects.select_for_update().select_related("model")
            row = rows.get(pk=checkpoint.pk)
            if row.model is None:
                model = DiffusionModel.objects.register(
                    **_fields(job, base), **columns, title=title, thumbnail_key=thumbnail_key
                )
                TrainingCheckpoint.objects.filter(pk=row.pk).update(model=model)
                note = {"step": row.step, "model": title}
                TrainingNote.objects.create(job=job, code="chosen", params=note)
                return model, True
        # Somebody was faster; what was copied here is nobody's.
        files.remove([*keys, thumbnail_key])
        return row.model, False


@contextmanager
def _copied(
    checkpoint: TrainingCheckpoint, base: DiffusionModel
) -> Iterator[tuple[Columns, list[str]]]:
    """Copy a checkpoint's weights for the time in which a row takes them over.

    Yields:
        The columns that point to the copies, and their keys.
    """
    weights = files.weights_of(checkpoint)
    if not weights:
        raise FileNotFoundError(f"{checkpoint} has no weights")
    if weights[0]["name"] == files.ADAPTER:
        with _copied_adapters(checkpoint, base) as taken:
            yield taken
        return
    prefix = storage.new_key("models")
    entries = _pipeline_of(checkpoint, base)
    copies = {f"{prefix}/{name}": source for name, (source, _entry) in entries.items()}
    contents = [entry for _source, entry in entries.values()]
    columns = {
        "path": prefix,
        "files": contents,
        "size_bytes": sum(entry["size"] for entry in contents),
        "sha256": folder_sha256(contents),
    }
    with _taken_back(list(copies)):
        for key, source in copies.items():
            storage.copy(source, key)
        yield columns, list(copies)


@contextmanager
def _copied_adapters(
    checkpoint: TrainingCheckpoint, base: DiffusionModel
) -> Iterator[tuple[Columns, list[str]]]:
    """As `_copied`, for adapters: the file itself, and made of it the one in kohya's layout."""
    key = storage.new_key("models", checkpoint.job_id, suffix=SUFFIX)
    source = f"{checkpoint.prefix}/{files.ADAPTER}"
    work = Path(settings.STUDIO_WORK_DIR)
    work.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=work) as folder, _taken_back([key, kohya_key(key)]):
        local, kohya = storage.local_copy(source), Path(folder) / f"adapter{KOHYA_SUFFIX}"
        try:
            to_kohya(local, kohya, architecture=base.architecture, unet_config=_unet_config(base))
            entries = [describe_adapter(file) for file in (local, kohya)]
        except InspectionError as error:
            raise FileNotFoundError(f"{checkpoint} is damaged") from error
        storage.copy(source, key)
        storage.save(kohya_key(key), kohya)
        yield _columns_of_files(key, entries), [key, kohya_key(key)]


def _unet_config(base: DiffusionModel) -> dict[str, Any]:
    """Return what numbers the blocks of the base's UNet, where kohya's names need it."""
    if not KOHYA_FAMILIES[base.architecture].block_names:
        return {}
    return read_json(storage.local_copy(f"{base.path}/unet/config.json"))


def _pipeline_of(
    checkpoint: TrainingCheckpoint, base: DiffusionModel
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return a whole pipeline: the checkpoint's networks, and of the base all the rest.

    Returns:
        By name in the new folder: the key where the file lies now, and its entry.
    """
    learned = files.weights_of(checkpoint)
    replaced = {entry["name"].partition("/")[0] for entry in learned}
    pipeline = {
        entry["name"]: (f"{base.path}/{entry['name']}", entry)
        for entry in base.files
        if entry["name"].partition("/")[0] not in replaced or entry["name"].endswith("/config.json")
    }
    for entry in learned:
        pipeline[entry["name"]] = (f"{checkpoint.prefix}/{entry['name']}", entry)
    return dict(sorted(pipeline.items()))


# --- what both share ------------------------------------------------------------------------------
def _columns_of_files(key: str, entries: list[dict[str, Any]]) -> Columns:
    """The columns of a model of adapters; the first file is the one that Studio paints with."""
    return {
        "path": key,
        "files": entries,
        "size_bytes": sum(entry["size"] for entry in entries),
        "sha256": entries[0]["sha256"],
    }


def _fields(job: TrainingJob, base: DiffusionModel) -> Columns:
    word = str(job.resolved_config.get("trigger_word") or "")
    return {
        "name": _free_name(job),
        "type": job.type,
        "owner": job.owner,
        "base_model": base,
        "trigger_words": [word] if word else [],
        "source_dataset_name": job.dataset_name,
    }


def _free_name(job: TrainingJob) -> str:
    """Return the fixed name of a model of this training; of two in one second one is later."""
    moment = timezone.now()
    mine = DiffusionModel.objects.filter(owner=job.owner)
    while mine.filter(name=(name := trained_model_name(job.pk, moment))).exists():
        moment += timedelta(seconds=1)
    return name


@contextmanager
def _stored_thumbnail(job: TrainingJob, step: int) -> Iterator[str]:
    """Make the model's picture of the newest sample up to a step; without samples it is ""."""
    sample = job.samples.filter(step__lte=step).order_by("-step", "index").first()
    if sample is None:
        yield ""
        return
    key = storage.new_key("models", job.pk, "thumbs", suffix=".webp")
    with _taken_back([key]):
        with storage.open_key(sample.key) as handle:
            storage.save(key, make_thumbnail(handle))
        yield key


@contextmanager
def _taken_back(keys: list[str]) -> Iterator[None]:
    """Remove the files again if what needs them fails."""
    try:
        yield
    except BaseException:
        files.remove(keys)
        raise
