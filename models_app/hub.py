"""Downloads a pinned version of a model from a model hub; no Django.

The hub's own client removes a partial file when its process ends, so a broken download of 10 GB
would start again. Here a file grows under a ``.part`` name and is continued by a Range request,
within a run and in the next one; it gets its name only when its checksum is the announced one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from models_app.folders import INDEX_NAME, choose_files, pipeline_components
from models_app.inspection import read_json, sha256_of

TIMEOUT_SECONDS = 30.0
ATTEMPTS_WITHOUT_PROGRESS = 5

# Called with the name of the file and how many bytes of all files are here, and how many will be.
OnProgress = Callable[[str, int, int], None]


class HubError(Exception):
    """A download that did not work.

    Args:
        code: ``hub_unreachable, hub_not_found, hub_refused, licence_required, download_damaged``.
        detail: What exactly happened, for the terminal.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository as the hub announces it."""

    name: str
    size: int
    sha256: str | None
    git_id: str | None


@dataclass(frozen=True)
class Hub:
    """Where to download from, and as whom.

    Attributes:
        endpoint: URL of the hub; empty for the public one.
        token: Access token; empty for none. Tokens saved for other programs are never used.
        pause_seconds: First pause after a broken connection; it doubles.
    """

    endpoint: str = ""
    token: str = ""
    pause_seconds: float = 1.0

    def list_files(self, repository: str, revision: str) -> dict[str, RemoteFile]:
        """Return the files of one version by name.

        Raises:
            HubError: The hub is away, or does not let us.
        """
        api = HfApi(endpoint=self.endpoint or None, token=self.token or False)
        try:
            info = api.model_info(
                repository, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS
            )
        except (httpx2.HTTPError, OfflineModeIsEnabled, ValueError) as error:
            raise _told(error, repository, revision) from error
        return {
            one.rfilename: RemoteFile(
                name=one.rfilename,
                size=one.size or 0,
                sha256=one.lfs.sha256 if one.lfs else None,
                git_id=one.blob_id,
            )
            for one in info.siblings or []
        }

    def fetch_folder(
        self,
        repository: str,
        revision: str,
        folder: Path,
        *,
        half_precision: bool = False,
        on_plan: Callable[[int], None] | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Download what a pipeline needs, continuing what lies in the folder already.

        Args:
            repository: Such as ``owner/name``.
            revision: A commit.
            folder: Where the files go, under the names of the repository.
            half_precision: Take 16-bit weights where the repository has them.
            on_plan: Called with the number of bytes still to come, before they do.
            on_progress: Called after every piece.

        Raises:
            HubError: With what happened; what arrived stays for the next attempt.
            InspectionError: The repository is not a pipeline that the site runs.
        """
        remote = self.list_files(repository, revision)
        if INDEX_NAME not in remote:
            raise HubError("hub_not_found", f"{repository} has no {INDEX_NAME}.")
        self._download(repository, revision, remote[INDEX_NAME], folder, lambda count: None)
        components = pipeline_components(read_json(folder / INDEX_NAME))
        chosen = choose_files(remote, components, half_precision=half_precision)
        files = [remote[file.source] for file in chosen]
        total = sum(file.size for file in files)
        here = sum(_bytes_here(folder / file.name) for file in files)
        if on_plan is not None:
            on_plan(total - here)
        for file in files:

            def on_bytes(count: int, name: str = file.name) -> None:
                nonlocal here
                here += count
                if on_progress is not None:
                    on_progress(name, here, total)

            self._download(repository, revision, file, folder, on_bytes)

    def _download(
        self,
        repository: str,
        revision: str,
        file: RemoteFile,
        folder: Path,
        on_bytes: Callable[[int], None],
    ) -> None:
        """Download one file, going on after broken connections."""
        target = folder / file.name
        if target.is_file() and target.stat().st_size == file.size:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _part_of(target)
        url = hf_hub_url(repository, file.name, revision=revision, endpoint=self.endpoint or None)
        failures = 0
        while (before := _size_of(part)) != file.size or not part.exists():
            try:
                self._receive(url, part, file.size, on_bytes)
            except (httpx2.HTTPError, OfflineModeIsEnabled) as error:
                failures = 1 if _size_of(part) > before else failures + 1
                if failures >= ATTEMPTS_WITHOUT_PROGRESS or not _worth_another_try(error):
                    raise _told(error, repository, revision) from error
                if _status_of(error) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    part.unlink(missing_ok=True)
                time.sleep(self.pause_seconds * 2 ** (failures - 1))
        if not _is_announced(part, file):
            part.unlink()
            raise HubError(
                "download_damaged", f"{file.name} arrived with a wrong checksum and was removed."
            )
        part.replace(target)

    def _receive(self, url: str, part: Path, size: int, on_bytes: Callable[[int], None]) -> None:
        """Let one request add to a partial file."""
        have = _size_of(part)
        if have > size:
            part.unlink()
            have = 0
        headers = build_hf_headers(token=self.token or False)
        headers["Accept-Encoding"] = "identity"
        if have:
            headers["Range"] = f"bytes={have}-"
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS) as answer:
            hf_raise_for_status(answer)
            goes_on = answer.status_code == HTTPStatus.PARTIAL_CONTENT
            if have and not goes_on:
                on_bytes(-have)
            with part.open("ab" if goes_on else "wb") as out:
                for chunk in answer.iter_bytes():
                    out.write(chunk)
                    on_bytes(len(chunk))
        if _size_of(part) != size:
            raise httpx2.RemoteProtocolError(f"{part.name}: the answer ended early")


def _part_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _bytes_here(target: Path) -> int:
    return _size_of(target) or _size_of(_part_of(target))


def _is_announced(path: Path, file: RemoteFile) -> bool:
    """Compare with the checksum: SHA-256 for large files, git's own for small ones."""
    if file.sha256:
        return sha256_of(path) == file.sha256
    if file.git_id:
        content = path.read_bytes()
        header = f"blob {len(content)}\0".encode()
        return hashlib.sha1(header + content, usedforsecurity=False).hexdigest() == file.git_id
    return True


def _status_of(error: Exception) -> int:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else 0


def _worth_another_try(error: Exception) -> bool:
    status = _status_of(error)
    if isinstance(error, HfHubHTTPError):
        return status in (408, 416, 425, 429) or status >= 500
    return isinstance(error, httpx2.TransportError)


def _told(error: Exception, repository: str, revision: str) -> HubError:
    """Translate what the client raised."""
    status = _status_of(error)
    if isinstance(error, GatedRepoError) or status in (401, 403):
        return HubError(
            "licence_required",
            f"The hub does not hand out {repository} without an accepted licence. Accept it on the "
            "model's page, then set STUDIO_HUB_TOKEN to a token of that account.",
        )
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return HubError("hub_not_found", f"The hub has no {repository} at revision {revision}.")
    if status and status < 500 and status != 429:
        return HubError("hub_refused", f"The hub refused with HTTP status {status}.")
    if status:
        return HubError("hub_unreachable", f"The hub answers with HTTP status {status}; try later.")
    if isinstance(error, OfflineModeIsEnabled):
        return HubError("hub_unreachable", "HF_HUB_OFFLINE is set, so nothing can be downloaded.")
    if isinstance(error, httpx2.HTTPError):
        return HubError(
            "hub_unreachable",
            f"The hub cannot be reached ({error or type(error).__name__}). Check the network, a "
            "proxy, or STUDIO_HUB_ENDPOINT. What has arrived is kept and continued next time.",
        )
    return HubError("hub_refused", f"The hub's answer makes no sense: {error}.")
