"""`/api/datasets/…`: the shapes that clients depend on, and what strangers get."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from django.test import Client
from PIL import Image
from rest_framework.test import APIClient

from datasets_app import services
from datasets_app.models import Dataset, DatasetImage
from studio_project.models import User, Visibility
from tests.datasets_app import makers
from tests.datasets_app.makers import png, upload, zipped

Api = Callable[[User | None], APIClient]

DATASET_FIELDS = {
    "id", "name", "type", "path", "num_items", "created_at", "owner", "visibility", "version",
    "size_bytes", "cover_url",
}  # fmt: skip
IMAGE_FIELDS = {
    "id", "dataset_id", "name", "caption", "repeats", "width", "height", "format", "size_bytes",
    "pixel_sha256", "url", "thumbnail_url", "created_at", "version",
}  # fmt: skip


def post_files(client: APIClient, dataset: Dataset | int, files: dict[str, bytes]) -> Any:
    pk = dataset if isinstance(dataset, int) else dataset.pk
    data = {"files": [upload(name, content) for name, content in files.items()]}
    return client.post(f"/api/datasets/{pk}/images/", data, format="multipart")


@pytest.fixture
def fox(alice: User, foxes: Dataset) -> DatasetImage:
    """A captioned picture in Alice's dataset."""
    files = [upload("fox.png", png(1)), upload("fox.txt", b"a fox")]
    return services.add_files(alice, foxes, files).created[0]


# --- shapes -------------------------------------------------------------------------------------
@pytest.mark.parametrize("slash", ["", "/"])
def test_the_way_of_a_dataset(api: Api, alice: User, slash: str) -> None:
    client = api(alice)
    made = client.post(f"/api/datasets{slash}", {"name": "Foxes", "type": "image"})
    assert made.status_code == 201
    body = made.json()
    assert set(body) == DATASET_FIELDS
    assert isinstance(body["id"], int)
    assert body["path"] == f"datasets/{body['id']}"
    assert (body["owner"], body["visibility"], body["num_items"]) == ("alice", "private", 0)
    assert body["cover_url"] is None

    url = f"/api/datasets/{body['id']}"
    taken = client.post(
        f"{url}/images{slash}",
        {"files": [upload("fox.png", png(1)), upload("text.png", b"no picture")]},
        format="multipart",
    )
    assert taken.status_code == 201
    result = taken.json()
    assert set(result) == {"created", "updated", "rejected"}
    (image,) = result["created"]
    assert set(image) == IMAGE_FIELDS
    assert (image["name"], image["width"], image["format"]) == ("fox.png", 24, "png")
    (rejected,) = result["rejected"]
    assert set(rejected) == {"name", "code", "detail"}
    assert (rejected["name"], rejected["code"]) == ("text.png", "not_a_picture")

    seen = client.get(f"{url}{slash}").json()
    assert (seen["num_items"], seen["size_bytes"]) == (1, image["size_bytes"])
    for address in (image["url"], image["thumbnail_url"], seen["cover_url"]):
        answer = client.get(address)
        assert answer.status_code == 200
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Type"].startswith("image/")
    kept = Image.open(BytesIO(b"".join(client.get(image["url"]))))
    assert kept.tobytes() == makers.gradient(1).tobytes()

    caption = client.patch(f"{url}/images/{image['id']}{slash}", {"caption": "a fox"})
    assert (caption.status_code, caption.json()["caption"]) == (200, "a fox")
    repeats = client.patch(f"{url}/images/{image['id']}{slash}", {"repeats": 3})
    assert (repeats.json()["caption"], repeats.json()["repeats"]) == ("a fox", 3)
    changed = client.patch(f"{url}{slash}", {"name": "Red foxes", "visibility": "shared"})
    assert (changed.status_code, changed.json()["name"]) == (200, "Red foxes")
    assert changed.json()["visibility"] == "shared"
    listed = client.get(f"/api/datasets{slash}").json()
    assert set(listed) == {"results", "next", "previous"}
    assert [row["id"] for row in listed["results"]] == [body["id"]]
    assert client.delete(f"{url}/images/{image['id']}{slash}").status_code == 204
    assert client.get(image["url"]).status_code == 404
    assert client.delete(f"{url}{slash}").status_code == 204
    assert client.get(f"{url}{slash}").status_code == 404


