"""Every line of hostile or mistaken input, over HTTP: a clear refusal, and nothing half-written."""

from __future__ import annotations

import json
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from studio_project.management.demo_client import DemoClient, Refused
from tests.datasets_app import makers
from tests.e2e import work
from tests.e2e.site import Site

PNG = makers.png(3, (64, 64))
JPEG = makers.encoded(makers.gradient(4, (64, 64)), "JPEG")
LONG = "n" * 296
# Files, and of each that is refused: the reason, and words of the way out.
FILES: dict[str, tuple[dict[str, bytes], dict[str, tuple[str, str]]]] = {
    "not an image": (
        {"notes.png": b"shopping list"},
        {"notes.png": ("not_a_picture", "JPEG, PNG or WebP")},
    ),
    "truncated": (
        {"half.jpg": JPEG[: len(JPEG) // 2], "half.png": PNG[: len(PNG) // 2]},
        {
            "half.jpg": ("truncated_picture", "Copy it anew"),
            "half.png": ("truncated_picture", "Copy it anew"),
        },
    ),
    "renamed": (
        {"gif.png": makers.GIF, "document.jpg": b"%PDF-1.7 nothing"},
        {
            "gif.png": ("unsupported_gif", "Export it as PNG"),
            "document.jpg": ("unsupported_format", "(PDF)"),
        },
    ),
    "30,000 x 30,000 pixels": (
        {"huge.png": makers.huge_png()},
        {"huge.png": ("too_many_pixels", "Make it smaller")},
    ),
    "zip bomb": (
        {"bomb.zip": makers.zipped({"a.png": bytes(50_000_000)})},
        {"bomb.zip": ("archive_bomb", "Pack the pictures anew")},
    ),
    "names that leave the zip": (
        {"set.zip": makers.zipped({"../evil.png": PNG, "/etc/evil.png": PNG, "C:\\evil.png": PNG})},
        dict.fromkeys(
            ("../evil.png", "/etc/evil.png", "C:\\evil.png"), ("archive_unsafe_name", "plain names")
        ),
    ),
    "SVG": ({"drawing.svg": makers.SVG}, {"drawing.svg": ("unsupported_svg", "Export it as PNG")}),
    "SVG as PNG": ({"a.png": makers.SVG}, {"a.png": ("unsupported_svg", "Export it as PNG")}),
    "HEIC": ({"a.heic": makers.HEIC}, {"a.heic": ("unsupported_heic", "Export it as JPEG")}),
    "300 characters in a zip": (
        {"set.zip": makers.zipped({LONG + ".png": b"no picture"})},
        {LONG + ".png": ("not_a_picture", "JPEG, PNG or WebP")},
    ),
    "caption of 10,000 characters": (
        {"fox.txt": b"x" * 10_000},
        {"fox.txt": ("caption_too_long", "Shorten it")},
    ),
    "metadata of 10,000 characters": (
        {"metadata.jsonl": json.dumps({"file_name": "fox.png", "text": "x" * 10_000}).encode()},
        {"metadata.jsonl:1": ("caption_too_long", "Shorten it")},
    ),
}  # fmt: skip


class Owner:
    """A person with a dataset of one picture, and what everybody may use."""

    def __init__(self, site: Site) -> None:
        self.client: DemoClient = site.user()
        self.dataset = int(self._make("mine")["id"])
        answer = self.client.upload(self.dataset, {"fox.png": makers.png(1), "fox.txt": b"a fox"})
        self.image = int(answer["created"][0]["id"])
        self.empty = int(self._make("empty")["id"])
        models = self.client.call("GET", "/api/models/?limit=200")["results"]
        ready = [m["id"] for m in models if m["availability"] == "ready" and m["is_active"]]
        (self.base,) = ready
        self.remote = next(m["id"] for m in models if m["availability"] == "remote")
        self.asleep = next(m["id"] for m in models if m["name"] == "asleep")

    def _make(self, name: str) -> Any:
        return self.client.call("POST", "/api/datasets/", {"name": name, "type": "image"})

    def everything(self) -> dict[str, Any]:
        """Return all that bad input could have changed."""
        return {
            path: self.client.call("GET", path)
            for path in (
                "/api/datasets/", f"/api/datasets/{self.dataset}/images/", "/api/training/",
                "/api/generate/", "/api/models/?owner=me",
            )
        }  # fmt: skip


@pytest.fixture(scope="module")
def owner(web_site: Site) -> Owner:
    web_site.manage(
        "shell",
        "-c",
        "from models_app.models import DiffusionModel as M; M.objects.create(name='asleep', "
        "type='base_model', category='image', architecture='sd1', path='models/asleep', "
        "visibility='shared', availability='ready', is_active=False)",
    )
    return Owner(web_site)


@pytest.fixture(scope="module")
def stranger(web_site: Site) -> Owner:
    return Owner(web_site)


@contextmanager
def _nothing_written(site: Site, owner: Owner) -> Iterator[None]:
    """Hold rows and files of all kinds, temporary ones too, against those from before."""

    def files() -> set[Path]:
        folders = (site.folder / "data" / name for name in ("files", "uploads", "work"))
        return {path for folder in folders for path in folder.rglob("*") if path.is_file()}

    before = owner.everything(), files()
    yield
    assert (owner.everything(), files()) == before


def _refusal(call: Callable[[], Any], *, code: str, status: int) -> dict[str, Any]:
    with pytest.raises(Refused) as caught:
        call()
    text = str(caught.value)
    problem: dict[str, Any] = json.loads(text[text.index("{") :])
    assert (problem["code"], problem["status"]) == (code, status), problem
    return problem


@pytest.mark.parametrize(("files", "reasons"), FILES.values(), ids=FILES.keys())
def test_a_file_that_is_not_taken_says_why(
    web_site: Site,
    owner: Owner,
    files: dict[str, bytes],
    reasons: dict[str, tuple[str, str]],
) -> None:
    with _nothing_written(web_site, owner):
        with pytest.raises(Refused, match=": 422 ") as caught:
            owner.client.upload(owner.dataset, files)
        text = str(caught.value)
        answer = json.loads(text[text.index("{") :])
    assert (answer["created"], answer["updated"]) == ([], [])
    found = {item["name"]: item for item in answer["rejected"]}
    assert found.keys() == reasons.keys()
    for name, (code, cure) in reasons.items():
        assert found[name]["code"] == code
        assert cure in found[name]["detail"]


def test_a_name_of_300_characters_is_shown_cut_and_its_picture_taken(owner: Owner) -> None:
    (image,) = owner.client.upload(owner.dataset, {LONG + ".png": PNG})["created"]
    assert image["name"].endswith("n.png")
    owner.client.call("DELETE", f"/api/datasets/{owner.dataset}/images/{image['id']}")


def _training(owner: Owner, **changes: Any) -> dict[str, Any]:
    wish = {"dataset_id": owner.dataset, "base_model_id": owner.base, "type": "lora", "config": {}}
    return {**wish, **changes}


Case = tuple[str, Callable[[Owner, Owner], dict[str, Any]], int, str, str, str]
TRAINING, GENERATE = "/api/training/", "/api/generate/text-to-image"
# Name, path, body, status, code, the field, and words of the reason or of the way out.
WISHES: dict[str, Case] = {
    "dataset of another user": (
        TRAINING, lambda me, her: _training(me, dataset_id=her.dataset),
        404, "dataset_not_found", "dataset_id", "may not see it",
    ),
    "no such model": (
        TRAINING, lambda me, her: _training(me, base_model_id=10**9),
        404, "model_not_found", "base_model_id", "may not see it",
    ),
    "remote model to train": (
        TRAINING, lambda me, her: _training(me, base_model_id=me.remote),
        409, "model_unavailable", "base_model_id", "fetch_model",
    ),
    "remote model to paint with": (
        GENERATE, lambda me, her: {"model": me.remote, "prompt": "x"},
        409, "model_unavailable", "model", "fetch_model",
    ),
    "deactivated model to train": (
        TRAINING, lambda me, her: _training(me, base_model_id=me.asleep),
        409, "model_unavailable", "base_model_id", "administrator",
    ),
    "deactivated model to paint with": (
        GENERATE, lambda me, her: {"model": me.asleep, "prompt": "x"},
        409, "model_unavailable", "model", "administrator",
    ),
    "rank out of range": (
        TRAINING, lambda me, her: _training(me, config={"rank": 10**6}),
        400, "invalid", "config.rank", "from 1 to 256",
    ),
    "rate that is not a number": (
        TRAINING, lambda me, her: _training(me, config={"learning_rate": float("nan")}),
        400, "invalid", "config.learning_rate", "finite",
    ),
    "unknown setting": (
        TRAINING, lambda me, her: _training(me, config={"learning_rte": 1}),
        400, "invalid", "config.learning_rte", "learning_rte",
    ),
    "unknown field of a training": (
        TRAINING, lambda me, her: _training(me, dataset=1),
        400, "invalid", "dataset", "not known",
    ),
    "size out of range": (
        GENERATE, lambda me, her: {"model": me.base, "prompt": "x", "width": 10**9},
        400, "invalid", "width", "2048",
    ),
    "guidance that is not a number": (
        GENERATE, lambda me, her: {"model": me.base, "guidance_scale": float("-inf")},
        400, "invalid", "guidance_scale", "finite",
    ),
    "unknown field of a request": (
        GENERATE, lambda me, her: {"model": me.base, "promt": "x"},
        400, "invalid", "promt", "promt",
    ),
    "prompt of 10,000 characters": (
        GENERATE, lambda me, her: {"model": me.base, "prompt": "x" * 10_000},
        400, "invalid", "prompt", "2000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WISHES.values(), ids=WISHES.keys())
def test_a_wish_that_cannot_be_granted_names_the_field(
    web_site: Site, owner: Owner, stranger: Owner, case: Case
) -> None:
    path, body, status, code, field, words = case
    with _nothing_written(web_site, owner):
        problem = _refusal(
            lambda: owner.client.call("POST", path, body(owner, stranger)), code=code, status=status
        )
    assert list(problem["errors"]) == [field]
    assert words in problem["detail"] + problem.get("hint", "")
    assert words in json.dumps(problem["errors"]) + problem.get("hint", "")


def test_an_empty_dataset_is_not_trained(owner: Owner) -> None:
    job = owner.client.call("POST", TRAINING, _training(owner, dataset_id=owner.empty))["id"]
    start = f"/api/training/{job}/start"
    problem = _refusal(lambda: owner.client.call("POST", start), code="dataset_empty", status=400)
    assert list(problem["errors"]) == ["dataset_id"]
    assert "Add some pictures" in problem["hint"]
    assert work.training(owner.client, job)["status"] == "pending"
    owner.client.call("DELETE", f"/api/training/{job}")


def _noise() -> Image.Image:
    return makers.gradient(8, (900, 900)).effect_spread(450)


NO_ROOM_FOR = {
    "the request's body": (makers.encoded(_noise(), "PNG"), 400_000),
    # What is kept of a coarse JPEG is larger than the file that came.
    "the kept picture": (makers.encoded(_noise(), "JPEG", quality=40), 600_000),
}


@pytest.mark.parametrize(("content", "room"), NO_ROOM_FOR.values(), ids=NO_ROOM_FOR.keys())
def test_a_full_disk_is_507_and_once_there_is_room_all_goes_on(
    web_site: Site, owner: Owner, content: bytes, room: int
) -> None:
    files = {"large.jpg": content}
    (web,) = web_site.processes("daphne")
    before = web.rlimit(resource.RLIMIT_FSIZE)
    with _nothing_written(web_site, owner):
        with closing(sqlite3.connect(web_site.folder / "data" / "studio.sqlite3")) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        # No file of this process may grow beyond this, which is what a full disk is to a write.
        web.rlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            problem = _refusal(
                lambda: owner.client.upload(owner.dataset, files), code="disk_full", status=507
            )
        finally:
            web.rlimit(resource.RLIMIT_FSIZE, before)
        assert "administrator" in problem["detail"] + problem.get("hint", "")
    (image,) = owner.client.upload(owner.dataset, files)["created"]
    owner.client.call("DELETE", f"/api/datasets/{owner.dataset}/images/{image['id']}")
