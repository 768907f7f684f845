"""Brings base models to the site: from the repository itself, from a folder, from a model hub.

Files are stored first and the row is made, or pointed to them, afterwards, so that a broken
installation leaves nothing that anybody sees. Commands call this; people's own verbs are in
``services``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils.text import slugify

from models_app.folders import INDEX_NAME, THUMBNAIL_NAME, FolderReport, inspect_folder
from models_app.hub import Hub, HubError, OnProgress
from models_app.inspection import InspectionError, sha256_of
from models_app.models import DiffusionModel
from models_app.registry import REMOTE_MODELS, STARTER, KnownModel
from studio_project import storage
from studio_project.api import Problem
from studio_project.models import Visibility

Ready = DiffusionModel.Availability.READY


class InstallationError(Exception):
    """An installation that was refused; the text is a sentence for the terminal.

    Args:
        code: One of `DiffusionModel.Failure`, or ``refused``.
        detail: The sentence.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True)
class FolderContents:
    """The files a folder will have in the storage, with their hashes, and what its UNet reads."""

    files: tuple[dict[str, Any], ...]
    sources: dict[str, Path]
    index: bytes
    sha256: str
    size_bytes: int
    is_inpainting: bool


# --- storing ------------------------------------------------------------------------------------
def read_contents(folder: Path, report: FolderReport) -> FolderContents:
    """Hash everything that is needed of a folder."""
    index = json.dumps(report.model_index, indent=2, ensure_ascii=False).encode()
    digest = hashlib.sha256(index).hexdigest()
    files: list[dict[str, Any]] = [{"name": INDEX_NAME, "size": len(index), "sha256": digest}]
    sources = {}
    for file in report.files:
        path = folder / file.source
        sources[file.target] = path
        size, digest = path.stat().st_size, sha256_of(path)
        files.append({"name": file.target, "size": size, "sha256": digest})
    files.sort(key=lambda entry: str(entry["name"]))
    return FolderContents(
        files=tuple(files),
        sources=sources,
        index=index,
        sha256=folder_sha256(files),
        size_bytes=sum(entry["size"] for entry in files),
        is_inpainting=report.is_inpainting,
    )


def folder_sha256(files: Collection[Mapping[str, Any]]) -> str:
    """Return the hash that stands for a folder: of its files' hashes in the order of names."""
    ordered = sorted(files, key=lambda entry: str(entry["name"]))
    lines = "".join(f"{entry['sha256']}  {entry['name']}\n" for entry in ordered)
    return hashlib.sha256(lines.encode()).hexdigest()


@contextmanager
def stored(contents: FolderContents) -> Iterator[dict[str, Any]]:
    """Store a folder under a fresh prefix for the time in which a row takes it over.

    Yields:
        The columns that point to the files and tell what they are. If the block raises, the files
        are removed.

    Raises:
        Problem: `disk_full`.
    """
    storage.require_free_space(contents.size_bytes)
    prefix = storage.new_key("models")
    keys: list[str] = []
    try:
        for entry in contents.files:
            key = f"{prefix}/{entry['name']}"
            keys.append(key)
            storage.save(key, contents.sources.get(str(entry["name"]), contents.index))
        yield {
            "path": prefix,
            "files": list(contents.files),
            "size_bytes": contents.size_bytes,
            "sha256": contents.sha256,
            "is_inpainting": contents.is_inpainting,
            "availability": Ready,
            "failure": "",
        }
    except BaseException:
        for key in keys:
            storage.delete(key)
        raise


# --- the models every site knows ----------------------------------------------------------------
def seed_models(starter_folder: Path) -> list[tuple[str, str]]:
    """Make the known models exist; safe to repeat, and from several machines at once.

    What administrators changed, deleted models included, stays as they left it.

    Args:
        starter_folder: The starter's weights, a diffusers folder.

    Returns:
        Names, and what was done with each: ``created | updated | unchanged | deleted``.

    Raises:
        InspectionError: The starter's folder is broken.
    """
    done = [(known.name, _seed_remote(known)) for known in REMOTE_MODELS]
    done.append((STARTER.name, _seed_starter(starter_folder)))
    return done


def _site_model(name: str) -> DiffusionModel | None:
    """Return the site's own model of this name, a living one before a deleted one."""
    rows = DiffusionModel.objects.filter(owner=None, name=name)
    return rows.filter(deleted_at=None).first() or rows.first()


def _create(known: KnownModel, **fields: Any) -> str:
    try:
        with transaction.atomic():
            DiffusionModel.objects.register(
                **{
                    **known.as_fields(),
                    "type": DiffusionModel.Type.BASE,
                    "visibility": Visibility.SHARED,
                    **fields,
                }
            )
    except IntegrityError:
        if _site_model(known.name) is None:
            raise
        return "unchanged"  # another machine was faster
    return "created"


def _seed_remote(known: KnownModel) -> str:
    model = _site_model(known.name)
    if model is None:
        return _create(known, availability=DiffusionModel.Availability.REMOTE)
    if model.deleted_at is not None:
        return "deleted"
    pinned: dict[str, Any] = {"source": known.source, "revision": known.revision}
    is_here = model.availability == Ready
    if is_here or all(getattr(model, name) == value for name, value in pinned.items()):
        return "unchanged"
    with transaction.atomic():
        model.write(**pinned)
        model.publish("changed")
    return "updated"