def test_nothing_taken_is_422_with_the_same_body(api: Api, alice: User, foxes: Dataset) -> None:
    answer = post_files(api(alice), foxes, {"a.svg": makers.SVG, "b.heic": makers.HEIC})
    assert answer.status_code == 422
    body = answer.json()
    assert (body["created"], body["updated"]) == ([], [])
    assert [item["code"] for item in body["rejected"]] == ["unsupported_svg", "unsupported_heic"]


def test_captions_alone_count_as_taken(api: Api, alice: User, foxes: Dataset) -> None:
    client = api(alice)
    post_files(client, foxes, {"fox.png": png(1)})
    answer = post_files(client, foxes, {"fox.txt": b"a fox"})
    assert answer.status_code == 201
    assert [image["caption"] for image in answer.json()["updated"]] == ["a fox"]


def test_zips_and_metadata_over_http(api: Api, alice: User, foxes: Dataset) -> None:
    line = json.dumps({"file_name": "fox.png", "text": "a fox"}).encode()
    content = zipped({"set/fox.png": png(1), "set/metadata.jsonl": line, "../evil.png": png(2)})
    answer = post_files(api(alice), foxes, {"set.zip": content})
    assert answer.status_code == 201
    assert [image["caption"] for image in answer.json()["created"]] == ["a fox"]
    assert [item["code"] for item in answer.json()["rejected"]] == ["archive_unsafe_name"]


def test_refusals_speak_the_requests_language(api: Api, alice: User, foxes: Dataset) -> None:
    alice.language = "fr"
    alice.save(update_fields=("language",))
    answer = post_files(api(alice), foxes, {"a.heic": makers.HEIC})
    assert answer.headers["Content-Language"] == "fr"


def test_a_repeated_creation_with_the_same_key_makes_one(api: Api, alice: User) -> None:
    headers = {"Idempotency-Key": "k1"}
    bodies = [
        api(alice).post("/api/datasets/", {"name": "Foxes"}, headers=headers).json()["id"]
        for _round in range(2)
    ]
    assert bodies[0] == bodies[1]
    assert Dataset.objects.count() == 1


# --- lists --------------------------------------------------------------------------------------
def test_lists_filter_and_page(api: Api, alice: User, bob: User) -> None:
    mine = [services.create_dataset(alice, name=f"Fox {index}") for index in range(3)]
    shared = services.create_dataset(bob, name="Owl", visibility=Visibility.SHARED)
    services.create_dataset(bob, name="Secret owl")
    client = api(alice)

    def ids(query: str) -> list[int]:
        answer = client.get(f"/api/datasets/?{query}")
        assert answer.status_code == 200, answer.content
        return [row["id"] for row in answer.json()["results"]]

    newest_first = [shared.pk, *(dataset.pk for dataset in reversed(mine))]
    assert ids("") == newest_first
    assert ids("owner=me") == newest_first[1:]
    assert ids("search=owl") == [shared.pk]
    assert ids("search=1+fox") == [mine[1].pk]
    assert ids("visibility=shared") == [shared.pk]
    assert ids("type=image") == newest_first
    moment = mine[1].created_at.isoformat().replace("+", "%2B")
    assert ids(f"created_after={moment}") == [shared.pk, mine[2].pk]
    page = client.get("/api/datasets/?limit=2").json()
    assert [row["id"] for row in page["results"]] == newest_first[:2]
    page = client.get(page["next"]).json()
    assert [row["id"] for row in page["results"]] == newest_first[2:]
    for query in ("type=video", "owner=bob", "created_after=yesterday"):
        answer = client.get(f"/api/datasets/?{query}")
        assert answer.status_code == 400
        assert list(answer.json()["errors"]) == [query.partition("=")[0]]


def test_a_list_costs_the_same_for_any_number(
    api: Api, alice: User, django_assert_max_num_queries: Any
) -> None:
    for index in range(12):
        dataset = services.create_dataset(alice, name=f"Fox {index}")
        services.add_files(alice, dataset, [upload("a.png", png(index))])
    client = api(alice)
    with django_assert_max_num_queries(4):
        assert len(client.get("/api/datasets/").json()["results"]) == 12


def test_pictures_are_listed_and_filtered(
    api: Api, alice: User, foxes: Dataset, fox: DatasetImage
) -> None:
    client = api(alice)
    post_files(client, foxes, {"owl.png": png(2)})
    url = f"/api/datasets/{foxes.pk}/images/"

    def names(query: str) -> list[str]:
        return [row["name"] for row in client.get(f"{url}?{query}").json()["results"]]

    assert names("") == ["owl.png", "fox.png"]
    assert names("captioned=true") == ["fox.png"]
    assert names("captioned=false") == ["owl.png"]
    assert names("search=a+FOX") == ["fox.png"]
    assert names("search=owl") == ["owl.png"]
    assert names("limit=1") == ["owl.png"]
    detail = client.get(f"{url}{fox.pk}/").json()
    assert set(detail) == IMAGE_FIELDS
    assert detail["caption"] == "a fox"


