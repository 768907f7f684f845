"""Bringing base models: seeds, folders on a disk, downloads; and the commands that do it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import translation
from PIL import Image

from models_app import installation
from models_app.hub import HubError
from models_app.models import DiffusionModel
from models_app.registry import REMOTE_MODELS, STARTER, STARTER_FOLDER
from models_app.texts import check_default_settings
from studio_project import storage
from studio_project.models import User
from tests.models_app.fake_hub import REVISION, FakeHub, contents_of, serving
from tests.models_app.fixture_folders import write_pipeline, write_safetensors

Make = Callable[..., DiffusionModel]
UNET = "unet/diffusion_pytorch_model.safetensors"

pytestmark = pytest.mark.django_db


def run(command: str, /, *args: Any, **options: Any) -> str:
    out = StringIO()
    call_command(command, *args, stdout=out, **options)
    return out.getvalue()


def stored_files(root: Path) -> list[str]:
    return [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]


# --- seeds --------------------------------------------------------------------------------------
@pytest.fixture
def starter(tmp_path: Path) -> Path:
    return write_pipeline(tmp_path / "starter")


def test_seeding_makes_every_known_model(starter: Path) -> None:
    run("seed_models", starter=starter)
    assert DiffusionModel.objects.count() == len(REMOTE_MODELS) + 1
    xl = DiffusionModel.objects.get(name="stable-diffusion-xl-base-1.0")
    assert (xl.architecture, xl.availability, xl.visibility) == ("sdxl", "remote", "shared")
    assert len(xl.revision) == 40
    assert xl.licence and xl.source and xl.description
    assert {"width", "height", "num_inference_steps", "guidance_scale", "scheduler"} == set(
        xl.default_settings
    )
    assert DiffusionModel.objects.get(architecture="svd").category == "video"
    painter = DiffusionModel.objects.get(is_inpainting=True)
    assert painter.name == "stable-diffusion-xl-1.0-inpainting-0.1"
    ready = DiffusionModel.objects.get(availability="ready")
    assert ready.name == STARTER.name
    assert "practice model" in ready.title
    for entry in ready.files:
        with storage.open_key(f"{ready.path}/{entry['name']}") as handle:
            content = handle.read()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (
            entry["size"],
            entry["sha256"],
        )
    assert ready.size_bytes == sum(entry["size"] for entry in ready.files)
    assert (ready.weights_folder() / UNET).is_file()


def test_seeding_again_changes_nothing(starter: Path, tmp_path: Path, sent: list[Any]) -> None:
    run("seed_models", starter=starter)
    before = list(DiffusionModel.objects.order_by("pk").values())
    files = stored_files(tmp_path / "files")
    sent.clear()
    assert run("seed_models", starter=starter) == ""
    assert list(DiffusionModel.objects.order_by("pk").values()) == before
    assert stored_files(tmp_path / "files") == files
    assert sent == []


def test_what_administrators_changed_stays(starter: Path) -> None:
    run("seed_models", starter=starter)
    mine = {
        "is_active": False,
        "description": "Ours.",
        "title": "T",
        "default_settings": {"width": 8},
    }
    DiffusionModel.objects.update(**mine)
    write_pipeline(starter, fill=7)
    run("seed_models", starter=starter)
    for model in DiffusionModel.objects.all():
        assert {name: getattr(model, name) for name in mine} == mine


def test_other_starter_weights_are_installed_beside_the_old(starter: Path, sent: list[Any]) -> None:
    run("seed_models", starter=starter)
    old = DiffusionModel.objects.get(name=STARTER.name)
    sent.clear()
    write_pipeline(starter, fill=7)
    assert "starter-64: updated" in run("seed_models", starter=starter)
    new = DiffusionModel.objects.get(name=STARTER.name)
    assert new.pk == old.pk
    assert new.version == old.version + 1
    assert new.sha256 != old.sha256 and new.path != old.path
    # Whoever reads the old files right now can end; the sweeper takes them later.
    assert storage.exists(f"{old.path}/{UNET}")
    assert [event["type"] for _, event in sent] == ["diffusion_model.changed"]


def test_a_deleted_seed_does_not_come_back(starter: Path, staff: User) -> None:
    from models_app.services import delete_model

    run("seed_models", starter=starter)
    for model in DiffusionModel.objects.all():
        delete_model(staff, model)
    out = run("seed_models", starter=starter)
    assert out.count("deleted") == len(REMOTE_MODELS) + 1
    assert not DiffusionModel.objects.live().exists()


def test_a_new_pinned_revision_reaches_remote_models_only(starter: Path) -> None:
    run("seed_models", starter=starter)
    DiffusionModel.objects.filter(availability="remote").update(revision="old")
    assert "stable-diffusion-v1-5: updated" in run("seed_models", starter=starter)
    DiffusionModel.objects.filter(name="stable-diffusion-v1-5").update(
        revision="fetched", availability="ready", path="models/x"
    )
    run("seed_models", starter=starter)
    assert DiffusionModel.objects.get(name="stable-diffusion-v1-5").revision == "fetched"


def test_a_broken_starter_is_said_and_leaves_nothing(starter: Path, tmp_path: Path) -> None:
    (starter / UNET).write_bytes(b"x" * 100)
    with pytest.raises(CommandError, match="starter"):
        run("seed_models", starter=starter)
    assert not DiffusionModel.objects.filter(name=STARTER.name).exists()
    assert not (tmp_path / "files").exists()


def test_two_machines_may_seed_at_once(starter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("seed_models", starter=starter)
    real = installation._site_model
    seen: list[str] = []

    def blind_once(name: str) -> DiffusionModel | None:
        seen.append(name)
        return None if seen.count(name) == 1 else real(name)

    monkeypatch.setattr(installation, "_site_model", blind_once)
    run("seed_models", starter=starter)
    assert DiffusionModel.objects.count() == len(REMOTE_MODELS) + 1


def test_the_seeds_speak_the_readers_language(starter: Path) -> None:
    run("seed_models", starter=starter)
    with translation.override("en"):
        for model in DiffusionModel.objects.all():
            assert model.shown_title == model.title
            assert model.shown_description == model.description


@pytest.mark.skipif(
    not (STARTER_FOLDER / "model_index.json").exists(), reason="the starter is not trained yet"
)
def test_the_real_starter_is_installed() -> None:
    run("seed_models")
    model = DiffusionModel.objects.get(name=STARTER.name)
    assert model.architecture == "sd1"
    assert model.size_bytes <= 20_000_000
    assert (model.weights_folder() / "model_index.json").is_file()
    with storage.open_key(model.thumbnail_key) as picture:
        assert Image.open(picture).format == "WEBP"


def test_a_starter_without_a_picture_is_installed_all_the_same(starter: Path) -> None:
    run("seed_models", starter=starter)
    assert DiffusionModel.objects.get(name=STARTER.name).thumbnail_key == ""


def test_the_generator_accepts_the_seeds_defaults() -> None:
    for known in (STARTER, *REMOTE_MODELS):
        settings = check_default_settings(known.default_settings, known.category)
        assert settings == known.default_settings


# --- folders ------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl", "svd"])
def test_a_folder_becomes_a_shared_base(tmp_path: Path, architecture: str) -> None:
    folder = write_pipeline(tmp_path / f"My_{architecture} model", architecture)
    (folder / "unet/extra.bin").write_bytes(b"pickle")
    out = run("add_model", folder, trigger=["sks"])
    model = DiffusionModel.objects.get()
    assert "is ready" in out
    assert model.name == f"My_{architecture}-model"
    assert (model.type, model.architecture) == ("base_model", architecture)
    assert (model.owner, model.visibility, model.availability) == (None, "shared", "ready")
    assert model.category == ("video" if architecture == "svd" else "image")
    assert model.trigger_words == ["sks"]
    assert not any(entry["name"].endswith(".bin") for entry in model.files)
    kept = json.loads((model.weights_folder() / "model_index.json").read_text())
    assert "_class_name" in kept


@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_a_folder_for_inpainting_is_known_as_such(tmp_path: Path, architecture: str) -> None:
    out = run("add_model", write_pipeline(tmp_path / "painter", architecture, channels=9))
    model = DiffusionModel.objects.get()
    assert (model.architecture, model.is_inpainting, model.is_ready) == (architecture, True, True)
    assert "for inpainting" in out


def test_a_real_pipeline_loads_from_the_storage(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from diffusers import StableDiffusionPipeline

    from tests.tiny import make_tiny_sd

    run("add_model", make_tiny_sd(tmp_path / "tiny"), name="tiny")
    folder = DiffusionModel.objects.get().weights_folder()
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert pipeline.safety_checker is None


@pytest.mark.parametrize(
    ("name", "word"),
    [("123", "digits"), ("a b", "letters"), ("../x", "letters"), ("taken", "already")],
)
def test_unusable_names_are_refused(tmp_path: Path, make_base: Make, name: str, word: str) -> None:
    make_base("taken")
    with pytest.raises(CommandError, match=word):
        run("add_model", write_pipeline(tmp_path / "f"), name=name)
    assert DiffusionModel.objects.count() == 1


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no diffusers folder"):
        run("add_model", tmp_path)


def test_a_folder_completes_a_remote_model_of_its_name(starter: Path, tmp_path: Path) -> None:
    run("seed_models", starter=starter)
    name = "stable-diffusion-v1-5"
    with pytest.raises(CommandError, match="holds sdxl"):
        run("add_model", write_pipeline(tmp_path / "xl", "sdxl"), name=name)
    run("add_model", write_pipeline(tmp_path / "sd"), name=name)
    model = DiffusionModel.objects.get(name=name)
    assert (model.availability, model.title) == ("ready", "Stable Diffusion 1.5")


def test_a_full_disk_is_said_and_nothing_is_left(tmp_path: Path, settings: Any) -> None:
    settings.STUDIO_MIN_FREE_BYTES = 10**18
    with pytest.raises(CommandError, match="disk is full"):
        run("add_model", write_pipeline(tmp_path / "f"))
    assert not DiffusionModel.objects.exists()
    assert stored_files(tmp_path / "files") == []


def test_a_failure_in_the_middle_removes_what_was_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = storage.save, []

    def save(key: str, source: Any) -> int:
        calls.append(key)
        if len(calls) == 4:
            raise OSError("gone")
        return real(key, source)

    monkeypatch.setattr(storage, "save", save)
    with pytest.raises(OSError, match="gone"):
        run("add_model", write_pipeline(tmp_path / "f"))
    assert not DiffusionModel.objects.exists()
    assert stored_files(tmp_path / "files") == []


# --- downloads ----------------------------------------------------------------------------------
@pytest.fixture
def hub(tmp_path: Path, settings: Any) -> Iterator[FakeHub]:
    source = write_pipeline(tmp_path / "source")
    write_safetensors(source / UNET, {"conv_in.weight": (4, 4, 3, 3), "big": (200_000,)})
    with serving(FakeHub(contents_of(source))) as fake:
        settings.STUDIO_HUB_ENDPOINT = fake.endpoint
        settings.STUDIO_HUB_TOKEN = ""
        yield fake


@pytest.fixture
def remote(make_base: Make, hub: FakeHub) -> DiffusionModel:
    return make_base("sd", availability="remote", path="", source=hub.repository, revision=REVISION)


def fetch(*args: Any, **options: Any) -> str:
    return run("fetch_model", *args, pause_seconds=0.001, **options)


def test_a_remote_model_is_fetched(
    remote: DiffusionModel, hub: FakeHub, tmp_path: Path, sent: list[Any]
) -> None:
    out = fetch("sd")
    remote.refresh_from_db()
    assert (remote.availability, remote.failure, remote.availability_detail) == ("ready", "", "")
    assert (remote.weights_folder() / UNET).read_bytes() == hub.files[UNET]
    assert "100 %" in out and "sd is ready." in out and "to download" in out
    assert [event["availability"] for _, event in sent] == ["downloading", "ready"]
    assert not any((tmp_path / "work/hub").iterdir())
    assert "here already" in fetch(str(remote.pk))


def test_what_is_fetched_tells_itself_that_it_is_for_inpainting(
    make_base: Make, tmp_path: Path, settings: Any
) -> None:
    source = write_pipeline(tmp_path / "source", channels=9, name="StableDiffusionInpaintPipeline")
    with serving(FakeHub(contents_of(source))) as fake:
        settings.STUDIO_HUB_ENDPOINT, settings.STUDIO_HUB_TOKEN = fake.endpoint, ""
        model = make_base(
            "hole", availability="remote", path="", source=fake.repository, revision=REVISION
        )
        fetch("hole")
    model.refresh_from_db()
    assert (model.availability, model.is_inpainting) == ("ready", True)


def test_a_broken_connection_is_survived(remote: DiffusionModel, hub: FakeHub) -> None:
    hub.cut_after[UNET] = 100_000
    fetch("sd")
    remote.refresh_from_db()
    assert remote.availability == "ready"


def test_an_interrupted_download_goes_on(
    remote: DiffusionModel, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models_app.management.commands import fetch_model

    def stop(self: Any, name: str, here: int, total: int) -> None:
        if name == UNET:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch_model._Progress, "show", stop)
        with pytest.raises(CommandError, match="same command goes on"):
            fetch("sd")
    remote.refresh_from_db()
    assert (remote.availability, remote.failure) == ("failed", "interrupted")
    hub.asked.clear()
    fetch("sd")
    assert not any("vae/diffusion" in path and "text" in path for path, _ in hub.asked)
    remote.refresh_from_db()
    assert (remote.availability, remote.failure) == ("ready", "")


def test_a_gated_model_asks_for_its_licence(remote: DiffusionModel, hub: FakeHub) -> None:
    hub.gate = (403, "GatedRepo")
    with pytest.raises(CommandError, match="STUDIO_HUB_TOKEN"):
        fetch("sd")
    remote.refresh_from_db()
    assert (remote.availability, remote.failure) == ("failed", "licence_required")
    assert "licence" in remote.availability_detail


def test_the_token_and_the_endpoint_are_used(
    remote: DiffusionModel, hub: FakeHub, settings: Any
) -> None:
    hub.token = settings.STUDIO_HUB_TOKEN = "hf_secret"
    fetch("sd")


def test_a_hub_that_is_away_is_said(remote: DiffusionModel, settings: Any) -> None:
    settings.STUDIO_HUB_ENDPOINT = "http://127.0.0.1:9"
    with pytest.raises(CommandError, match="cannot be reached"):
        fetch("sd")
    remote.refresh_from_db()
    assert remote.failure == "hub_unreachable"


def test_another_family_than_announced_is_refused(
    make_base: Make, hub: FakeHub, tmp_path: Path
) -> None:
    make_base(
        "xl", architecture="sdxl", availability="remote", path="", source=hub.repository,
        revision=REVISION,
    )  # fmt: skip
    with pytest.raises(CommandError, match="not what was expected"):
        fetch("xl")
    assert DiffusionModel.objects.get(name="xl").failure == "files_invalid"
    assert stored_files(tmp_path / "files") == []


def test_a_full_disk_stops_before_the_download(
    remote: DiffusionModel, hub: FakeHub, settings: Any
) -> None:
    settings.STUDIO_MIN_FREE_BYTES = 10**18
    with pytest.raises(CommandError, match="disk is full"):
        fetch("sd")
    remote.refresh_from_db()
    assert remote.failure == "disk_full"
    assert hub.sent_bytes < 2000


def test_only_one_process_downloads_a_model(remote: DiffusionModel, settings: Any) -> None:
    folder = Path(settings.STUDIO_WORK_DIR) / "hub" / f"sd-{REVISION[:12]}"
    folder.mkdir(parents=True)
    with installation._only_one(folder), pytest.raises(CommandError, match="Another process"):
        fetch("sd")
    remote.refresh_from_db()
    assert remote.availability == "remote"


def test_unknown_names_list_the_known(remote: DiffusionModel) -> None:
    with pytest.raises(CommandError, match="Known: sd"):
        fetch("other")


def test_a_model_without_a_hub_cannot_be_fetched(make_base: Make) -> None:
    make_base("local", availability="failed", path="")
    with pytest.raises(CommandError, match="did not come from"):
        fetch("local")


def test_every_hub_error_has_a_sentence_on_the_page() -> None:
    for code in ("hub_unreachable", "hub_not_found", "hub_refused", "licence_required",
                 "download_damaged"):  # fmt: skip
        error = installation._failure_of(HubError(code, "x."))
        assert DiffusionModel.Failure(error.code).label
