"""What uploads cost the web process: many people at once, and bodies far too large."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
from PIL import Image

from studio_project.management.demo_client import DemoClient
from tests.e2e.site import Site

USERS, PICTURES = 5, 60
# As the page sends them (static/studio/js/upload.js).
REQUEST_BYTES, REQUEST_FILES = 8_000_000, 200
LIMIT_BYTES = 600 * 10**6
MEGABYTE = bytes(1024**2)
MARK = "mark"
HEAD = (
    f'--{MARK}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'.encode()
)
TAIL = f"\r\n--{MARK}--\r\n".encode()


@contextmanager
def _peak(site: Site) -> Iterator[list[int]]:
    """Watch the web process's memory all along; the list holds the peak in bytes."""
    web = site.processes("daphne")[0]
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            peak[0] = max(peak[0], web.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
        assert psutil.pid_exists(web.pid)


def _photograph(rng: np.random.Generator, side: int, noise: int, quality: int) -> bytes:
    """Return a JPEG of about a megabyte: colours that flow, and noise."""
    flow = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    pixels = np.asarray(flow.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = rng.integers(-noise, noise + 1, (side, side, 3), dtype=np.int16)
    picture = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def _photographs() -> list[bytes]:
    """Return a user's pictures: two as large as a camera's, the others quick to decode."""
    rng = np.random.default_rng(5)
    large = [_photograph(rng, 3500, 2, 89) for _ in range(2)]
    return large + [_photograph(rng, 600, 40, 100) for _ in range(PICTURES - 2)]


def _requests(files: dict[str, bytes]) -> Iterator[dict[str, bytes]]:
    """Put files into requests as the page does."""
    batch: dict[str, bytes] = {}
    for name, content in files.items():
        full = sum(map(len, batch.values())) + len(content) > REQUEST_BYTES
        if batch and (full or len(batch) == REQUEST_FILES):
            yield batch
            batch = {}
        batch[name] = content
    yield batch


def test_five_people_uploading_sixty_pictures_each_keep_the_web_process_small(
    web_site: Site,
) -> None:
    photographs = _photographs()
    assert all(0.7e6 < len(content) < 1.5e6 for content in photographs)
    files = {f"{index:02}.jpg": content for index, content in enumerate(photographs)}
    people = [web_site.user() for _ in range(USERS)]
    wish = {"name": "holiday", "type": "image"}
    datasets = [person.call("POST", "/api/datasets/", wish)["id"] for person in people]
    at_once = threading.Barrier(USERS)

    def upload(person: DemoClient, dataset: int) -> None:
        at_once.wait(10)
        for request in _requests(files):
            answer = person.upload(dataset, request)
            assert len(answer["created"]) == len(request), answer["rejected"]

    with _peak(web_site) as peak, ThreadPoolExecutor(USERS) as pool:
        list(pool.map(upload, people, datasets))
    for person, dataset in zip(people, datasets, strict=True):
        assert person.call("GET", f"/api/datasets/{dataset}")["num_items"] == PICTURES
        path = f"/api/datasets/{dataset}/images/?limit=200"
        assert len(person.call("GET", path)["results"]) == PICTURES
    assert 0 < peak[0] < LIMIT_BYTES, f"{peak[0] / 1e6:.0f} MB"


def _send(
    person: DemoClient, dataset: int, body: list[bytes], *, chunked: bool
) -> tuple[int, dict]:
    """Send a body piece by piece, with its length or in chunks without one."""
    host = person.site.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    headers = {**person.headers, "Content-Type": f"multipart/form-data; boundary={MARK}"}
    if not chunked:
        headers["Content-Length"] = str(sum(map(len, body)))
    path = f"/api/datasets/{dataset}/images/"
    connection.request("POST", path, iter(body), headers, encode_chunked=chunked)
    answer = connection.getresponse()
    assert answer.headers["Content-Type"].endswith("json"), answer.read()
    content = json.loads(answer.read())
    connection.close()
    return answer.status, content


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "in chunks"])
def test_a_request_of_300_megabytes_is_refused_and_never_held(
    web_site: Site, chunked: bool
) -> None:
    person = web_site.user()
    dataset = person.call("POST", "/api/datasets/", {"name": "huge", "type": "image"})["id"]
    with _peak(web_site) as peak:
        body = [HEAD, *[MEGABYTE] * 300, TAIL]
        status, problem = _send(person, dataset, body, chunked=chunked)
    assert (status, problem["code"]) == (413, "request_too_large")
    assert "8 MB" in problem["hint"]
    assert 0 < peak[0] < LIMIT_BYTES, f"{peak[0] / 1e6:.0f} MB"
    assert person.call("GET", f"/api/datasets/{dataset}")["num_items"] == 0


def test_a_picture_sent_in_chunks_without_a_length_is_taken(web_site: Site) -> None:
    person = web_site.user()
    dataset = person.call("POST", "/api/datasets/", {"name": "piped", "type": "image"})["id"]
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(file, "PNG")
    status, answer = _send(person, dataset, [HEAD, file.getvalue(), TAIL], chunked=True)
    assert status == 201, answer
    assert [image["width"] for image in answer["created"]] == [64]
