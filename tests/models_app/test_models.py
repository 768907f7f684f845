"""What model rows promise by themselves: constraints, visibility, registration, file keys."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone, translation

from models_app.layouts import kohya_key
from models_app.models import DiffusionModel, trained_model_name
from studio_project import storage
from studio_project.models import User

Make = Callable[..., DiffusionModel]


def test_a_trained_model_is_named_after_time_and_job() -> None:
    job = uuid.UUID("1a2b3c4d-0000-4000-8000-000000000000")
    moment = datetime(2026, 1, 31, 23, 59, 58, tzinfo=UTC)
    assert trained_model_name(job, moment) == "Trained-20260131-235958-1a2b3c4d"


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "vae"},
        {"category": "sound"},
        {"architecture": "flux"},
        {"availability": "soon"},
        {"visibility": "public"},
        {"availability": "ready", "path": ""},
        {"visibility": "private"},
        {"type": "lora"},
    ],
)
def test_the_database_refuses_impossible_rows(db: None, wrong: dict[str, Any]) -> None:
    row = {
        "name": "a", "title": "A", "type": "base_model", "architecture": "sd1",
        "path": "models/a", "visibility": "shared",
    }  # fmt: skip
    with pytest.raises(IntegrityError), transaction.atomic():
        DiffusionModel.objects.create(**{**row, **wrong})


def test_names_of_the_site_are_unique_until_deleted(make_base: Make) -> None:
    first = make_base("one")
    with pytest.raises(IntegrityError), transaction.atomic():
        make_base("one")
    DiffusionModel.objects.filter(pk=first.pk).update(deleted_at=timezone.now())
    make_base("one")


def test_a_name_of_digits_is_refused(make_base: Make) -> None:
    with pytest.raises(ValueError, match="reads as an id"):
        make_base("123")


def test_people_see_their_own_and_the_shared(
    make_lora: Make, make_base: Make, alice: User, bob: User, staff: User
) -> None:
    base = make_base()
    private = make_lora(alice, base_model=base)
    shared = make_lora(bob, base_model=base, visibility="shared")
    deleted = make_lora(alice, base_model=base)
    DiffusionModel.objects.filter(pk=deleted.pk).update(deleted_at=timezone.now())

    def seen(user: User) -> set[int]:
        return set(DiffusionModel.objects.visible_to(user).values_list("pk", flat=True))

    assert seen(alice) == {base.pk, private.pk, shared.pk}
    assert seen(bob) == seen(staff) == {base.pk, shared.pk}
    editable = DiffusionModel.objects.editable_by
    assert set(editable(bob)) == {shared}
    assert set(editable(staff)) == {base, shared}
    assert set(editable(alice)) == {private}


def test_usable_means_ready_active_and_with_a_usable_base(
    make_lora: Make, make_base: Make, alice: User, bob: User
) -> None:
    fine, off = make_base(), make_base(is_active=False)
    remote = make_base(availability="remote", path="")
    lost = make_base(owner=bob)
    good = make_lora(alice, base_model=fine)
    bad = [
        make_lora(alice, base_model=off),
        make_lora(alice, base_model=remote),
        make_lora(alice, base_model=lost),
        make_lora(alice, base_model=fine, is_active=False),
    ]
    assert set(DiffusionModel.objects.usable_by(alice)) == {fine, good}
    assert good.usable
    assert not any(model.usable for model in bad)


def test_registration_tells_the_owner_alone(make_lora: Make, alice: User, sent: list[Any]) -> None:
    model = make_lora(alice)
    mine = [(group, event) for group, event in sent if event["id"] == model.pk]
    assert [(group, event["type"]) for group, event in mine] == [
        (f"user.{alice.pk}", "diffusion_model.registered")
    ]
    assert mine[0][1]["usable"] is True


def test_registration_of_a_shared_model_tells_everyone(make_base: Make, sent: list[Any]) -> None:
    make_base()
    assert [group for group, _event in sent] == ["studio"]


def test_registration_counts_the_bytes_and_takes_over_from_the_base(
    make_lora: Make, make_base: Make, alice: User
) -> None:
    base = make_base(architecture="sd2", default_settings={"width": 768})
    model = make_lora(alice, base_model=base)
    alice.refresh_from_db()
    assert alice.stored_bytes == model.size_bytes > 0
    assert (model.architecture, model.default_settings) == ("sd2", {"width": 768})


def test_trainings_of_one_dataset_on_one_base_are_numbered(
    make_lora: Make, make_base: Make, alice: User, bob: User
) -> None:
    base = make_base()

    def title(owner: User, dataset: str, on: DiffusionModel = base) -> str:
        return make_lora(owner, base_model=on, source_dataset_name=dataset).title

    assert [title(alice, "Fox"), title(alice, "Fox"), title(alice, "Cat")] == [
        "Fox v1", "Fox v2", "Cat v1",
    ]  # fmt: skip
    assert title(bob, "Fox") == "Fox v1"
    assert title(alice, "Fox", make_base()) == "Fox v1"
    assert make_lora(alice, title="Mine", source_dataset_name="Fox").title == "Mine"
    long = make_lora(alice, base_model=base, source_dataset_name="x" * 200)
    assert len(long.title) <= 200


def test_writing_raises_the_version_and_notices_deletion(make_base: Make) -> None:
    model = make_base()
    model.write(title="New")
    assert (model.title, model.version) == ("New", 2)
    DiffusionModel.objects.filter(pk=model.pk).update(deleted_at=timezone.now())
    with pytest.raises(DiffusionModel.DoesNotExist):
        model.write(title="Newer")


def test_weights_are_a_file_or_a_folder(make_lora: Make, make_base: Make, alice: User) -> None:
    lora = make_lora(alice)
    assert lora.weights_file().read_bytes() == lora.weights_folder().read_bytes()
    storage.save("models/b/unet/config.json", b"{}")
    base = make_base(path="models/b", files=[{"name": "unet/config.json", "size": 2}])
    assert (base.weights_folder() / "unet/config.json").read_bytes() == b"{}"
    with pytest.raises(FileNotFoundError):
        base.weights_file()
    with pytest.raises(FileNotFoundError):
        make_base(availability="remote", path="").weights_folder()


def test_keys_are_needed_until_a_day_after_deletion(
    make_lora: Make, make_base: Make, alice: User
) -> None:
    base = make_base(path="models/b", files=[{"name": "unet/config.json"}])
    lora = make_lora(alice, thumbnail_key="models/7/thumbs/x.webp", base_model=base)
    keys = [lora.path, "models/7/thumbs/x.webp", "models/b/unet/config.json", "models/b/stray"]
    assert DiffusionModel.objects.needed_keys(keys) == set(keys[:3])
    rows = DiffusionModel.objects.filter(pk=lora.pk)
    rows.update(deleted_at=timezone.now() - timedelta(hours=1))
    assert lora.path in DiffusionModel.objects.needed_keys(keys)
    rows.update(deleted_at=timezone.now() - timedelta(hours=25))
    assert DiffusionModel.objects.needed_keys(keys) == {"models/b/unet/config.json"}


def test_what_cannot_be_used_says_why_and_what_to_do(
    make_base: Make, make_lora: Make, alice: User
) -> None:
    remote = make_base("sd", availability="remote", path="")
    assert "manage.py fetch_model sd" in remote.availability_detail
    failed = make_base(availability="failed", path="", failure="licence_required")
    assert "STUDIO_HUB_TOKEN" in failed.availability_detail
    assert "fetch_model" in failed.availability_detail
    assert make_base(availability="downloading", path="").availability_detail
    off = make_base(is_active=False)
    assert "deactivated" in off.availability_detail
    assert off.title in make_lora(alice, base_model=off).availability_detail
    assert make_base().availability_detail == ""


def test_texts_of_people_are_never_translated(make_lora: Make, alice: User) -> None:
    model = make_lora(alice, title="Yes", description="No")
    with translation.override("fr"):
        assert (model.shown_title, model.shown_description) == ("Yes", "No")


def test_an_adapter_needs_its_base_and_a_whole_network_does_not(
    make_base: Make, make_lora: Make, alice: User, bob: User
) -> None:
    base = make_base()
    folder = {"owner": alice, "base_model": base, "visibility": "shared"}
    full = make_base(type="full", **folder)
    dreambooth = make_base(type="dreambooth", **folder)
    adapters = make_lora(alice, type="dreambooth", base_model=base, visibility="shared")
    lora = make_lora(alice, base_model=base, visibility="shared")
    rows = (full, dreambooth, adapters, lora)
    assert [row.is_adapter for row in rows] == [False, False, True, True]
    assert set(DiffusionModel.objects.building_on(base)) == {adapters, lora}
    usable = DiffusionModel.objects.usable_by(bob)
    assert set(usable.filter(owner=alice)) == set(rows)
    base.write(is_active=False)
    assert set(usable.all().filter(owner=alice)) == {full, dreambooth}
    for row in rows:
        row.refresh_from_db()
    assert [row.usable for row in rows] == [True, True, False, False]
    assert [bool(row.availability_detail) for row in rows] == [False, False, True, True]


def test_a_kohya_file_is_found_and_needed_with_its_model(make_lora: Make, alice: User) -> None:
    model = make_lora(alice, files=[{"name": "a"}, {"name": "k", "layout": "kohya"}])
    alone = make_lora(alice)
    keys = [model.path, kohya_key(model.path), kohya_key(alone.path), "models/other.safetensors"]
    assert model.storage_keys() == keys[:2]
    assert DiffusionModel.objects.needed_keys(keys) == set(keys[:2])
    assert DiffusionModel.objects.needed_keys([keys[1]]) == {keys[1]}