# --- bad input ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": None}, "name"),
        ({"name": "a\x1bb"}, "name"),
        ({"name": "x", "type": "video"}, "type"),
        ({"name": "x", "visibility": "public"}, "visibility"),
        ({"name": "x", "owner": "bob"}, "owner"),
        ({"name": "x", "num_items": 5}, "num_items"),
    ],
)
def test_creating_names_the_wrong_field(
    api: Api, alice: User, body: dict[str, Any], field: str
) -> None:
    answer = api(alice).post("/api/datasets/", body)
    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert list(answer.json()["errors"]) == [field]
    assert not Dataset.objects.exists()


@pytest.mark.parametrize("body", [{"num_items": 9}, {"owner": "bob"}, {"name": ""}, {"id": 1}])
def test_changing_names_the_wrong_field(
    api: Api, alice: User, foxes: Dataset, body: dict[str, Any]
) -> None:
    answer = api(alice).patch(f"/api/datasets/{foxes.pk}/", body)
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == list(body)
    foxes.refresh_from_db()
    assert (foxes.name, foxes.version) == ("Foxes", 1)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"caption": "x" * 10_000}, "caption"),
        ({"caption": None}, "caption"),
        ({"caption": "a\x1b"}, "caption"),
        ('{"caption": "half \\ud83e"}', "caption"),
        ({"caption": ["a"]}, "caption"),
        ({"repeats": 0}, "repeats"),
        ({"repeats": 101}, "repeats"),
        ({"repeats": "often"}, "repeats"),
        ({"caption": "a", "width": 5}, "width"),
    ],
)
def test_captions_and_repeats_are_checked(
    api: Api, alice: User, fox: DatasetImage, body: dict[str, Any] | str, field: str
) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    path = f"/api/datasets/{fox.dataset_id}/images/{fox.pk}/"
    answer = api(alice).patch(path, text, content_type="application/json")
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == [field]
    fox.refresh_from_db()
    assert fox.caption == "a fox"


def test_several_pictures_get_the_same_repeats_at_once(
    api: Api, alice: User, bob: User, foxes: Dataset, owls: Dataset
) -> None:
    files = {f"{index}.png": png(index) for index in range(3)}
    first, second, third = (
        image["id"] for image in post_files(api(alice), foxes, files).json()["created"]
    )
    (strange,) = (
        image["id"] for image in post_files(api(bob), owls, {"o.png": png(9)}).json()["created"]
    )
    path = f"/api/datasets/{foxes.pk}/images/"
    version = api(alice).get(f"/api/datasets/{foxes.pk}").json()["version"]
    answer = api(alice).patch(path, {"images": [first, third, strange, 10**9], "repeats": 4})
    assert (answer.status_code, answer.json()) == (200, {"changed": 2})
    repeats = dict(DatasetImage.objects.values_list("pk", "repeats"))
    assert repeats == {first: 4, second: 1, third: 4, strange: 1}
    assert api(alice).get(f"/api/datasets/{foxes.pk}").json()["version"] == version + 1

    for body, field in (
        ({"images": [first], "repeats": 101}, "repeats"),
        ({"images": [], "repeats": 2}, "images"),
        ({"images": [first]}, "repeats"),
        ({"images": [first], "repeats": 2, "caption": "a"}, "caption"),
    ):
        refused = api(alice).patch(path, body)
        assert (refused.status_code, list(refused.json()["errors"])) == (400, [field])
    assert api(bob).patch(path, {"images": [first], "repeats": 2}).status_code == 404
    services.share_dataset(alice, foxes, "shared")
    assert api(bob).patch(path, {"images": [first], "repeats": 2}).status_code == 403
    assert api(alice).post(path, {"images": [first], "repeats": 2}).status_code == 415


def test_a_nul_in_a_body_is_a_problem_and_no_crash(api: Api, alice: User) -> None:
    answer = api(alice).post(
        "/api/datasets/", b'{"name": "a\\u0000b"}', content_type="application/json"
    )
    assert answer.status_code == 400


