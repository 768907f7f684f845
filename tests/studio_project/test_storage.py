"""The file layer, on a disk and on S3."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from django.core.exceptions import SuspiciousFileOperation
from django.core.files.storage import default_storage
from django.test import RequestFactory
from moto.server import ThreadedMotoServer
from PIL import UnidentifiedImageError
from s3transfer.exceptions import RetriesExceededError

from studio_project import storage
from studio_project.api import Problem


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A local server that speaks S3."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["disk", "s3"])
def backend(request: pytest.FixtureRequest, settings: Any, monkeypatch: Any) -> str:
    """Run a test on both kinds of storage."""
    if request.param == "s3":
        endpoint = request.getfixturevalue("s3_endpoint")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(
            Bucket="studio"
        )
        options = {
            "bucket_name": "studio",
            "endpoint_url": endpoint,
            "region_name": "us-east-1",
            "querystring_auth": True,
        }
        settings.STORAGES = {
            **settings.STORAGES,
            "default": {"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": options},
        }
    return str(request.param)


def test_a_file_comes_back_as_it_was_written(backend: str, tmp_path: Path) -> None:
    key = storage.new_key("datasets", 7, suffix=".png")
    source = tmp_path / "source"
    source.write_bytes(b"x" * 300_000)
    assert storage.save(key, source) == 300_000
    assert storage.exists(key)
    assert storage.size(key) == 300_000
    assert storage.local_copy(key).read_bytes() == b"x" * 300_000
    with storage.open_key(key) as handle:
        assert handle.read() == b"x" * 300_000
    storage.delete(key)
    assert not storage.exists(key)
    storage.delete(key)  # gone already is fine


def test_a_folder_of_weights_comes_back_under_its_names(backend: str) -> None:
    for name in ("model_index.json", "unet/config.json"):
        storage.save(f"models/3/{name}", io.BytesIO(name.encode()))
    folder = storage.local_folder("models/3", ["model_index.json", "unet/config.json"])
    assert (folder / "unet/config.json").read_text() == "unet/config.json"


@pytest.mark.parametrize(
    "key", ["../secret", "/etc/passwd", "a/../../b", "a//b", "", "a\x00b", "a\\b"]
)
def test_a_key_cannot_leave_its_folder(key: str) -> None:
    with pytest.raises(SuspiciousFileOperation):
        storage.save(key, b"x")


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (ConnectionResetError(), True),
        (ClientError({"ResponseMetadata": {"HTTPStatusCode": 503}}, "PutObject"), True),
        (RetriesExceededError(OSError()), True),
        (ClientError({"ResponseMetadata": {"HTTPStatusCode": 403}}, "PutObject"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (UnidentifiedImageError("no picture"), False),
        (KeyError("x"), False),
    ],
)
def test_an_outage_is_told_from_what_stays_wrong(error: Exception, is_away: bool) -> None:
    assert storage.is_away(error) is is_away


def test_a_private_file_is_answered_with_its_guards(backend: str) -> None:
    storage.save("models/1/lora.safetensors", b"0123456789")
    answer = storage.file_response(
        "models/1/lora.safetensors",
        filename="Été.safetensors",
        content_type="application/octet-stream",
        inline=False,
        request=RequestFactory().get("/"),
    )
    if backend == "s3":
        assert answer.status_code == 302
        assert "Signature" in answer["Location"]
        assert "attachment" in answer["Location"]
        return
    assert answer.status_code == 200
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Content-Disposition"].startswith("attachment")
    assert answer.content == b"0123456789"


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=20-", 416, b""),
        ("bytes=x", 200, b"0123456789"),
        (f"bytes={'9' * 5000}-", 200, b"0123456789"),
        ("bytes=٣-", 200, b"0123456789"),
    ],
)
def test_ranges(asked: str, status: int, body: bytes) -> None:
    storage.save("models/1/file", b"0123456789")
    request = RequestFactory().get("/", headers={"Range": asked})
    answer = storage.file_response(
        "models/1/file", filename="f", content_type="image/png", inline=True, request=request
    )
    assert (answer.status_code, answer.content) == (status, body)


def test_an_unchanged_file_is_not_sent_twice() -> None:
    storage.save("models/1/file", b"0123456789")
    ask = {"filename": "f", "content_type": "image/png", "inline": True}
    first = storage.file_response("models/1/file", request=RequestFactory().get("/"), **ask)
    again = RequestFactory().get("/", headers={"If-None-Match": first["ETag"]})
    assert storage.file_response("models/1/file", request=again, **ask).status_code == 304


def test_a_proxy_is_handed_the_file_where_there_is_one(settings: Any) -> None:
    settings.STUDIO_ACCEL_PREFIX = "/protected"
    storage.save("models/1/file", b"0123456789")
    answer = storage.file_response(
        "models/1/file",
        filename="f",
        content_type="image/png",
        inline=True,
        request=RequestFactory().get("/"),
    )
    assert answer["X-Accel-Redirect"] == "/protected/models/1/file"
    assert answer.content == b""


def test_a_full_disk_is_a_problem_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def read(self, *args: Any) -> bytes:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(Problem) as caught:
        storage.save("datasets/1/picture.png", Full())
    assert (caught.value.code, caught.value.status) == ("disk_full", 507)
    assert default_storage.listdir("datasets/1") == ([], [])


def test_below_the_floor_nothing_is_begun(settings: Any) -> None:
    settings.STUDIO_MIN_FREE_BYTES = 2**62
    assert not storage.free_space_ok()
    with pytest.raises(Problem, match="full"):
        storage.require_free_space()


@pytest.mark.parametrize("backend", ["s3"], indirect=True)
def test_local_copies_make_room_for_others_but_not_for_their_own_kind(
    backend: str, settings: Any
) -> None:
    settings.STUDIO_CACHE_MAX_BYTES = 250
    copies = Path(settings.STUDIO_WORK_DIR) / "files"
    names = ["unet/config.json", "unet/weights", "vae/weights"]
    for model, name in [("old", "weights"), *(("new", name) for name in names)]:
        storage.save(f"models/{model}/{name}", b"x" * 100)
    old = storage.local_copy("models/old/weights")
    for name in names:
        # However long the others take to come: all of a model is needed at once.
        storage.local_copy(f"models/new/{name}")
        for path in copies.rglob("*"):
            os.utime(path, (1.0, 1.0))
    assert not old.exists()
    assert all((copies / "models/new" / name).is_file() for name in names)
    assert storage.local_copy("models/new/vae/weights").stat().st_mtime > 1.0


def test_a_copy_outlives_its_source(backend: str) -> None:
    storage.save("jobs/9/weights.safetensors", b"0123456789")
    storage.copy("jobs/9/weights.safetensors", "models/9/copy.safetensors")
    storage.delete("jobs/9/weights.safetensors")
    with storage.open_key("models/9/copy.safetensors") as handle:
        assert handle.read() == b"0123456789"
    with pytest.raises(FileNotFoundError):
        storage.copy("jobs/9/weights.safetensors", "models/9/other.safetensors")
