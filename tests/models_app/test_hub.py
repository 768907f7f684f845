"""Downloads from a hub that breaks, lies and refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from models_app.folders import inspect_folder
from models_app.hub import ATTEMPTS_WITHOUT_PROGRESS, Hub, HubError
from models_app.inspection import InspectionError
from tests.models_app.fake_hub import REVISION, FakeHub, contents_of, serving
from tests.models_app.fixture_folders import write_pipeline, write_safetensors

UNET = "unet/diffusion_pytorch_model.safetensors"
BIG = 300_000


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    source = write_pipeline(tmp_path.parent / f"{tmp_path.name}-source")
    shapes = {"conv_in.weight": (4, 4, 3, 3), "big": (BIG,)}
    write_safetensors(source / UNET, shapes)
    files = contents_of(source)
    files["model.ckpt"] = files["README.md"] = files["unet/model.bin"] = b"not asked for"
    with serving(FakeHub(files)) as fake:
        yield fake


def fetch(hub: FakeHub, folder: Path, *, half: bool = False, **client: str) -> list[int]:
    told: list[int] = []
    Hub(hub.endpoint, pause_seconds=0.001, **client).fetch_folder(
        hub.repository,
        REVISION,
        folder,
        half_precision=half,
        on_progress=lambda name, here, total: told.append(here),
    )
    return told


def failing(hub: FakeHub, folder: Path, **client: str) -> HubError:
    with pytest.raises(HubError) as caught:
        fetch(hub, folder, **client)
    return caught.value


def test_brings_what_a_pipeline_needs_and_nothing_else(hub: FakeHub, tmp_path: Path) -> None:
    told = fetch(hub, tmp_path / "here")
    here = contents_of(tmp_path / "here")
    assert inspect_folder(tmp_path / "here").architecture == "sd1"
    assert all(hub.files[name] == content for name, content in here.items())
    assert {Path(name).suffix for name in here} == {".safetensors", ".json", ".txt"}
    assert "README.md" not in here
    assert told == sorted(told)
    assert told[-1] == sum(len(c) for n, c in here.items() if n != "model_index.json")


def test_goes_on_after_a_broken_connection(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut_after[UNET] = 200_000
    fetch(hub, tmp_path)
    assert (tmp_path / UNET).read_bytes() == hub.files[UNET]
    ranges = [asked for path, asked in hub.asked if path.endswith(UNET)]
    assert ranges[0] == ""
    assert ranges[1].startswith("bytes=") and ranges[1] != "bytes=0-"


def test_a_second_run_goes_on_where_the_first_was_killed(hub: FakeHub, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(name: str, here: int, total: int) -> None:
        if name == UNET:
            raise Killed

    client = Hub(hub.endpoint, pause_seconds=0.001)
    with pytest.raises(Killed):
        client.fetch_folder(hub.repository, REVISION, tmp_path, on_progress=kill)
    part = tmp_path / f"{UNET}.part"
    assert part.stat().st_size > 0
    part.write_bytes(hub.files[UNET][:400_000])
    before = hub.sent_bytes
    coming: list[int] = []
    client.fetch_folder(hub.repository, REVISION, tmp_path, on_plan=coming.append)
    assert (tmp_path / UNET).read_bytes() == hub.files[UNET]
    rest = sum(len(c) for n, c in hub.files.items() if n.startswith("vae/diffusion"))
    assert hub.sent_bytes - before == coming[0]
    assert coming[0] < len(hub.files[UNET]) - 400_000 + rest + 2000


def test_nothing_is_downloaded_twice(hub: FakeHub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    before = hub.sent_bytes
    fetch(hub, tmp_path)
    assert hub.sent_bytes == before


def test_a_hub_that_ignores_ranges_sends_it_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.ignores_ranges = True
    hub.cut_after[UNET] = 100_000
    told = fetch(hub, tmp_path)
    assert (tmp_path / UNET).read_bytes() == hub.files[UNET]
    assert told[-1] == sum(
        len(c) for n, c in contents_of(tmp_path).items() if n != "model_index.json"
    )


def test_a_partial_file_that_is_too_long_starts_over(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / f"{UNET}.part").write_bytes(b"x" * (len(hub.files[UNET]) + 5))
    fetch(hub, tmp_path)
    assert (tmp_path / UNET).read_bytes() == hub.files[UNET]


def test_a_wrong_checksum_is_noticed_and_the_file_removed(hub: FakeHub, tmp_path: Path) -> None:
    hub.lies = {UNET}
    assert failing(hub, tmp_path).code == "download_damaged"
    assert not (tmp_path / UNET).exists()
    assert not (tmp_path / f"{UNET}.part").exists()
    hub.lies = set()
    fetch(hub, tmp_path)


def test_a_damaged_partial_file_is_noticed(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json.part").write_bytes(b"x")
    assert failing(hub, tmp_path).code == "download_damaged"


def test_half_precision_is_taken_on_request(hub: FakeHub, tmp_path: Path) -> None:
    hub.files[UNET.replace(".safe", ".fp16.safe")] = hub.files[UNET]
    fetch(hub, tmp_path, half=True)
    assert (tmp_path / UNET.replace(".safe", ".fp16.safe")).exists()
    assert not (tmp_path / UNET).exists()


@pytest.mark.parametrize("gate", [(401, "GatedRepo"), (403, "GatedRepo"), (403, "")])
def test_a_licence_is_asked_for_in_words(
    hub: FakeHub, tmp_path: Path, gate: tuple[int, str]
) -> None:
    hub.gate = gate
    error = failing(hub, tmp_path)
    assert error.code == "licence_required"
    assert "STUDIO_HUB_TOKEN" in error.detail


def test_a_token_opens_what_is_gated(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    assert failing(hub, tmp_path).code == "licence_required"
    fetch(hub, tmp_path, token="hf_secret")


def test_what_the_hub_does_not_have(hub: FakeHub, tmp_path: Path) -> None:
    hub.repository = "owner/other"
    with pytest.raises(HubError) as caught:
        Hub(hub.endpoint).list_files("owner/nothing", REVISION)
    assert caught.value.code == "hub_not_found"
    with pytest.raises(HubError) as caught:
        Hub(hub.endpoint).list_files("owner/other", "f" * 40)
    assert caught.value.code == "hub_not_found"
    del hub.files["model_index.json"]
    assert failing(hub, tmp_path).code == "hub_not_found"


def test_a_repository_of_pickles_is_refused_before_its_weights_come(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.files["vae/diffusion_pytorch_model.bin"] = hub.files.pop(
        "vae/diffusion_pytorch_model.safetensors"
    )
    with pytest.raises(InspectionError, match="pickled"):
        fetch(hub, tmp_path)
    assert list(contents_of(tmp_path)) == ["model_index.json"]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_troubled_hub_is_tried_again_and_then_reported(
    hub: FakeHub, tmp_path: Path, status: int
) -> None:
    hub.gate = (status, "")
    assert failing(hub, tmp_path).code == "hub_unreachable"
    tries = [path for path, _ in hub.asked if path.endswith("model_index.json")]
    assert len(tries) == ATTEMPTS_WITHOUT_PROGRESS


def test_other_refusals_are_final(hub: FakeHub, tmp_path: Path) -> None:
    hub.gate = (410, "")
    assert failing(hub, tmp_path).code == "hub_refused"
    assert sum("resolve" in path for path, _ in hub.asked) == 1


def test_a_hub_that_is_away(tmp_path: Path) -> None:
    with serving(FakeHub({})) as gone:
        pass
    error = failing(gone, tmp_path)
    assert error.code == "hub_unreachable"
    assert "STUDIO_HUB_ENDPOINT" in error.detail


def test_the_hub_goes_away_in_the_middle(hub: FakeHub, tmp_path: Path) -> None:
    fetched = Hub(hub.endpoint, pause_seconds=0.001)

    def cut(name: str, here: int, total: int) -> None:
        hub.gate = (503, "")
        raise httpx2.ReadError("gone")

    with pytest.raises(HubError) as caught:
        fetched.fetch_folder(hub.repository, REVISION, tmp_path, on_progress=cut)
    assert caught.value.code == "hub_unreachable"
    hub.gate = None
    fetch(hub, tmp_path)
    assert inspect_folder(tmp_path).files
