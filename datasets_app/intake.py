"""Takes uploaded files into a dataset: pictures, captions, and archives of both.

Each file has an outcome of its own. A picture is decoded outside any transaction, its file is
written under a new key, and only then its row is made, together with the counts that depend on it;
if the row is not made the file is removed. Who may do this was checked before (``services``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import PurePath
from typing import Any, BinaryIO, TypedDict

from django.core.files.uploadedfile import UploadedFile
from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils.translation import gettext as _

from datasets_app import captions
from datasets_app.archives import Archive, Entry, EntryRefused
from datasets_app.captions import Caption, CaptionBook
from datasets_app.images import KeptPicture
from datasets_app.keeping import SUFFIXES, keep, temporary_file
from datasets_app.models import Dataset, DatasetImage
from datasets_app.names import clean_name
from datasets_app.refusals import Refused
from datasets_app.sentences import sentence
from studio_project import storage
from studio_project.api import Problem, disk_full
from studio_project.models import User

LOOSE = 0  # the world of files that came without an archive


class Rejection(TypedDict):
    """One file that was not taken, and why."""

    name: str
    code: str
    detail: str


@dataclass
class UploadResult:
    """What became of the files of one request.

    Args:
        created: New pictures.
        updated: Pictures that were there already and got a caption.
        rejected: What was not taken.
    """

    created: list[DatasetImage] = field(default_factory=list)
    updated: list[DatasetImage] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was taken."""
        return not self.created and not self.updated


@dataclass(frozen=True)
class _Packed:
    """An entry of an archive: `world` keeps equal folders of two archives apart."""

    archive: Archive
    entry: Entry
    world: int

    @property
    def shown_name(self) -> str:
        return self.entry.info.orig_filename


