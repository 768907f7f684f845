"""What people may do with models, and who hears of it."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from models_app import services, texts
from models_app.models import DiffusionModel
from studio_project import storage
from studio_project.api import Problem
from studio_project.models import User

Make = Callable[..., DiffusionModel]
Sent = list[tuple[str, dict[str, Any]]]
Heard = list[tuple[int, str]]


def refused(code: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code
    return caught.value


# --- resolve_model ------------------------------------------------------------------------------
def test_an_id_comes_first(make_base: Make, alice: User) -> None:
    base = make_base()
    assert services.resolve_model(alice, base.pk) == base
    assert services.resolve_model(alice, f" {base.pk} ") == base
    assert services.resolve_model(alice, base.name) == base


@pytest.mark.parametrize("ref", ["", "nothing", "0", "9" * 30, "-1", "٣", "x" * 5000, "%", 10**17])
def test_an_unknown_reference_is_not_found(db: None, alice: User, ref: Any) -> None:
    problem = refused("model_not_found", services.resolve_model, alice, ref)
    assert problem.status == 404
    assert "model" in problem.fields


def test_models_of_strangers_do_not_exist(make_lora: Make, alice: User, staff: User) -> None:
    model = make_lora(alice)
    refused("model_not_found", services.resolve_model, staff, model.pk)
    refused("model_not_found", services.resolve_model, staff, model.name)


def test_own_comes_before_shared(make_lora: Make, alice: User, bob: User) -> None:
    mine = make_lora(alice, name="fox")
    make_lora(bob, name="fox", visibility="shared")
    assert services.resolve_model(alice, "fox") == mine


def test_names_are_exact(make_lora: Make, alice: User) -> None:
    make_lora(alice, name="fox", title="The fox")
    for near in ("Fox", "fo", "fox2", "The fox"):
        refused("model_not_found", services.resolve_model, alice, near)


def test_several_of_a_name_are_ambiguous(make_lora: Make, alice: User, bob: User) -> None:
    shared = [make_lora(bob, name="fox", visibility="shared") for _ in range(2)]
    problem = refused("model_ambiguous", services.resolve_model, alice, "fox")
    assert problem.status == 409
    assert problem.extra["ids"] == sorted(model.pk for model in shared)
    own = [make_lora(alice, name="fox") for _ in range(2)]
    problem = refused("model_ambiguous", services.resolve_model, alice, "fox")
    assert problem.extra["ids"] == sorted(model.pk for model in own)


def test_an_unusable_one_does_not_stand_in_the_way(make_lora: Make, alice: User, bob: User) -> None:
    make_lora(alice, name="fox", is_active=False)
    shared = make_lora(bob, name="fox", visibility="shared")
    assert services.resolve_model(alice, "fox") == shared


def test_what_is_seen_but_not_usable_says_why(
    make_base: Make, make_lora: Make, alice: User
) -> None:
    remote = make_base("sd", availability="remote", path="")
    for ref in ("sd", remote.pk):
        problem = refused("model_unavailable", services.resolve_model, alice, ref)
        assert problem.status == 409
        assert "fetch_model sd" in problem.detail
    lora = make_lora(alice, base_model=make_base(is_active=False))
    refused("model_unavailable", services.resolve_model, alice, lora.pk)


# --- editing ------------------------------------------------------------------------------------
def test_the_owner_renames_and_describes(make_lora: Make, alice: User, sent: Sent) -> None:
    model = make_lora(alice)
    services.rename(alice, model, "  The   fox ")
    services.describe(
        alice,
        model,
        description="Red.",
        trigger_words=["sks  fox", "", "sks fox"],
        default_settings={"width": 64, "scheduler": "ddim", "height": None},
    )
    model.refresh_from_db()
    assert (model.title, model.description) == ("The fox", "Red.")
    assert model.trigger_words == ["sks fox"]
    assert model.default_settings == {"width": 64, "scheduler": "ddim"}
    assert model.version == 3
    changes = [event["version"] for _, event in sent if event["type"] == "diffusion_model.changed"]
    assert changes == [2, 3]


def test_strangers_and_readers_change_nothing(
    make_lora: Make, make_base: Make, alice: User, bob: User, staff: User
) -> None:
    private = make_lora(alice)
    shared = make_lora(alice, visibility="shared")
    for user in (bob, staff):
        assert refused("not_found", services.rename, user, private, "x").status == 404
    assert refused("not_yours", services.rename, bob, shared, "x").status == 403
    refused("not_yours", services.rename, alice, make_base(), "x")
    refused("not_yours", services.delete_model, bob, shared)
    services.rename(staff, shared, "By staff")


@pytest.mark.parametrize(
    "changes",
    [
        {"title": " "},
        {"title": "x" * 201},
        {"title": "a\x00b"},
        {"title": 7},
        {"description": "x" * 4001},
        {"trigger_words": "fox"},
        {"trigger_words": ["x" * 101]},
        {"trigger_words": [str(i) for i in range(21)]},
        {"trigger_words": [1]},
        {"default_settings": []},
        {"default_settings": {"steps": 3}},
        {"default_settings": {"width": "64"}},
        {"default_settings": {"width": True}},
        {"default_settings": {"guidance_scale": float("nan")}},
        {"default_settings": {"scheduler": 3}},
        {"default_settings": {"num_frames": 3}},
    ],
)
def test_bad_values_name_their_field_and_change_nothing(
    make_lora: Make, alice: User, changes: dict[str, Any]
) -> None:
    model = make_lora(alice)
    problem = refused("invalid", services.edit_model, alice, model, {"title": "New", **changes})
    assert next(iter(problem.fields)).startswith(next(iter(changes)))
    model.refresh_from_db()
    assert model.version == 1


def test_a_generator_may_refuse_default_settings(
    make_lora: Make, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "_settings_checks", [])

    def check(settings: Any, category: str) -> dict[str, list[str]]:
        return {"width": ["Too wide."]} if settings.get("width", 0) > 2048 else {}

    texts.register_settings_check(check)
    model = make_lora(alice)
    services.describe(alice, model, default_settings={"width": 2048})
    problem = refused("invalid", services.describe, alice, model, default_settings={"width": 4096})
    assert problem.fields == {"default_settings.width": ["Too wide."]}


# --- sharing ------------------------------------------------------------------------------------
def test_sharing_tells_everyone(make_lora: Make, alice: User, sent: Sent) -> None:
    model = make_lora(alice)
    sent.clear()
    services.share(alice, model, "shared")
    assert [(g, e["type"], e["visibility"]) for g, e in sent] == [
        ("studio", "diffusion_model.registered", "shared")
    ]


def test_a_lora_is_not_shared_without_its_base(
    make_lora: Make, make_base: Make, alice: User
) -> None:
    base = make_base(owner=alice, type="full")
    model = make_lora(alice, base_model=base)
    problem = refused("base_not_shared", services.share, alice, model, "shared")
    assert problem.status == 409
    services.share(alice, base, "shared")
    services.share(alice, model, "shared")
    refused("model_in_use", services.share, alice, base, "private")
    services.share(alice, model, "private")
    services.share(alice, base, "private")


def test_a_base_stays_shared_while_others_build_on_it(
    make_lora: Make, make_base: Make, alice: User, bob: User
) -> None:
    base = make_base(owner=alice, type="full", visibility="shared")
    make_lora(bob, base_model=base)
    refused("model_in_use", services.share, alice, base, "private")


def test_models_of_the_site_stay_shared(make_base: Make, staff: User) -> None:
    refused("site_model", services.share, staff, make_base(), "private")


def test_unsharing_takes_it_from_the_others_only(
    make_lora: Make, alice: User, sent: Sent, heard: Heard
) -> None:
    model = make_lora(alice, visibility="shared")
    sent.clear()
    services.share(alice, model, "private")
    model.refresh_from_db()
    (everyone, lost), (owner, kept) = sent
    assert (everyone, lost["gone"]) == ("studio", True)
    assert set(lost) == {"type", "id", "version", "ts", "gone"}
    assert (owner, kept["visibility"]) == (f"user.{alice.pk}", "private")
    # The owner gets both, in any order: the one that keeps the model is the newer.
    assert lost["version"] < kept["version"] == model.version
    assert heard == [(model.pk, "unshared")]


# --- activation ---------------------------------------------------------------------------------
def test_only_staff_switches_models_off(make_lora: Make, alice: User) -> None:
    problem = refused("staff_only", services.deactivate_model, alice, make_lora(alice))
    assert problem.status == 403


def test_switching_a_base_off_reaches_what_builds_on_it(
    make_lora: Make, make_base: Make, alice: User, staff: User, sent: Sent, heard: Heard
) -> None:
    base = make_base()
    lora = make_lora(alice, base_model=base)
    sent.clear()
    services.deactivate_model(staff, base)
    assert {(group, event["id"], event["usable"]) for group, event in sent} == {
        ("studio", base.pk, False),
        (f"user.{alice.pk}", lora.pk, False),
    }
    assert set(heard) == {(base.pk, "deactivated"), (lora.pk, "deactivated")}
    assert not DiffusionModel.objects.usable_by(alice).exists()
    sent.clear()
    services.deactivate_model(staff, base)
    assert sent == []
    services.activate_model(staff, base)
    assert {event["usable"] for _, event in sent} == {True}
    assert DiffusionModel.objects.get(pk=lora.pk).version == 3


# --- deleting -----------------------------------------------------------------------------------
def test_deleting_keeps_the_row_and_tells(
    make_lora: Make, alice: User, sent: Sent, heard: Heard
) -> None:
    model = make_lora(alice)
    sent.clear()
    services.delete_model(alice, model)
    (group, event), = sent  # fmt: skip
    assert (group, event["type"], event["gone"]) == (
        f"user.{alice.pk}", "diffusion_model.deleted", True,
    )  # fmt: skip
    assert event["version"] == model.version == 2
    assert heard == [(model.pk, "deleted")]
    assert DiffusionModel.objects.filter(pk=model.pk, deleted_at__isnull=False).exists()
    alice.refresh_from_db()
    assert alice.stored_bytes == 0
    refused("not_found", services.delete_model, alice, model)
    alice.refresh_from_db()
    assert alice.stored_bytes == 0


def test_a_base_that_others_build_on_is_not_deleted(
    make_lora: Make, make_base: Make, alice: User, staff: User
) -> None:
    base = make_base()
    lora = make_lora(alice, base_model=base)
    problem = refused("model_in_use", services.delete_model, staff, base)
    assert problem.status == 409
    assert problem.hint
    services.delete_model(alice, lora)
    services.delete_model(staff, base)


# --- pictures -----------------------------------------------------------------------------------
def _picture(size: tuple[int, int], mode: str = "RGB", kind: str = "PNG") -> BytesIO:
    out = BytesIO()
    Image.new(mode, size, (0,) * len(mode)).save(out, kind)
    out.seek(0)
    return out


def test_a_picture_becomes_a_small_webp(make_lora: Make, alice: User) -> None:
    model = make_lora(alice)
    services.set_thumbnail(alice, model, _picture((1200, 600), "RGBA"))
    with storage.open_key(model.thumbnail_key) as handle:
        shown = Image.open(handle)
        assert (shown.format, shown.size) == ("WEBP", (512, 256))
        assert shown.convert("RGB").getpixel((3, 3)) == (255, 255, 255)
    first = model.thumbnail_key
    services.set_thumbnail(alice, model, _picture((20, 20), kind="JPEG"))
    assert model.thumbnail_key != first
    services.set_thumbnail(alice, model, None)
    assert model.thumbnail_key == ""


def test_a_picture_for_a_model_that_is_deleted_meanwhile_leaves_no_file(
    make_lora: Make, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, keys, save = make_lora(alice), list[str](), storage.save

    def save_too_late(key: str, source: Any) -> int:
        services.delete_model(alice, DiffusionModel.objects.get(pk=model.pk))
        keys.append(key)
        return save(key, source)

    monkeypatch.setattr(storage, "save", save_too_late)
    problem = refused("not_found", services.set_thumbnail, alice, model, _picture((20, 20)))
    assert problem.status == 404
    assert not storage.exists(keys[0])


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n"]
)
def test_no_picture_is_refused(make_lora: Make, alice: User, content: bytes) -> None:
    refused("thumbnail_invalid", services.set_thumbnail, alice, make_lora(alice), BytesIO(content))


def test_too_large_a_picture_is_refused(
    make_lora: Make, alice: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.STUDIO_MAX_PIXELS = 100
    model = make_lora(alice)
    refused("thumbnail_invalid", services.set_thumbnail, alice, model, _picture((11, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    refused("thumbnail_invalid", services.set_thumbnail, alice, model, _picture((9, 9)))
    huge = BytesIO(b"\0" * (20 * 1024**2 + 1))
    refused("thumbnail_invalid", services.set_thumbnail, alice, model, huge)