def _seed_starter(folder: Path) -> str:
    model = _site_model(STARTER.name)
    if model is not None and model.deleted_at is not None:
        return "deleted"
    contents = read_contents(folder, inspect_folder(folder))
    if model is None:
        with stored(contents) as columns, _stored_thumbnail(folder) as picture:
            return _create(STARTER, **columns, **picture)
    if model.sha256 == contents.sha256 and model.availability == Ready:
        return "unchanged"
    install_into(model, contents)
    return "updated"


@contextmanager
def _stored_thumbnail(folder: Path) -> Iterator[dict[str, str]]:
    """Store the picture that a folder brings, if it does, for the time until a row names it."""
    picture = folder / THUMBNAIL_NAME
    if not picture.exists():
        yield {}
        return
    key = storage.new_key("models", "thumbs", suffix=".webp")
    storage.save(key, picture)
    try:
        yield {"thumbnail_key": key}
    except BaseException:
        storage.delete(key)
        raise


def install_into(model: DiffusionModel, contents: FolderContents) -> None:
    """Point a row to new files; the old ones stay until the sweeper finds them."""
    with stored(contents) as columns, transaction.atomic():
        model.write(**columns)
        model.publish("changed")


# --- folders on a disk --------------------------------------------------------------------------
def add_folder(
    folder: Path, *, title: str = "", name: str = "", trigger_words: Collection[str] = ()
) -> tuple[DiffusionModel, FolderReport]:
    """Register a diffusers folder as a base model of the site.

    A known model that was not downloaded yet is completed, if the name is its name.

    Raises:
        InspectionError: The folder is not what the site runs.
        InstallationError: The name is taken or unusable.
        Problem: `disk_full`.
    """
    report = inspect_folder(folder)
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name) or name.isdigit():
        raise InstallationError(
            "refused",
            f"{name!r} cannot be a name: use letters, digits, dots and dashes, not digits alone "
            "(--name).",
        )
    existing = DiffusionModel.objects.live().filter(owner=None, name=name).first()
    if existing is not None and existing.availability == Ready:
        raise InstallationError(
            "refused", f"There is a model called {name} already; choose another --name."
        )
    if existing is not None and existing.architecture != report.architecture:
        raise InstallationError(
            "refused",
            f"{name} is known as {existing.architecture}, but this folder holds "
            f"{report.architecture}; choose another --name.",
        )
    contents = read_contents(folder, report)
    if existing is not None:
        install_into(existing, contents)
        return existing, report
    fields = {
        "name": name,
        "title": title or folder.resolve().name.replace("-", " ").replace("_", " "),
        "type": DiffusionModel.Type.BASE,
        "category": report.category,
        "architecture": report.architecture,
        "visibility": Visibility.SHARED,
        "trigger_words": list(trigger_words),
        "default_settings": {"width": report.width, "height": report.height},
    }
    with stored(contents) as columns, transaction.atomic():
        model = DiffusionModel.objects.register(**fields, **columns)
    return model, report


# --- model hubs ---------------------------------------------------------------------------------
def fetch(
    model: DiffusionModel,
    *,
    half_precision: bool = False,
    pause_seconds: float = 1.0,
    on_progress: OnProgress | None = None,
    on_plan: Callable[[int], None] | None = None,
) -> None:
    """Download a remote model and make it ready; continues what an earlier call began.

    Raises:
        InstallationError: With the reason, which is also kept on the row.
    """
    if not model.source or not model.revision:
        raise InstallationError("refused", f"{model.name} did not come from a model hub.")
    hub = Hub(settings.STUDIO_HUB_ENDPOINT, settings.STUDIO_HUB_TOKEN, pause_seconds)
    work = Path(settings.STUDIO_WORK_DIR) / "hub" / f"{slugify(model.name)}-{model.revision[:12]}"
    work.mkdir(parents=True, exist_ok=True)

    def plan(coming_bytes: int) -> None:
        # Twice: once where it arrives and once where it is stored.
        storage.require_free_space(2 * coming_bytes)
        if on_plan is not None:
            on_plan(coming_bytes)

    with _only_one(work):
        _note(model, DiffusionModel.Availability.DOWNLOADING)
        try:
            hub.fetch_folder(
                model.source,
                model.revision,
                work,
                half_precision=half_precision,
                on_plan=plan,
                on_progress=on_progress,
            )
            report = inspect_folder(work, half_precision=half_precision)
            if report.architecture != model.architecture:
                raise InspectionError(
                    "unsupported_pipeline", f"This is {report.architecture}, not what was expected."
                )
            install_into(model, read_contents(work, report))
        except BaseException as error:
            failure = _failure_of(error)
            _note(model, DiffusionModel.Availability.FAILED, failure.code)
            if isinstance(error, KeyboardInterrupt | Problem | HubError | InspectionError):
                raise failure from error
            raise
    shutil.rmtree(work, ignore_errors=True)


def _failure_of(error: BaseException) -> InstallationError:
    failure = DiffusionModel.Failure
    if isinstance(error, HubError):
        return InstallationError(error.code, error.detail)
    if isinstance(error, InspectionError):
        return InstallationError(failure.INVALID, error.detail)
    if isinstance(error, Problem) and error.code == "disk_full":
        return InstallationError(failure.DISK_FULL, f"{error.detail} {error.hint}")
    return InstallationError(
        failure.INTERRUPTED, "Interrupted. What has arrived is kept: the same command goes on."
    )


def _note(model: DiffusionModel, availability: str, failure: str = "") -> None:
    with transaction.atomic():
        model.write(availability=availability, failure=failure)
        model.publish("changed")


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process, whatever becomes of it."""
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InstallationError(
                "refused", "Another process is downloading this model already."
            ) from error
        yield
