"""The verbs of datasets: what they change, whom they let, what they tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import TemporaryUploadedFile

from datasets_app import intake, keeping, removal, services
from datasets_app.models import Dataset, DatasetImage
from studio_project import storage
from studio_project.api import Problem
from studio_project.models import AuditEntry, User, Visibility
from tests.datasets_app import makers
from tests.datasets_app.makers import png, upload, zipped

Files = Callable[[], set[str]]
Sent = Callable[[], list[tuple[str, dict[str, Any]]]]


def add(user: User, dataset: Dataset, files: dict[str, bytes]) -> services.UploadResult:
    return services.add_files(user, dataset, [upload(name, data) for name, data in files.items()])


def codes(result: services.UploadResult) -> dict[str, str]:
    return {item["name"]: item["code"] for item in result.rejected}


def captions(dataset: Dataset) -> dict[str, str]:
    rows = DatasetImage.objects.live().filter(dataset=dataset)
    return dict(rows.values_list("original_name", "caption"))


def problem(verb: Callable[..., object], *args: Any, **kwargs: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        verb(*args, **kwargs)
    return caught.value


def assert_counts_are_right(dataset: Dataset) -> None:
    dataset.refresh_from_db()
    sizes = list(
        DatasetImage.objects.live().filter(dataset=dataset).values_list("size_bytes", flat=True)
    )
    assert (dataset.num_items, dataset.size_bytes) == (len(sizes), sum(sizes))
    owner = User.objects.get(pk=dataset.owner_id)
    mine = Dataset.objects.live().filter(owner=owner).values_list("size_bytes", flat=True)
    assert owner.stored_bytes == sum(mine)


# --- datasets -----------------------------------------------------------------------------------
def test_a_dataset_is_private_and_empty(alice: User, sent: Sent) -> None:
    dataset = services.create_dataset(alice, name="  My \n fox ")
    assert (dataset.name, dataset.visibility, dataset.type) == ("My fox", "private", "image")
    assert (dataset.num_items, dataset.size_bytes, dataset.version) == (0, 0, 1)
    assert dataset.path == f"datasets/{dataset.pk}"
    ((group, event),) = sent()
    assert group == f"user.{alice.pk}"
    assert event["type"] == "dataset.changed"
    assert "My fox" not in json.dumps(event)


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "a\x00b", "a\x1bb", "\u202eevil"])
def test_unusable_names_are_refused(alice: User, foxes: Dataset, name: str) -> None:
    for verb, args in (
        (services.create_dataset, (alice,)),
        (services.edit_dataset, (alice, foxes)),
    ):
        refused = problem(verb, *args, name=name)
        assert (refused.status, list(refused.fields)) == (400, ["name"])
    foxes.refresh_from_db()
    assert foxes.name == "Foxes"


def test_other_types_and_visibilities_are_refused(alice: User) -> None:
    assert problem(services.create_dataset, alice, name="x", type="video").fields.keys() == {"type"}
    refused = problem(services.create_dataset, alice, name="x", visibility="public")
    assert refused.fields.keys() == {"visibility"}


def test_renaming_raises_the_version(alice: User, foxes: Dataset, sent: Sent) -> None:
    services.rename_dataset(alice, foxes, "Red foxes")
    assert (foxes.name, foxes.version) == ("Red foxes", 2)
    assert [event["version"] for _group, event in sent()] == [2]


def test_sharing_tells_everyone_and_unsharing_takes_it_back(
    alice: User, foxes: Dataset, sent: Sent
) -> None:
    services.share_dataset(alice, foxes, Visibility.SHARED)
    ((group, event),) = sent()
    assert (group, event["visibility"]) == ("studio", "shared")
    services.share_dataset(alice, foxes, Visibility.PRIVATE)
    (studio, gone), (own, changed) = sent()
    assert (studio, gone["gone"], set(gone)) == (
        "studio", True, {"type", "id", "version", "ts", "gone"},
    )  # fmt: skip
    assert (own, changed["visibility"]) == (f"user.{alice.pk}", "private")
    assert changed["version"] > gone["version"] > event["version"]
    actions = list(AuditEntry.objects.order_by("created_at").values_list("action", flat=True))
    assert actions == ["dataset.shared", "dataset.private"]


def test_strangers_find_nothing_and_guests_may_only_use(
    alice: User, bob: User, staff: User, foxes: Dataset
) -> None:
    add(alice, foxes, {"a.png": png()})
    image = foxes.images.get()
    verbs: list[tuple[Callable[..., object], tuple[Any, ...]]] = [
        (services.rename_dataset, (foxes, "Mine")),
        (services.share_dataset, (foxes, "shared")),
        (services.delete_dataset, (foxes,)),
        (services.add_files, (foxes, [upload("b.png", png(2))])),
        (services.edit_image, (image,)),
        (services.delete_image, (image,)),
    ]
    for verb, args in verbs:
        assert problem(verb, bob, *args).status == 404
    services.share_dataset(alice, foxes, Visibility.SHARED)
    for verb, args in verbs:
        assert problem(verb, bob, *args).status == 403
    services.rename_dataset(staff, foxes, "Foxes of the house")
    foxes.refresh_from_db()
    assert (foxes.name, foxes.num_items, foxes.owner) == ("Foxes of the house", 1, alice)


def test_staff_without_the_permission_do_not_touch_private_datasets(
    foxes: Dataset, db: None
) -> None:
    helper = User.objects.create_user("helper", is_staff=True)
    assert problem(services.rename_dataset, helper, foxes, "Mine").status == 404


def test_what_was_deleted_is_gone_for_everyone(
    alice: User, foxes: Dataset, sent: Sent, stored_files: Files, guards: list[Any]
) -> None:
    add(alice, foxes, {"a.png": png(1), "b.jpg": makers.encoded(makers.gradient(2), "JPEG")})
    assert len(stored_files()) == 4
    version = foxes.version
    sent()
    services.delete_dataset(alice, foxes)
    ((_group, event),) = sent()
    assert (event["type"], event["gone"]) == ("dataset.deleted", True)
    assert event["version"] > version
    assert not Dataset.objects.visible_to(alice).exists()
    assert not DatasetImage.objects.visible_to(alice).exists()
    alice.refresh_from_db()
    assert alice.stored_bytes == 0
    assert problem(services.delete_dataset, alice, foxes).status == 404
    assert problem(services.add_files, alice, foxes, [upload("c.png", png(3))]).status == 404

    assert services.collect_garbage() == 0, "a training may be about to name its pictures"
    assert services.collect_garbage(grace_seconds=0) == 3
    assert stored_files() == set()
    assert not Dataset.objects.exists()


# --- pictures -----------------------------------------------------------------------------------
def test_pictures_are_kept_counted_and_told_of(
    alice: User, foxes: Dataset, sent: Sent, stored_files: Files
) -> None:
    result = add(
        alice, foxes, {"a.png": png(1), "b.webp": makers.encoded(makers.gradient(2), "WEBP")}
    )
    assert [image.original_name for image in result.created] == ["a.png", "b.webp"]
    assert [image.format for image in result.created] == ["png", "jpeg"]
    assert result.rejected == []
    for image in result.created:
        assert storage.size(image.key) == image.size_bytes
        assert image.key.startswith(f"datasets/{foxes.pk}/")
        assert image.thumbnail_key.startswith(f"datasets/{foxes.pk}/thumbs/")
    assert stored_files() == {
        key for image in result.created for key in (image.key, image.thumbnail_key)
    }
    assert_counts_are_right(foxes)
    last = sent()[-1][1]
    assert (last["num_items"], last["version"]) == (2, foxes.version)


def test_every_bad_file_has_its_own_sentence_and_the_good_ones_are_taken(
    alice: User, foxes: Dataset, stored_files: Files
) -> None:
    whole = makers.encoded(makers.gradient(5, (200, 150)), "JPEG")
    files = {
        "good.png": png(1),
        "huge.png": makers.huge_png(),
        "cut.jpg": whole[: len(whole) // 2],
        "text.png": b"I am not a picture",
        "drawing.svg": makers.SVG,
        "phone.heic": makers.HEIC,
        "empty.png": b"",
        "moving.gif": makers.GIF,
        "bomb.zip": zipped({"a.png": b"\0" * 20_000_000}),
        "broken.zip": b"PK no",
        "secret.txt": "é".encode("latin-1"),
        "list.pdf": b"%PDF-1.7",
    }
    result = add(alice, foxes, files)
    assert [image.original_name for image in result.created] == ["good.png"]
    assert codes(result) == {
        "huge.png": "too_many_pixels",
        "cut.jpg": "truncated_picture",
        "text.png": "not_a_picture",
        "drawing.svg": "unsupported_svg",
        "phone.heic": "unsupported_heic",
        "empty.png": "empty_file",
        "moving.gif": "unsupported_gif",
        "bomb.zip": "archive_bomb",
        "broken.zip": "archive_unreadable",
        "secret.txt": "caption_encoding",
        "list.pdf": "unsupported_format",
    }
    details = [item["detail"] for item in result.rejected]
    assert len(set(details)) == len(details)
    assert "HEIC" in next(text for text in details if "HEIC" in text)
    assert "%(" not in "".join(details)
    assert len(stored_files()) == 2
    assert_counts_are_right(foxes)


def test_an_exact_duplicate_is_refused_with_the_name_of_the_other(
    alice: User, foxes: Dataset, stored_files: Files
) -> None:
    result = add(alice, foxes, {"a.png": png(1), "again.png": png(1), "b.png": png(2)})
    assert codes(result) == {"again.png": "duplicate_picture"}
    assert "a.png" in result.rejected[0]["detail"]
    as_webp = makers.encoded(makers.gradient(1), "WEBP", lossless=True)
    assert codes(add(alice, foxes, {"c.webp": as_webp})) == {"c.webp": "duplicate_picture"}
    assert len(stored_files()) == 4
    assert_counts_are_right(foxes)


def test_the_same_picture_may_be_in_two_datasets_and_come_back_after_deletion(
    alice: User, foxes: Dataset
) -> None:
    other = services.create_dataset(alice, name="Others")
    assert len(add(alice, other, {"a.png": png(1)}).created) == 1
    (image,) = add(alice, foxes, {"a.png": png(1)}).created
    services.delete_image(alice, image)
    assert len(add(alice, foxes, {"a.png": png(1)}).created) == 1
    assert_counts_are_right(foxes)


def test_losing_the_race_for_a_picture_leaves_nothing_behind(
    alice: User, foxes: Dataset, stored_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(alice, foxes, {"first.png": png(1)})
    before = stored_files()
    real, calls = intake.Intake._refuse_twin, []

    def blind_at_first(self: intake.Intake, picture: Any) -> None:
        calls.append(picture)
        if len(calls) > 1:
            real(self, picture)

    monkeypatch.setattr(intake.Intake, "_refuse_twin", blind_at_first)
    assert codes(add(alice, foxes, {"second.png": png(1)})) == {"second.png": "duplicate_picture"}
    assert stored_files() == before
    assert_counts_are_right(foxes)


def test_a_file_is_removed_when_its_row_cannot_be_made(
    alice: User, foxes: Dataset, stored_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: intake.Intake, picture: Any, **fields: str) -> None:
        raise RuntimeError("the database is away")

    monkeypatch.setattr(intake.Intake, "_insert", broken)
    with pytest.raises(RuntimeError):
        add(alice, foxes, {"a.png": png(1)})
    assert stored_files() == set()


def test_names_are_cut_and_cleaned_for_display(alice: User, foxes: Dataset) -> None:
    file = upload("x.png", png(1))
    file._name = "n" * 400 + ".png"  # what a parser less careful than Django's would hand over
    turned = upload("x.png", png(2))
    turned._name = "\u202egnp.exe\x00.png"
    result = services.add_files(alice, foxes, [file, turned])
    first, second = (image.original_name for image in result.created)
    assert (len(first), first[-4:]) == (300, ".png")
    assert second == "\ufffdgnp.exe\ufffd.png"
    assert len(result.created[0].shown_name) <= 60
    assert result.created[0].shown_name.endswith(".png")


def test_more_files_or_bytes_than_a_request_may_hold(
    alice: User, foxes: Dataset, settings: Any
) -> None:
    settings.STUDIO_MAX_REQUEST_FILES, settings.STUDIO_MAX_REQUEST_BYTES = 2, 1000
    three = [upload(f"{index}.png", b"x") for index in range(3)]
    refused = problem(services.add_files, alice, foxes, three)
    assert (refused.status, refused.code) == (413, "too_many_files")
    assert "8 MB" in refused.hint
    refused = problem(services.add_files, alice, foxes, [upload("a.png", b"x" * 1001)])
    assert (refused.status, refused.code) == (413, "request_too_large")
    assert problem(services.add_files, alice, foxes, []).fields.keys() == {"files"}


def test_files_on_disk_are_read_where_they_are(alice: User, foxes: Dataset) -> None:
    content = zipped({"a.png": png(1)})
    with TemporaryUploadedFile("set.zip", "application/zip", len(content), None) as file:
        file.write(content)
        file.seek(0)
        assert len(services.add_files(alice, foxes, [file]).created) == 1


def test_pictures_can_be_deleted(alice: User, foxes: Dataset, guards: list[Any]) -> None:
    first, second = add(alice, foxes, {"a.png": png(1), "b.png": png(2)}).created
    version = foxes.version
    services.delete_image(alice, first)
    assert_counts_are_right(foxes)
    assert (foxes.num_items, foxes.version) == (1, version + 1)
    assert problem(services.delete_image, alice, first).status == 404
    assert problem(services.edit_image, alice, first, caption="x").status == 404
    assert services.collect_garbage(grace_seconds=0) == 1
    assert not storage.exists(first.key)
    assert storage.exists(second.key)


# --- room ---------------------------------------------------------------------------------------
def test_a_nearly_full_disk_refuses_before_any_work(
    alice: User, foxes: Dataset, settings: Any, stored_files: Files
) -> None:
    settings.STUDIO_MIN_FREE_BYTES = 10**18
    refused = problem(services.add_files, alice, foxes, [upload("a.png", png())])
    assert (refused.status, refused.code) == (507, "disk_full")
    assert stored_files() == set()
    assert_counts_are_right(foxes)


@pytest.mark.parametrize("place", ["storage", "temporary"])
def test_a_disk_that_fills_meanwhile_keeps_what_was_taken(
    alice: User,
    foxes: Dataset,
    stored_files: Files,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    count = 0

    def full(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count > 2:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    target, name = (storage, "_write") if place == "storage" else (keeping, "keep_picture")
    real = getattr(target, name)
    monkeypatch.setattr(target, name, full)
    taken = 1 if place == "storage" else 2  # a picture and its thumbnail are two files
    files = {f"{index}.png": png(index) for index in range(5)}
    result = add(alice, foxes, files)
    assert len(result.created) == taken
    assert set(codes(result).values()) == {"disk_full"}
    assert len(result.rejected) == 5 - taken
    assert len(stored_files()) == 2 * taken
    assert_counts_are_right(foxes)
    with pytest.raises(Problem) as caught:
        add(alice, foxes, {"more.png": png(9)})
    assert caught.value.status == 507
    assert len(stored_files()) == 2 * taken


def test_no_half_picture_stays_when_the_thumbnail_finds_no_room(
    alice: User, foxes: Dataset, stored_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = storage._write

    def full(key: str, handle: Any) -> int:
        if "thumbs" in key:
            raise OSError(28, "No space left on device")
        return real(key, handle)

    monkeypatch.setattr(storage, "_write", full)
    assert problem(services.add_files, alice, foxes, [upload("a.png", png())]).code == "disk_full"
    assert stored_files() == set()


def test_the_owners_cap_holds_within_a_request(
    alice: User, staff: User, foxes: Dataset, stored_files: Files
) -> None:
    (first,) = add(alice, foxes, {"a.png": png(1)}).created
    User.objects.filter(pk=alice.pk).update(max_stored_bytes=2 * first.size_bytes + 20)
    result = add(alice, foxes, {f"{index}.png": png(index) for index in range(2, 6)})
    assert len(result.created) == 1
    assert set(codes(result).values()) == {"storage_full"}
    assert_counts_are_right(foxes)
    assert len(stored_files()) == 4
    services.share_dataset(alice, foxes, Visibility.SHARED)
    result = add(staff, foxes, {"of staff.png": png(9)})
    assert codes(result) == {"of staff.png": "storage_full"}, "the room is the owner's"


# --- captions -----------------------------------------------------------------------------------
def test_texts_beside_pictures_become_their_captions(alice: User, foxes: Dataset) -> None:
    files = {
        "b.txt": b"second fox",
        "a.png": png(1),
        "A.TXT": b"premier renard\n",
        "b.webp": makers.encoded(makers.gradient(2), "WEBP", lossless=True),
        "c.png": png(3),
    }
    result = add(alice, foxes, files)
    assert result.rejected == []
    assert captions(foxes) == {"a.png": "premier renard", "b.webp": "second fox", "c.png": ""}


def test_metadata_captions_new_pictures_and_those_already_there(
    alice: User, foxes: Dataset
) -> None:
    add(alice, foxes, {"old.png": png(1), "other.jpg": png(2)})
    metadata = "\n".join(
        json.dumps(line)
        for line in (
            {"file_name": "images/old.png", "text": "an old fox", "repeats": 3},
            {"file_name": "other.png", "caption": "by its stem"},
            {"file_name": "new.png", "prompt": "a new fox", "repeats": 2},
            {"file_name": "nowhere.png", "text": "x"},
            {"file_name": "new.png", "text": "y" * 3000},
        )
    )
    result = add(alice, foxes, {"metadata.jsonl": metadata.encode(), "new.png": png(3)})
    assert captions(foxes) == {
        "old.png": "an old fox", "other.jpg": "by its stem", "new.png": "a new fox",
    }  # fmt: skip
    assert [image.original_name for image in result.updated] == ["old.png", "other.jpg"]
    assert [image.version for image in result.updated] == [2, 2]
    assert [image.repeats for image in (*result.updated, *result.created)] == [3, 1, 2]
    assert codes(result) == {
        "metadata.jsonl:5": "caption_too_long", "metadata.jsonl, nowhere.png": "caption_unmatched",
    }  # fmt: skip


def test_a_text_alone_captions_a_picture_already_there(
    alice: User, foxes: Dataset, sent: Sent
) -> None:
    add(alice, foxes, {"fox.png": png(1), "owl.png": png(2)})
    version = foxes.version
    sent()
    result = add(alice, foxes, {"fox.txt": b"a fox", "bear.txt": b"a bear"})
    assert (result.created, codes(result)) == ([], {"bear.txt": "caption_unmatched"})
    assert not result.is_empty
    assert captions(foxes)["fox.png"] == "a fox"
    ((_group, event),) = sent()
    assert event["version"] == foxes.version == version + 1


def test_a_duplicate_with_a_text_captions_the_picture_that_is_there(
    alice: User, foxes: Dataset
) -> None:
    add(alice, foxes, {"fox.png": png(1)})
    result = add(alice, foxes, {"fox.png": png(1), "fox.txt": b"a fox"})
    assert codes(result) == {"fox.png": "duplicate_picture"}
    assert captions(foxes) == {"fox.png": "a fox"}


def test_a_text_for_two_pictures_of_that_name_is_refused(alice: User, foxes: Dataset) -> None:
    content = zipped({"one/fox.png": png(1), "two/fox.png": png(2)})
    assert len(add(alice, foxes, {"set.zip": content}).created) == 2
    assert codes(add(alice, foxes, {"fox.txt": b"which?"})) == {"fox.txt": "caption_ambiguous"}


def test_a_caption_that_is_too_long_is_refused_and_its_picture_taken(
    alice: User, foxes: Dataset
) -> None:
    result = add(alice, foxes, {"fox.png": png(1), "fox.txt": b"x" * 10_000})
    assert codes(result) == {"fox.txt": "caption_too_long"}
    assert captions(foxes) == {"fox.png": ""}


def test_the_caption_of_a_refused_picture_goes_to_no_other_of_its_name(
    alice: User, foxes: Dataset
) -> None:
    add(alice, foxes, {"1.png": png(1), "1.txt": b"day", "2.png": png(2), "2.txt": b"noon"})
    # As from another folder: no picture, one that is here under another name, one that is here.
    again = {"1.png": b"no picture", "1.txt": b"night"}
    result = add(alice, foxes, again)
    assert codes(result) == {"1.png": "not_a_picture", "1.txt": "caption_unmatched"}
    result = add(alice, foxes, {"2.png": png(1), "2.txt": b"dusk"})
    assert codes(result) == {"2.png": "duplicate_picture", "2.txt": "caption_unmatched"}
    result = add(alice, foxes, {"2.png": png(2), "2.txt": b"dawn"})
    assert codes(result) == {"2.png": "duplicate_picture"}
    assert captions(foxes) == {"1.png": "day", "2.png": "dawn"}


def test_captions_can_be_written(alice: User, foxes: Dataset, sent: Sent) -> None:
    (image,) = add(alice, foxes, {"fox.png": png(1)}).created
    version = foxes.version
    sent()
    image = DatasetImage.objects.get(pk=image.pk)
    services.edit_image(alice, image, caption=" a fox\n in snow ")
    assert (image.caption, image.version) == ("a fox in snow", 2)
    ((_group, event),) = sent()
    assert event["version"] == version + 1
    for text, code in (("x" * 2001, "caption_too_long"), ("a\x00b", "caption_invalid")):
        refused = problem(services.edit_image, alice, image, caption=text)
        assert (refused.status, refused.code, list(refused.fields)) == (400, code, ["caption"])
    image.refresh_from_db()
    assert image.caption == "a fox in snow"


# --- archives -----------------------------------------------------------------------------------
def test_a_zip_brings_pictures_and_captions_by_folder(alice: User, foxes: Dataset) -> None:
    content = zipped(
        {
            "one/fox.png": png(1),
            "one/fox.txt": b"first",
            "two/fox.png": png(2),
            "two/fox.txt": b"second",
            "metadata.jsonl": b'{"file_name": "three/owl.png", "text": "third"}',
            "three/owl.png": png(3),
            "three/notes.md": b"# notes",
            "__MACOSX/one/._fox.png": b"x",
        }
    )
    result = add(alice, foxes, {"set.zip": content})
    assert [image.caption for image in result.created] == ["first", "second", "third"]
    assert [image.original_name for image in result.created] == ["fox.png", "fox.png", "owl.png"]
    assert codes(result) == {"three/notes.md": "not_a_picture"}
    assert_counts_are_right(foxes)


def test_two_zips_do_not_share_captions(alice: User, foxes: Dataset) -> None:
    first = zipped({"a/fox.png": png(1), "a/fox.txt": b"first"})
    second = zipped({"a/fox.png": png(2)})
    add(alice, foxes, {"1.zip": first, "2.zip": second})
    by_age = DatasetImage.objects.filter(dataset=foxes).order_by("pk")
    assert list(by_age.values_list("caption", flat=True)) == ["first", ""]


def test_bad_entries_are_named_and_good_ones_taken(
    alice: User, foxes: Dataset, tmp_path: Path, stored_files: Files
) -> None:
    content = zipped(
        {
            "../../evil.png": png(1),
            "/etc/evil.png": png(2),
            "inner.zip": zipped({"a.png": png(3)}),
            "long.txt": b"x" * 70_000,
            "good.png": png(4),
            "cut.png": png(5)[:60],
        }
    )
    result = add(alice, foxes, {"set.zip": content})
    assert [image.original_name for image in result.created] == ["good.png"]
    assert codes(result) == {
        "../../evil.png": "archive_unsafe_name",
        "/etc/evil.png": "archive_unsafe_name",
        "inner.zip": "archive_nested",
        "long.txt": "caption_too_long",
        "cut.png": "truncated_picture",
    }
    assert len(stored_files()) == 2
    assert not list(tmp_path.rglob("evil*"))


def test_an_archive_that_lies_stops_where_it_is_caught(
    alice: User, foxes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets_app.archives import Archive, Limits

    real = Archive.__init__

    def tight(self: Archive, stream: Any, limits: Limits | None = None) -> None:
        real(self, stream, limits)
        self.limits = Limits(max_total_bytes=len(png(1)) + 10)

    monkeypatch.setattr(Archive, "__init__", tight)
    content = zipped({f"{index}.png": png(index) for index in range(1, 5)})
    result = add(alice, foxes, {"set.zip": content, "loose.png": png(9)})
    assert [image.original_name for image in result.created] == ["loose.png", "1.png"]
    assert codes(result) == {"2.png": "archive_too_large"}
    assert_counts_are_right(foxes)


# --- removal ------------------------------------------------------------------------------------
def test_pictures_that_a_training_needs_outlive_their_dataset(
    alice: User, foxes: Dataset, guards: list[Any], stored_files: Files
) -> None:
    kept, _free = add(alice, foxes, {"a.png": png(1), "b.png": png(2)}).created
    needed = {kept.pk}
    services.register_image_guard(lambda ids: needed & set(ids))
    services.delete_dataset(alice, foxes)
    assert services.collect_garbage(grace_seconds=0) == 1
    assert stored_files() == {kept.key, kept.thumbnail_key}
    assert services.collect_garbage(grace_seconds=0) == 0
    needed.clear()
    assert services.collect_garbage(grace_seconds=0) == 2
    assert stored_files() == set()


def test_guarded_pictures_do_not_hide_those_behind_them(
    alice: User, foxes: Dataset, guards: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "BATCH", 2)
    images = add(alice, foxes, {f"{index}.png": png(index) for index in range(5)}).created
    guards.append(lambda ids: {image.pk for image in images[:3]} & set(ids))
    services.delete_dataset(alice, foxes)
    assert services.collect_garbage(grace_seconds=0) == 2


def test_living_pictures_are_never_collected(
    alice: User, foxes: Dataset, guards: list[Any], stored_files: Files
) -> None:
    add(alice, foxes, {"a.png": png(1)})
    assert services.collect_garbage(grace_seconds=0) == 0
    assert len(stored_files()) == 2


def test_the_sweeper_knows_which_files_are_named(alice: User, foxes: Dataset) -> None:
    (image,) = add(alice, foxes, {"a.png": png(1)}).created
    keys = {image.key, image.thumbnail_key, "datasets/1/stray.png"}
    assert DatasetImage.objects.needed_keys(keys) == {image.key, image.thumbnail_key}
    services.delete_image(alice, image)
    assert DatasetImage.objects.needed_keys(keys) == {image.key, image.thumbnail_key}


def test_the_sweeper_collects(alice: User, foxes: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from studio_project import jobs

    services.delete_dataset(alice, foxes)
    Dataset.objects.update(deleted_at="2020-01-01T00:00:00Z")
    assert jobs.sweep()["collected"] == 1


# --- rows ---------------------------------------------------------------------------------------
def test_the_cover_is_the_first_picture(
    alice: User, foxes: Dataset, django_assert_num_queries: Any
) -> None:
    assert (foxes.cover_image_id, foxes.cover_key) == (None, None)
    first, _second = add(alice, foxes, {"a.png": png(1), "b.png": png(2)}).created
    services.create_dataset(alice, name="Empty")
    with django_assert_num_queries(1):
        empty, full = Dataset.objects.visible_to(alice).with_cover()
        assert (full.cover_image_id, full.cover_key) == (first.pk, first.thumbnail_key)
        assert (empty.cover_image_id, empty.cover_key) == (None, None)
    alone = Dataset.objects.get(pk=foxes.pk)
    assert (alone.cover_image_id, alone.cover_key) == (first.pk, first.thumbnail_key)
