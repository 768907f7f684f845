"""The API of models: fields, filters, pages, changes, files; and that strangers see nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from typing import Any
from zipfile import ZipFile

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from PIL import Image
from rest_framework.test import APIClient

from models_app.layouts import kohya_key
from models_app.models import DiffusionModel
from studio_project import storage
from studio_project.models import User

Make = Callable[..., DiffusionModel]
Api = Callable[..., APIClient]

FIELDS = {
    "id", "name", "title", "type", "category", "architecture", "path", "is_active", "created_at",
    "base_model", "base_model_title", "owner", "visibility", "trigger_words", "description",
    "thumbnail_url", "default_settings", "size_bytes", "sha256", "availability",
    "availability_detail", "usable", "is_adapter", "is_inpainting", "source", "licence", "version",
}  # fmt: skip


def listed(client: APIClient, **query: Any) -> set[int]:
    answer = client.get("/api/models/", query)
    assert answer.status_code == 200, answer.content
    return {row["id"] for row in answer.json()["results"]}


# --- reading ------------------------------------------------------------------------------------
def test_a_model_has_the_promised_fields(api: Api, make_lora: Make, alice: User) -> None:
    model = make_lora(alice, trigger_words=["fox"])
    row = api(alice).get(f"/api/models/{model.pk}").json()
    assert set(row) == FIELDS
    assert row["id"] == model.pk
    assert row["owner"] == "alice"
    assert row["base_model"] == model.base_model_id
    assert row["trigger_words"] == ["fox"]
    assert row["thumbnail_url"] is None
    assert row["usable"] is True


def test_both_spellings_of_an_address_answer(api: Api, make_base: Make, alice: User) -> None:
    pk = make_base().pk
    client = api(alice)
    for path in ("/api/models", "/api/models/", f"/api/models/{pk}", f"/api/models/{pk}/"):
        assert client.get(path).status_code == 200


def test_storage_keys_are_for_staff(api: Api, make_base: Make, alice: User, staff: User) -> None:
    model = make_base()
    assert api(alice).get(f"/api/models/{model.pk}").json()["path"] is None
    assert api(staff).get(f"/api/models/{model.pk}").json()["path"] == model.path


def test_without_an_account_there_is_nothing(api: Api, make_base: Make) -> None:
    pk = make_base().pk
    client = api()
    for tail in ("", f"{pk}", f"{pk}/download", f"{pk}/thumbnail"):
        assert client.get(f"/api/models/{tail}").status_code == 401
    assert client.patch(f"/api/models/{pk}", {}).status_code == 401


@pytest.mark.parametrize("who", ["bob", "staff"])
def test_private_models_do_not_exist_for_others(
    api: Api, make_lora: Make, alice: User, who: str, request: pytest.FixtureRequest
) -> None:
    model = make_lora(alice)
    client = api(request.getfixturevalue(who))
    assert model.pk not in listed(client)
    picture = {"file": SimpleUploadedFile("a.png", b"x")}
    for answer in (
        client.get(f"/api/models/{model.pk}"),
        client.patch(f"/api/models/{model.pk}", {"title": "Mine"}),
        client.delete(f"/api/models/{model.pk}"),
        client.get(f"/api/models/{model.pk}/download"),
        client.get(f"/api/models/{model.pk}/thumbnail"),
        client.put(f"/api/models/{model.pk}/thumbnail", picture, format="multipart"),
        client.delete(f"/api/models/{model.pk}/thumbnail"),
    ):
        assert answer.status_code == 404
        assert answer["Content-Type"].startswith("application/problem+json")
        assert answer.json()["code"] == "not_found"
    model.refresh_from_db()
    assert (model.version, model.deleted_at) == (1, None)


def test_numbers_that_no_database_holds_are_not_found(api: Api, alice: User) -> None:
    client = api(alice)
    for pk in ("0", "9" * 18, "9" * 19, "9" * 400, "x"):
        assert client.get(f"/api/models/{pk}").status_code == 404


# --- lists --------------------------------------------------------------------------------------
def test_lists_filter(api: Api, make_base: Make, make_lora: Make, alice: User, bob: User) -> None:
    base = make_base("photo-base")
    video = make_base("clips", category="video", architecture="svd")
    remote = make_base("far", availability="remote", path="", is_inpainting=True)
    mine = make_lora(alice, title="Red fox", trigger_words=["sks café"], base_model=base)
    other = make_lora(bob, type="dreambooth", visibility="shared", base_model=video)
    off = make_base("off", is_active=False)
    client = api(alice)
    every = {model.pk for model in (base, video, remote, mine, other, off)}
    assert listed(client) == every
    assert listed(client, category="video") == {video.pk, other.pk}
    assert listed(client, category="image") == every - {video.pk, other.pk}
    assert listed(client, type="lora") == {mine.pk}
    assert listed(client, type=["lora", "base_model"]) == every - {other.pk}
    assert listed(client, is_adapter="true") == {mine.pk, other.pk}
    assert listed(client, is_adapter="false") == every - {mine.pk, other.pk}
    assert listed(client, base_model=base.pk) == {mine.pk}
    assert listed(client, is_inpainting="true") == {remote.pk}
    assert listed(client, is_inpainting="false") == every - {remote.pk}
    assert listed(client, owner="me") == {mine.pk}
    assert listed(client, owner="site") == every - {mine.pk, other.pk}
    assert listed(client, availability="remote") == listed(client, status="remote") == {remote.pk}
    assert listed(client, search="FOX red") == {mine.pk}
    assert listed(client, search="sks") == {mine.pk}
    assert listed(client, search="café") == {mine.pk}
    assert listed(client, search="fox green") == set()
    assert listed(client, search="%") == set()
    assert listed(client, usable="true") == every - {remote.pk, off.pk}
    assert listed(client, usable="false") == {remote.pk, off.pk}
    assert listed(client, is_active="false") == {off.pk}
    soon = (timezone.now() + timedelta(minutes=1)).isoformat()
    assert listed(client, created_after=soon) == set()


@pytest.mark.parametrize(
    "query",
    [
        {"category": "sound"},
        {"type": "vae"},
        {"base_model": "x"},
        {"base_model": "0"},
        {"base_model": "1.5"},
        {"base_model": str(10**19)},
        {"owner": "bob"},
        {"availability": "soon"},
        {"created_after": "yesterday"},
        {"search": "x" * 201},
    ],
)
def test_wrong_filters_are_named(api: Api, alice: User, query: dict[str, str]) -> None:
    answer = api(alice).get("/api/models/", query)
    assert answer.status_code == 400
    assert next(iter(query)) in answer.json()["errors"]


def test_lists_page_by_key(api: Api, make_base: Make, alice: User) -> None:
    made = [make_base().pk for _ in range(7)]
    client = api(alice)
    seen: list[int] = []
    url: str | None = "/api/models/?limit=3"
    while url:
        page = client.get(url).json()
        assert set(page) == {"results", "next", "previous"}
        seen += [row["id"] for row in page["results"]]
        url = page["next"]
    assert seen == made[::-1]


def test_250_models_cost_as_many_queries_as_one(
    api: Api, make_base: Make, make_lora: Make, alice: User
) -> None:
    client = api(alice)
    base = make_base()

    def cost() -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            answer = client.get("/api/models/?limit=200")
        assert answer.status_code == 200
        return len(queries)

    make_lora(alice, base_model=base)
    one = cost()
    rows = [
        DiffusionModel(
            name=f"m{i}", title=f"Model {i}", type="lora", architecture="sd1", owner=alice,
            base_model=base, path=f"models/{i}.safetensors",
        )
        for i in range(250)
    ]  # fmt: skip
    DiffusionModel.objects.bulk_create(rows)
    assert cost() == one <= 4
    assert listed(client, search="Model 249") == {DiffusionModel.objects.get(name="m249").pk}


# --- changing -----------------------------------------------------------------------------------
def test_the_owner_changes_a_model(api: Api, make_lora: Make, alice: User) -> None:
    model = make_lora(alice)
    body = {
        "title": "Fox",
        "description": "Red.",
        "trigger_words": ["sks fox"],
        "default_settings": {"width": 64, "guidance_scale": 5.5},
        "visibility": "shared",
    }
    answer = api(alice).patch(f"/api/models/{model.pk}", body)
    assert answer.status_code == 200, answer.content
    assert {name: answer.json()[name] for name in body} == body
    assert answer.json()["version"] > 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"titel": "x"}, "titel"),
        ({"name": "x"}, "name"),
        ({"owner": "bob"}, "owner"),
        ({"title": ""}, "title"),
        ({"title": "x" * 201}, "title"),
        ({"visibility": "public"}, "visibility"),
        ({"trigger_words": "fox"}, "trigger_words"),
        ({"default_settings": {"steps": 3}}, "default_settings.steps"),
        ({"default_settings": {"width": 65}}, "default_settings.width"),
        ({"default_settings": {"scheduler": "x"}}, "default_settings.scheduler"),
        ({"default_settings": [1]}, "default_settings"),
        ({"is_active": "perhaps"}, "is_active"),
    ],
)
def test_wrong_changes_are_named_and_nothing_changes(
    api: Api, make_lora: Make, alice: User, body: dict[str, Any], field: str
) -> None:
    model = make_lora(alice)
    answer = api(alice).patch(f"/api/models/{model.pk}", body)
    assert answer.status_code == 400
    assert field in answer.json()["errors"]
    model.refresh_from_db()
    assert model.version == 1


def test_readers_of_a_shared_model_change_nothing(
    api: Api, make_lora: Make, alice: User, bob: User, staff: User
) -> None:
    model = make_lora(alice, visibility="shared")
    assert api(bob).patch(f"/api/models/{model.pk}", {"title": "x"}).status_code == 403
    assert api(bob).delete(f"/api/models/{model.pk}").status_code == 403
    assert api(staff).patch(f"/api/models/{model.pk}", {"title": "x"}).status_code == 200


def test_activation_is_for_staff(api: Api, make_base: Make, make_lora: Make, alice: User,
                                 staff: User) -> None:  # fmt: skip
    answer = api(alice).patch(f"/api/models/{make_lora(alice).pk}", {"is_active": False})
    assert (answer.status_code, answer.json()["code"]) == (403, "staff_only")
    base = make_base()
    answer = api(staff).patch(f"/api/models/{base.pk}", {"is_active": False})
    assert answer.json()["is_active"] is False
    assert api(alice).get(f"/api/models/{base.pk}").json()["usable"] is False


def test_the_owner_deletes_a_model(api: Api, make_lora: Make, alice: User) -> None:
    model = make_lora(alice)
    client = api(alice)
    assert client.delete(f"/api/models/{model.pk}").status_code == 204
    assert client.get(f"/api/models/{model.pk}").status_code == 404
    assert client.delete(f"/api/models/{model.pk}").status_code == 404


def test_a_used_base_is_not_deleted(api: Api, make_base: Make, make_lora: Make, alice: User,
                                    staff: User) -> None:  # fmt: skip
    base = make_base()
    make_lora(alice, base_model=base)
    answer = api(staff).delete(f"/api/models/{base.pk}")
    assert (answer.status_code, answer.json()["code"]) == (409, "model_in_use")


# --- files --------------------------------------------------------------------------------------
def body_of(answer: Any) -> bytes:
    return b"".join(answer.streaming_content) if answer.streaming else answer.content


def test_weights_are_downloaded_whole_and_in_parts(api: Api, make_lora: Make, alice: User) -> None:
    model = make_lora(alice)
    client, url = api(alice), f"/api/models/{model.pk}/download"
    whole = client.get(url)
    assert whole.status_code == 200
    content = body_of(whole)
    assert content == model.weights_file().read_bytes()
    assert f'filename="{model.name}.safetensors"' in whole["Content-Disposition"]
    assert whole["X-Content-Type-Options"] == "nosniff"
    part = client.get(url, HTTP_RANGE="bytes=10-19")
    assert (part.status_code, body_of(part)) == (206, content[10:20])
    assert client.get(url, HTTP_IF_NONE_MATCH=whole["ETag"]).status_code == 304


def test_shared_weights_are_downloaded_by_others(
    api: Api, make_lora: Make, alice: User, bob: User
) -> None:
    model = make_lora(alice, visibility="shared")
    assert api(bob).get(f"/api/models/{model.pk}/download").status_code == 200


def test_each_layout_of_the_weights_is_downloaded(api: Api, make_lora: Make, alice: User) -> None:
    model = make_lora(alice, files=[{"name": "a"}, {"name": "k", "layout": "kohya"}])
    storage.save(kohya_key(model.path), b"for other programs")
    client, url = api(alice), f"/api/models/{model.pk}/download"
    own = client.get(f"{url}?layout=diffusers")
    assert body_of(own) == body_of(client.get(url)) == model.weights_file().read_bytes()
    other = client.get(f"{url}?layout=kohya")
    assert body_of(other) == b"for other programs"
    assert f'filename="{model.name}.kohya.safetensors"' in other["Content-Disposition"]
    assert own["ETag"] != other["ETag"]
    part = client.get(f"{url}?layout=kohya", HTTP_RANGE="bytes=4-8")
    assert (part.status_code, body_of(part)) == (206, b"other")
    wrong = client.get(f"{url}?layout=pickle")
    assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid")
    assert "kohya" in wrong.json()["errors"]["layout"][0]["message"]
    single = client.get(f"/api/models/{make_lora(alice).pk}/download?layout=kohya")
    assert (single.status_code, single.json()["code"]) == (409, "download_unavailable")


def test_a_whole_network_is_downloaded_as_an_archive(
    api: Api, make_base: Make, alice: User, bob: User
) -> None:
    contents = {"model_index.json": b"{}", "unet/weights.safetensors": b"x" * 600_000}
    model = make_base(
        owner=alice,
        type="full",
        base_model=make_base(),
        files=[{"name": name, "size": len(data)} for name, data in contents.items()],
    )
    for name, data in contents.items():
        storage.save(f"{model.path}/{name}", data)
    url = f"/api/models/{model.pk}/download"
    answer = api(alice).get(url)
    content = body_of(answer)
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/zip")
    assert int(answer["Content-Length"]) == len(content)
    assert f'filename="{model.name}.zip"' in answer["Content-Disposition"]
    assert answer["X-Content-Type-Options"] == "nosniff"
    with ZipFile(BytesIO(content)) as archive:
        assert {one: archive.read(one) for one in archive.namelist()} == {
            f"{model.name}/{name}": data for name, data in contents.items()
        }
    assert api(alice).get(f"{url}?layout=kohya").json()["code"] == "download_unavailable"
    assert api(bob).get(url).status_code == 404


def test_folders_and_remote_models_say_why_not(api: Api, make_base: Make, alice: User) -> None:
    client = api(alice)
    folder = client.get(f"/api/models/{make_base(source='owner/name').pk}/download")
    assert (folder.status_code, folder.json()["code"]) == (409, "download_unavailable")
    assert "owner/name" in folder.json()["hint"]
    remote = make_base("far", availability="remote", path="")
    answer = client.get(f"/api/models/{remote.pk}/download")
    assert (answer.status_code, answer.json()["code"]) == (409, "model_unavailable")
    assert "fetch_model far" in answer.json()["detail"]


def test_a_picture_is_set_shown_and_removed(api: Api, make_lora: Make, alice: User) -> None:
    model = make_lora(alice)
    client, url = api(alice), f"/api/models/{model.pk}/thumbnail"
    assert client.get(url).json()["code"] == "no_thumbnail"
    out = BytesIO()
    Image.new("RGB", (900, 900), "red").save(out, "JPEG")
    upload = SimpleUploadedFile("a.jpg", out.getvalue())
    row = client.put(url, {"file": upload}, format="multipart").json()
    shown = client.get(row["thumbnail_url"])
    assert shown["Content-Type"] == "image/webp"
    assert Image.open(BytesIO(body_of(shown))).size == (512, 512)
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404


def test_no_picture_is_refused_by_name(api: Api, make_lora: Make, alice: User) -> None:
    url = f"/api/models/{make_lora(alice).pk}/thumbnail"
    upload = SimpleUploadedFile("a.jpg", b"not a picture")
    answer = api(alice).put(url, {"file": upload}, format="multipart")
    assert answer.status_code == 400
    assert answer.json()["code"] == "thumbnail_invalid"
    assert "file" in answer.json()["errors"]


def test_the_openapi_document_tells_of_it_without_warnings(capsys: Any) -> None:
    from drf_spectacular.drainage import GENERATOR_STATS
    from drf_spectacular.generators import SchemaGenerator
    from drf_spectacular.validation import validate_schema

    from models_app.urls import api_urls

    GENERATOR_STATS.reset()
    with GENERATOR_STATS.silence():
        schema = SchemaGenerator(patterns=api_urls).get_schema(request=None, public=True)
    validate_schema(schema)
    assert not GENERATOR_STATS, GENERATOR_STATS._warn_cache
    properties = schema["components"]["schemas"]["DiffusionModel"]["properties"]
    assert set(properties) == FIELDS
