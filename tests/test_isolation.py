"""Two users see nothing of each other, on any route there is.

The routes come from the URL configuration: one that is not listed here fails the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from rest_framework.test import APIClient

from datasets_app.models import Dataset, DatasetImage
from generation_app.models import GeneratedImage, GenerationJob, InputPicture
from models_app.models import DiffusionModel
from studio_project import storage
from studio_project.models import ApiToken, User
from tests.factories import make_base
from training_app.models import TrainingCheckpoint, TrainingJob, TrainingSample

CANARY = "zq-canary-7"
METHODS = ("get", "post", "put", "patch", "delete")

# Reachable without an account, and without contents of anybody.
PUBLIC = {
    "account_login",
    "account_signup",
    "account_inactive",
    "account_logout",
    "account_reset_password",
    "account_reset_password_done",
    "account_reset_password_from_key",
    "account_reset_password_from_key_done",
    "a1111-unknown",
    "account_confirm_email",
    "account_confirm_login_code",
    "account_email_verification_sent",
    "healthz",
    "invitation",
    "javascript-catalog",
    "mfa_authenticate",
    "openai-unknown",
    "readyz",
    "set_language",
    "set_theme",
    "unknown-api",
}
# One's own things only, without naming an object.
OWN = {
    "a1111-embeddings",
    "a1111-img2img",
    "a1111-interrupt",
    "a1111-latent-upscale-modes",
    "a1111-loras",
    "a1111-options",
    "a1111-progress",
    "a1111-refresh-checkpoints",
    "a1111-refresh-loras",
    "a1111-samplers",
    "a1111-schedulers",
    "a1111-scripts",
    "a1111-sd-models",
    "a1111-sd-vae",
    "a1111-txt2img",
    "a1111-upscalers",
    "account_change_password",
    "account_email",
    "account_reauthenticate",
    "account_set_password",
    "account_settings",
    "api-docs",
    "dataset-list",
    "event-schemas",
    "dataset_list",
    "generate-estimate",
    "generate-image-to-image",
    "generate-image-to-video",
    "generate-inpaint",
    "generate-recall",
    "generate-text-to-image",
    "generate-upload-list",
    "generation-list",
    "home",
    "image-list",
    "image_list",
    "mfa_activate_totp",
    "mfa_deactivate_totp",
    "mfa_download_recovery_codes",
    "mfa_generate_recovery_codes",
    "mfa_index",
    "mfa_reauthenticate",
    "mfa_view_recovery_codes",
    "model-list",
    "model_list",
    "openai-images-generations",
    "openai-models",
    "options",
    "queue",
    "queue-api",
    "schema",
    "text_to_image",
    "token-list",
    "training-estimate",
    "training-list",
    "training_list",
    "training_new",
    "ws-ticket",
}


@dataclass
class World:
    """What Alice has, all of it private."""

    owner: User
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)


def _routes() -> Iterator[tuple[str, str]]:
    """Yield every named route outside the administration, and whether it takes arguments."""

    def walk(patterns: list[Any], prefix: str) -> Iterator[tuple[str, str]]:
        for pattern in patterns:
            path = prefix + str(pattern.pattern)
            if isinstance(pattern, URLResolver):
                if pattern.namespace != "admin":
                    yield from walk(pattern.url_patterns, path)
            elif isinstance(pattern, URLPattern):
                yield str(pattern.name), path

    yield from walk(get_resolver().url_patterns, "")


@pytest.fixture
def world(alice: User) -> World:
    """Everything a route can name, belonging to Alice and marked with a canary."""
    dataset = Dataset.objects.create(owner=alice, name=CANARY)
    weights = ("lora.safetensors", "lora.kohya.safetensors", "folder/unet/config.json")
    for key in ("picture", "thumb", "made", "sample", "upload", *weights):
        storage.save(f"tests/{key}", CANARY.encode())
    image = DatasetImage.objects.create(
        dataset=dataset,
        key="tests/picture",
        thumbnail_key="tests/thumb",
        original_name=CANARY,
        caption=CANARY,
        width=64,
        height=64,
        size_bytes=1,
        format="PNG",
        pixel_sha256="0" * 64,
    )
    model = DiffusionModel.objects.create(
        base_model=make_base(),
        name=CANARY,
        title=CANARY,
        type="lora",
        category="image",
        architecture="sd1",
        path="tests/lora.safetensors",
        files=[{"name": "a", "size": 1}, {"name": "k", "size": 1, "layout": "kohya"}],
        availability="ready",
        is_active=True,
        owner=alice,
        visibility="private",
        thumbnail_key="tests/thumb",
        trigger_words=[CANARY],
    )
    training = TrainingJob.objects.create(
        owner=alice, dataset=dataset, dataset_name=CANARY, base_model_name=CANARY, title=CANARY
    )
    sample = TrainingSample.objects.create(
        job=training,
        step=1,
        index=0,
        prompt=CANARY,
        key="tests/sample",
        thumbnail_key="tests/thumb",
        width=64,
        height=64,
    )
    checkpoint = TrainingCheckpoint.objects.create(
        job=training, epoch=1, step=1, prefix="tests/checkpoint", model=model
    )
    generation = GenerationJob.objects.create(
        owner=alice, model=model, model_name=CANARY, parameters={"prompt": CANARY}
    )
    made = GeneratedImage.objects.create(
        job=generation,
        owner=alice,
        index=0,
        key="tests/made",
        thumbnail_key="tests/thumb",
        animation_key="tests/made",
        seed=1,
        width=64,
        height=64,
        parameters={"prompt": CANARY},
    )
    upload = InputPicture.objects.create(
        owner=alice,
        key="tests/upload",
        width=64,
        height=64,
        size_bytes=1,
        format="png",
        pixel_sha256="0" * 64,
    )
    token, _secret = ApiToken.issue(alice, CANARY)
    picture = {"pk": dataset.pk, "image_id": image.pk}
    painted = {"pk": training.pk, "sample_id": sample.pk}
    return World(
        alice,
        {
            **dict.fromkeys(
                ["dataset_detail", "dataset-detail", "dataset-images"], {"pk": dataset.pk}
            ),
            "dataset-image-detail": picture,
            "dataset-image-file": picture,
            "dataset-image-thumbnail": picture,
            **dict.fromkeys(
                ["model_detail", "model-detail", "model-download", "model-thumbnail"],
                {"pk": model.pk},
            ),
            **dict.fromkeys(
                [
                    "training_detail",
                    "training-detail",
                    "training-start",
                    "training-cancel",
                    "training-pause",
                    "training-resume",
                    "training-stop",
                    "training-extend",
                    "training-progress",
                    "training-metrics",
                    "training-samples",
                    "training-checkpoints",
                    "training-log",
                ],
                {"pk": training.pk},
            ),
            "training-checkpoint-register": {"pk": training.pk, "checkpoint_id": checkpoint.pk},
            "training-sample-file": painted,
            "training-sample-thumbnail": painted,
            **dict.fromkeys(
                ["generation-detail", "generation-cancel", "generation-preview"],
                {"pk": generation.pk},
            ),
            **dict.fromkeys(
                [
                    "image_detail",
                    "image-animation",
                    "image-detail",
                    "image-file",
                    "image-make-again",
                    "image-thumbnail",
                ],
                {"pk": made.pk},
            ),
            "openai-model": {"reference": model.name},
            **dict.fromkeys(["generate-upload-detail", "generate-upload-file"], {"pk": upload.pk}),
            "token-detail": {"pk": token.pk},
        },
    )


def _content(response: Any) -> bytes:
    return b"".join(response.streaming_content) if response.streaming else response.content


def test_every_route_is_listed(world: World) -> None:
    listed = PUBLIC | OWN | set(world.objects)
    routes = {name for name, _path in _routes()}
    assert not routes - listed, "say in this file who may see the new routes"
    assert not listed - routes, "these routes are gone"


def test_a_stranger_gets_404_for_every_object(
    world: World, bob: User, api: Callable[[User | None], APIClient]
) -> None:
    for client in (api(bob), _page_client(bob)):
        for name, kwargs in world.objects.items():
            for method in METHODS:
                response = getattr(client, method)(reverse(name, kwargs=kwargs))
                assert response.status_code in (404, 405), (name, method, response.status_code)
                assert CANARY.encode() not in _content(response), (name, method)
    assert Dataset.objects.filter(name=CANARY).exists()
    assert DiffusionModel.objects.filter(name=CANARY, deleted_at=None).exists()
    assert GeneratedImage.objects.live().filter(owner=world.owner).exists()
    assert ApiToken.objects.get(name=CANARY).revoked_at is None
    assert not TrainingJob.objects.get(title=CANARY).cancel_requested


def test_no_layout_of_the_weights_is_handed_to_a_stranger(
    world: World, bob: User, staff: User, api: Callable[[User | None], APIClient]
) -> None:
    folder = DiffusionModel.objects.create(
        base_model=make_base("Other"),
        name="folder",
        title=CANARY,
        type="full",
        architecture="sd1",
        path="tests/folder",
        files=[{"name": "unet/config.json", "size": len(CANARY)}],
        owner=world.owner,
    )
    for pk in (world.objects["model-download"]["pk"], folder.pk):
        for query in ("", "?layout=diffusers", "?layout=kohya", "?layout=x"):
            url = reverse("model-download", kwargs={"pk": pk}) + query
            for client in (api(bob), api(staff), _page_client(bob)):
                response = client.get(url)
                assert response.status_code == 404, url
                assert CANARY.encode() not in _content(response)
            assert api(None).get(url).status_code == 401
        assert CANARY.encode() in _content(api(world.owner).get(url.partition("?")[0]))


def test_an_administrator_sees_no_private_contents_on_the_site(
    world: World, staff: User, api: Callable[[User | None], APIClient]
) -> None:
    for name, kwargs in world.objects.items():
        response = api(staff).get(reverse(name, kwargs=kwargs))
        assert response.status_code in (404, 405), (name, response.status_code)


def test_no_list_or_page_of_a_stranger_shows_a_trace(
    world: World, bob: User, api: Callable[[User | None], APIClient]
) -> None:
    for client in (api(bob), _page_client(bob)):
        for name in sorted(OWN):
            response = client.get(reverse(name), follow=True)
            assert response.status_code < 500, name
            assert CANARY.encode() not in _content(response), name


def test_using_a_strangers_object_in_ones_own_work_is_refused(
    world: World, bob: User, api: Callable[[User | None], APIClient]
) -> None:
    client = api(bob)
    own = Dataset.objects.create(owner=bob, name="mine")
    base = DiffusionModel.objects.get(name="Base")
    hers, model = world.objects["dataset-detail"]["pk"], world.objects["model-detail"]["pk"]
    wishes = [
        ("training-list", {"dataset_id": hers, "base_model_id": base.pk, "type": "lora"}),
        ("training-list", {"dataset_id": own.pk, "base_model_id": model, "type": "lora"}),
        ("generate-text-to-image", {"model": model, "prompt": "x"}),
        ("generate-text-to-image", {"model": CANARY, "prompt": "x"}),
        (
            "generate-text-to-image",
            {"model": base.pk, "prompt": "x", "loras": [{"model": model, "weight": 1}]},
        ),
        ("openai-images-generations", {"model": str(model), "prompt": "x"}),
        ("openai-images-generations", {"model": CANARY, "prompt": "x"}),
        ("a1111-txt2img", {"override_settings": {"sd_model_checkpoint": CANARY}}),
        ("a1111-options", {"sd_model_checkpoint": CANARY}),
        *(
            (route, {"model": base.pk, "image": {kind: world.objects[owned][key]}})
            for route in ("generate-image-to-image", "generate-inpaint")
            for kind, owned, key in (
                ("upload_id", "generate-upload-detail", "pk"),
                ("image_id", "image-detail", "pk"),
                ("dataset_image_id", "dataset-image-detail", "image_id"),
            )
        ),
    ]
    for name, wish in wishes:
        response = client.post(reverse(name), wish, format="json")
        assert 400 <= response.status_code < 500, (name, wish, response.content)
        assert TrainingJob.objects.filter(owner=bob).count() == 0
        assert GenerationJob.objects.filter(owner=bob).count() == 0


def test_nothing_answers_without_an_account(world: World) -> None:
    client = Client()
    names = {**dict.fromkeys(OWN, {}), **world.objects}
    for name, kwargs in names.items():
        response = client.get(reverse(name, kwargs=kwargs))
        assert response.status_code in (302, 401, 403, 405), (name, response.status_code)
        assert CANARY.encode() not in _content(response), name


def _page_client(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client