def test_an_upload_needs_files_in_the_right_field(api: Api, alice: User, foxes: Dataset) -> None:
    client, url = api(alice), f"/api/datasets/{foxes.pk}/images/"
    for data, field in (
        ({}, "files"),
        ({"file": upload("a.png", png())}, "file"),
        ({"files": "text"}, "files"),
        ({"files": upload("a.png", png()), "caption": "a fox"}, "caption"),
    ):
        answer = client.post(url, data, format="multipart")
        assert answer.status_code == 400
        assert list(answer.json()["errors"]) == [field]
    assert client.post(url, {"files": []}, format="json").status_code == 415
    broken = client.generic("POST", url, b"--x\r\nnonsense", "multipart/form-data; boundary=x")
    assert broken.status_code == 400
    assert client.generic("POST", url, b"", "multipart/form-data").status_code == 400
    assert not DatasetImage.objects.exists()


def test_a_request_of_more_than_200_files_names_the_other_way(
    api: Api, alice: User, foxes: Dataset
) -> None:
    files = {f"{index}.png": b"x" for index in range(201)}
    for client in (api(alice), _csrf_client(alice)):
        answer = post_files(client, foxes, files)
        assert answer.status_code == 413
        assert answer.json()["code"] == "too_many_files"
        assert "8 MB" in answer.json()["hint"]


def _csrf_client(user: User) -> APIClient:
    """A client whose session authentication reads the body first, as a browser's does."""
    client = APIClient(enforce_csrf_checks=True)
    client.force_login(user)
    page = Client()
    page.force_login(user)
    token = "a" * 32
    client.cookies["csrftoken"] = token
    client.credentials(HTTP_X_CSRFTOKEN=token)
    return client


def test_the_browser_way_with_csrf(alice: User, foxes: Dataset) -> None:
    client = _csrf_client(alice)
    assert post_files(client, foxes, {"a.png": png(1)}).status_code == 201
    data = {"files": [upload("b.png", png(2))], "csrfmiddlewaretoken": "a" * 32}
    url = f"/api/datasets/{foxes.pk}/images/"
    assert client.post(url, data, format="multipart").status_code == 201
    client.credentials()
    assert post_files(client, foxes, {"c.png": png(3)}).status_code == 403


def test_a_request_of_300_megabytes_is_413_before_its_body_is_read(
    api: Api, alice: User, foxes: Dataset
) -> None:
    answer = api(alice).generic(
        "POST",
        f"/api/datasets/{foxes.pk}/images/",
        b"",
        "multipart/form-data; boundary=x",
        CONTENT_LENGTH=str(300 * 1024**2),
    )
    assert answer.status_code == 413
    assert "8 MB" in answer.json()["hint"]


def test_a_form_field_of_megabytes_is_413(api: Api, alice: User, foxes: Dataset) -> None:
    data = {"caption": "x" * 3_000_000, "files": upload("a.png", png())}
    answer = api(alice).post(f"/api/datasets/{foxes.pk}/images/", data, format="multipart")
    assert answer.status_code == 413


def test_a_full_disk_is_507(api: Api, alice: User, foxes: Dataset, settings: Any) -> None:
    settings.STUDIO_MIN_FREE_BYTES = 10**18
    answer = post_files(api(alice), foxes, {"a.png": png()})
    assert answer.status_code == 507
    assert answer.json()["code"] == "disk_full"
    foxes.refresh_from_db()
    assert foxes.num_items == 0


@pytest.mark.parametrize("pk", ["0", "999999999999999999", "1" * 19, "-1", "abc", "1.5"])
def test_ids_of_nothing_are_404(api: Api, alice: User, pk: str) -> None:
    client = api(alice)
    for path in (f"{pk}/", f"{pk}/images/", f"{pk}/images/1/", f"{pk}/images/1/file"):
        assert client.get(f"/api/datasets/{path}").status_code == 404


def test_a_300_character_name_is_taken(api: Api, alice: User, foxes: Dataset) -> None:
    answer = post_files(api(alice), foxes, {"n" * 296 + ".png": png(1)})
    assert answer.status_code == 201
    assert answer.json()["created"][0]["name"].endswith(".png")


# --- files --------------------------------------------------------------------------------------
def test_files_have_our_type_and_name_and_an_etag(api: Api, alice: User, foxes: Dataset) -> None:
    client = api(alice)
    jpeg = makers.encoded(makers.gradient(1), "JPEG")
    data = {"files": [upload('evil".html', jpeg)]}
    data["files"][0].content_type = "text/html"
    url = f"/api/datasets/{foxes.pk}/images/"
    (image,) = client.post(url, data, format="multipart").json()["created"]
    answer = client.get(image["url"])
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert "evil" in answer.headers["Content-Disposition"]
    assert ".jpg" in answer.headers["Content-Disposition"]
    assert "html" not in answer.headers["Content-Disposition"]
    assert "private" in answer.headers["Cache-Control"]
    etag = answer.headers["ETag"]
    assert client.get(image["url"], headers={"If-None-Match": etag}).status_code == 304