class Intake:
    """Takes the files of one request.

    Args:
        dataset: Where the pictures go.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.result = UploadResult()
        self._book = CaptionBook()
        self._orphans: set[Caption] = set()
        self._is_disk_full = False
        self._loose: list[tuple[str, BinaryIO]] = []
        self._packed: list[_Packed] = []

    def take(self, files: Sequence[UploadedFile]) -> UploadResult:
        """Take what can be taken; the result says what was not, and why.

        Raises:
            Problem: `disk_full` when not even one file could be stored; 404 when somebody deleted
                the dataset meanwhile.
        """
        for world, file in enumerate(files, start=LOOSE + 1):
            with self._refusing(name_of(file)):
                self._sort_in(world, file)
        for name, stream in self._loose:
            with self._refusing(name):
                self._take_picture(LOOSE, "", name, stream)
        self._take_packed()
        self._caption_existing()
        if self._is_disk_full and self.result.is_empty:
            raise disk_full()
        return self.result

    @contextmanager
    def _refusing(self, name: str) -> Iterator[None]:
        """Write down what is refused inside, under this name unless it brings its own."""
        try:
            yield
        except EntryRefused as refused:
            self._reject(refused.name, refused)
        except Refused as refused:
            self._reject(name, refused)
        except Problem as problem:
            if problem.code != "disk_full":
                raise
            self._is_disk_full = True
            self._reject(name, Refused("disk_full"))

    def _require_disk(self) -> None:
        """Refuse the rest at once after the disk was found full."""
        if self._is_disk_full:
            raise Refused("disk_full")

    def _reject(self, name: str, refused: Refused) -> None:
        detail = sentence(refused.code, refused.params)
        self.result.rejected.append(
            {"name": clean_name(name), "code": refused.code, "detail": detail}
        )

    # --- sorting ----------------------------------------------------------------------------------
    def _sort_in(self, world: int, file: UploadedFile) -> None:
        name, stream = name_of(file), _stream(file)
        if name.lower().endswith(".zip"):
            archive = Archive(stream)
            for refused in archive.rejected:
                self._reject(refused.name, refused)
            for entry in archive.entries:
                packed = _Packed(archive, entry, world)
                with self._refusing(packed.shown_name):
                    self._sort_in_packed(packed)
        elif limit := _caption_bytes(name):
            stream.seek(0)
            self._read_captions(LOOSE, "", name, name, stream.read(limit + 1))
        else:
            self._loose.append((name, stream))

    def _sort_in_packed(self, packed: _Packed) -> None:
        entry = packed.entry
        limit = _caption_bytes(entry.name)
        if not limit:
            self._packed.append(packed)
            return
        # What is longer than the limit is refused for its length, whatever it says.
        data = b" " * (limit + 1)
        if entry.info.file_size <= limit:
            unpacked = BytesIO()
            packed.archive.copy(entry, unpacked)
            data = unpacked.getvalue()
        self._read_captions(packed.world, entry.folder, entry.name, packed.shown_name, data)

    def _read_captions(
        self, world: int, folder: str, name: str, shown_name: str, data: bytes
    ) -> None:
        if name.lower() != captions.METADATA_NAME:
            text = captions.read_text(data)
            stem = PurePath(name).stem
            self._book.add(world, Caption(shown_name, folder, stem, text, is_stem=True))
            return
        for found in captions.read_metadata(data, shown_name, folder):
            if isinstance(found, Refused):
                self._reject(f"{shown_name}:{found.params['line']}", found)
            else:
                self._book.add(world, found)

    # --- pictures ---------------------------------------------------------------------------------
    def _take_packed(self) -> None:
        stopped: set[int] = set()
        for packed in self._packed:
            if packed.world in stopped:
                continue
            with self._refusing(packed.shown_name), temporary_file() as unpacked:
                self._require_disk()
                try:
                    packed.archive.copy(packed.entry, unpacked)
                except EntryRefused:
                    raise
                except Refused:
                    stopped.add(packed.world)  # the archive lied; nothing more of it is taken
                    raise
                entry = packed.entry
                self._take_picture(packed.world, entry.folder, entry.name, unpacked)

    def _take_picture(self, world: int, folder: str, name: str, stream: BinaryIO) -> None:
        self._require_disk()
        caption = self._book.find(world, folder, name)
        shown = clean_name(name)
        try:
            image = self._store(shown, stream, _written(caption) if caption else {})
        except (Refused, Problem) as refused:
            # Its caption is no other picture's, whatever that is called. A picture that is here
            # already under its own name gets the caption anew.
            params = refused.params if isinstance(refused, Refused) else {}
            if caption and str(params.get("other", "")).casefold() != shown.casefold():
                self._orphans.add(caption)
            raise
        self.result.created.append(image)
        if caption:
            self._book.mark_used(caption)

    def _store(self, name: str, stream: BinaryIO, written: dict[str, Any]) -> DatasetImage:
        with temporary_file() as kept:
            picture = keep(stream, kept)
            self._refuse_twin(picture)
            storage.require_free_space(picture.size_bytes)
            folder = self.dataset.path
            key = storage.new_key(folder, suffix=SUFFIXES[picture.format])
            thumbnail_key = storage.new_key(folder, "thumbs", suffix=".webp")
            try:
                storage.save(key, kept)
                storage.save(thumbnail_key, picture.thumbnail)
                return self._insert(
                    picture,
                    key=key,
                    thumbnail_key=thumbnail_key,
                    original_name=name,
                    **written,
                )
            except BaseException:
                storage.delete(key)
                storage.delete(thumbnail_key)
                raise

    def _refuse_twin(self, picture: KeptPicture) -> None:
        twin = DatasetImage.objects.live().filter(
            dataset=self.dataset, pixel_sha256=picture.pixel_sha256
        )
        if (other := twin.first()) is not None:
            raise Refused("duplicate_picture", other=other.shown_name)

    def _insert(self, picture: KeptPicture, **fields: Any) -> DatasetImage:
        """Make the row, and count it, in one transaction.

        Rows are locked in the order user, dataset, picture, as everywhere.
        """
        size_bytes = picture.size_bytes
        try:
            with transaction.atomic():
                room = F("stored_bytes") + size_bytes
                owner = User.objects.filter(pk=self.dataset.owner_id)
                if not owner.filter(max_stored_bytes__gte=room).update(stored_bytes=room):
                    limit = owner.values_list("max_stored_bytes", flat=True).get()
                    raise Refused("storage_full", megabytes=limit // 1024**2)
                datasets = Dataset.objects.live().filter(pk=self.dataset.pk)
                counted = datasets.update(
                    num_items=F("num_items") + 1,
                    size_bytes=F("size_bytes") + size_bytes,
                    version=F("version") + 1,
                )
                if not counted:
                    raise dataset_gone()
                return DatasetImage.objects.create(
                    dataset=self.dataset,
                    width=picture.width,
                    height=picture.height,
                    size_bytes=size_bytes,
                    format=picture.format,
                    pixel_sha256=picture.pixel_sha256,
                    **fields,
                )
        except IntegrityError:
            self._refuse_twin(picture)  # the same picture was faster in another request
            raise

    # --- captions of pictures that were there already ---------------------------------------------
    def _caption_existing(self) -> None:
        left_over = []
        for caption in self._book.unused():
            if caption in self._orphans:
                self._reject(caption.source, Refused("caption_unmatched"))
            else:
                left_over.append(caption)
        if not left_over:
            return
        by_name, by_stem = self._existing_names()
        chosen: dict[int, dict[str, Any]] = {}
        for caption in left_over:
            name = caption.name.casefold()
            stem = name if caption.is_stem else captions.stem_of(name)
            matches = by_name.get(name) or by_stem.get(stem) or []
            with self._refusing(caption.source):
                if not matches:
                    raise Refused("caption_unmatched")
                if len(matches) > 1:
                    raise Refused("caption_ambiguous")
                chosen[matches[0]] = _written(caption)
        if chosen:
            self._write_captions(chosen)

    def _existing_names(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        by_name: dict[str, list[int]] = defaultdict(list)
        by_stem: dict[str, list[int]] = defaultdict(list)
        rows = DatasetImage.objects.live().filter(dataset=self.dataset)
        for pk, name in rows.values_list("pk", "original_name"):
            by_name[name.casefold()].append(pk)
            by_stem[captions.stem_of(name)].append(pk)
        return by_name, by_stem

    def _write_captions(self, chosen: dict[int, dict[str, Any]]) -> None:
        with transaction.atomic():
            datasets = Dataset.objects.live().filter(pk=self.dataset.pk)
            if not datasets.update(version=F("version") + 1):
                raise dataset_gone()
            for pk, written in chosen.items():
                rows = DatasetImage.objects.live().filter(pk=pk)
                rows.update(version=F("version") + 1, **written)
        rows = DatasetImage.objects.live().filter(pk__in=chosen)
        self.result.updated.extend(rows.order_by("pk"))


def _written(caption: Caption) -> dict[str, Any]:
    """Return the fields of a picture that a caption's line tells."""
    repeats = {} if caption.repeats is None else {"repeats": caption.repeats}
    return {"caption": caption.text, **repeats}


def dataset_gone() -> Problem:
    """Return the problem for a dataset that is not there, or not for this user."""
    return Problem("not_found", _("There is no such dataset, or you may not see it."), status=404)


def name_of(file: UploadedFile) -> str:
    """Return an upload's name; it is shown and compared, never used as a path."""
    return file.name or "?"


def _caption_bytes(name: str) -> int:
    """Return how large a file of captions of this name may be; 0 if it is none."""
    if name.lower() == captions.METADATA_NAME:
        return captions.MAX_METADATA_BYTES
    return captions.MAX_TEXT_BYTES if name.lower().endswith(".txt") else 0


def _stream(file: UploadedFile) -> BinaryIO:
    if file.file is None:
        raise Refused("empty_file")
    return file.file  # type: ignore[return-value]