# --- who ----------------------------------------------------------------------------------------
def routes(dataset: Dataset, image: DatasetImage) -> list[tuple[str, str, Any]]:
    base = f"/api/datasets/{dataset.pk}"
    return [
        ("get", f"{base}/", None),
        ("patch", f"{base}/", {"name": "Mine"}),
        ("delete", f"{base}/", None),
        ("get", f"{base}/images/", None),
        ("post", f"{base}/images/", {"files": None}),
        ("get", f"{base}/images/{image.pk}/", None),
        ("patch", f"{base}/images/{image.pk}/", {"caption": "mine"}),
        ("delete", f"{base}/images/{image.pk}/", None),
        ("get", f"{base}/images/{image.pk}/file", None),
        ("get", f"{base}/images/{image.pk}/thumbnail", None),
    ]


def call(client: APIClient, verb: str, path: str, body: Any) -> int:
    if body is not None and "files" in body:
        return post_files(client, int(path.split("/")[3]), {"b.png": png(7)}).status_code
    return getattr(client, verb)(path, body).status_code


def test_strangers_see_nothing_of_each_other(
    api: Api, alice: User, bob: User, staff: User, foxes: Dataset, fox: DatasetImage
) -> None:
    for verb, path, body in routes(foxes, fox):
        assert call(api(bob), verb, path, body) == 404, (verb, path)
        assert call(api(staff), verb, path, body) == 404, (verb, path)
        assert call(api(None), verb, path, body) == 401, (verb, path)
    assert api(bob).get("/api/datasets/").json()["results"] == []
    foxes.refresh_from_db()
    assert (foxes.name, foxes.num_items) == ("Foxes", 1)


def test_a_shared_dataset_is_read_by_all_and_changed_by_owner_and_staff(
    api: Api, alice: User, bob: User, staff: User, foxes: Dataset, fox: DatasetImage
) -> None:
    services.share_dataset(alice, foxes, Visibility.SHARED)
    for verb, path, body in routes(foxes, fox):
        assert call(api(bob), verb, path, body) == (200 if verb == "get" else 403), (verb, path)
    assert call(api(staff), "patch", f"/api/datasets/{foxes.pk}/", {"name": "Ours"}) == 200
    services.share_dataset(alice, foxes, Visibility.PRIVATE)
    for verb, path, body in routes(foxes, fox):
        assert call(api(bob), verb, path, body) == 404, (verb, path)


def test_a_picture_is_only_found_in_its_own_dataset(
    api: Api, alice: User, bob: User, foxes: Dataset, owls: Dataset, fox: DatasetImage
) -> None:
    empty = services.create_dataset(alice, name="Empty")
    for client, dataset in ((api(alice), empty), (api(bob), owls)):
        for suffix in ("", "file", "thumbnail"):
            path = f"/api/datasets/{dataset.pk}/images/{fox.pk}/{suffix}"
            assert client.get(path).status_code == 404


# --- documentation ------------------------------------------------------------------------------
def test_the_openapi_document_knows_every_route_without_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from drf_spectacular.drainage import GENERATOR_STATS, reset_generator_stats
    from drf_spectacular.generators import SchemaGenerator

    from datasets_app.urls import api_urls

    reset_generator_stats()
    with GENERATOR_STATS.silence():
        schema = SchemaGenerator(patterns=api_urls).get_schema(request=None, public=True)
        trouble = [*GENERATOR_STATS._warn_cache, *GENERATOR_STATS._error_cache]
    assert trouble == []
    operations = {
        operation["operationId"]: operation
        for path in schema["paths"].values()
        for operation in path.values()
    }
    assert len(operations) == 13
    numbers = {
        (parameter["name"], parameter["schema"]["type"])
        for operation in operations.values()
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "path"
    }
    assert numbers == {("id", "integer"), ("image_id", "integer")}
    upload_operation = next(
        operation
        for operation in operations.values()
        if "multipart/form-data" in operation.get("requestBody", {}).get("content", {})
    )
    assert set(upload_operation["responses"]) >= {"201", "422"}
