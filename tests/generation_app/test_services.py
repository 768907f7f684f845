"""What people ask of the generator: models by id or name, LoRAs that fit, values resolved."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import translation

from generation_app import services
from generation_app.models import GeneratedImage, GenerationJob
from models_app import services as model_services
from models_app.models import DiffusionModel
from studio_project import storage
from studio_project.api import Problem
from studio_project.models import User, Visibility
from tests.factories import make_base, make_generation, make_image, make_lora

Status = GenerationJob.Status


def submit(user: User, **body: Any) -> GenerationJob:
    return services.submit_generation(user, mode="text-to-image", body=body)


def refusal(code: str, function: Any, *args: Any, **kwargs: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        function(*args, **kwargs)
    assert caught.value.code == code, caught.value.detail
    return caught.value


def test_a_request_is_queued_with_every_value_resolved(alice: User) -> None:
    base = make_base()
    job = submit(alice, model=base.pk, prompt="a fox", num_images=3)
    job.refresh_from_db()
    assert (job.status, job.model, job.base_model) == (Status.QUEUED, base, base)
    assert (job.model_name, job.model_title) == ("Base", "Base")
    values = job.parameters
    assert (values["width"], values["num_inference_steps"]) == (64, 4)  # the model's defaults
    assert values["seeds"] == [(values["seed"] + index) % 2**32 for index in range(3)]
    assert job.total_steps == 12
    assert job.queued_at is not None


@pytest.mark.parametrize("reference", ["name", "id", "id as text"])
def test_a_model_is_found_by_id_or_name(alice: User, reference: str) -> None:
    base = make_base("Meadow")
    model = {"name": "Meadow", "id": base.pk, "id as text": str(base.pk)}[reference]
    assert submit(alice, model=model, prompt="x").model == base


@pytest.mark.parametrize("reference", [None, "", True, 1.5, [1], {"id": 1}])
def test_what_is_no_model_is_named(alice: User, reference: Any) -> None:
    assert list(refusal("invalid", submit, alice, model=reference).fields) == ["model"]


def test_a_lora_brings_its_base_and_weight_one(alice: User) -> None:
    base = make_base()
    lora = make_lora(alice, base)
    job = submit(alice, model=lora.name, prompt="x")
    assert (job.model, job.base_model) == (lora, base)
    assert [(entry["id"], entry["weight"]) for entry in job.parameters["loras"]] == [(lora.pk, 1.0)]
    assert set(job.needed_models.all()) == {base, lora}


def test_loras_set_the_weights_also_of_the_model_itself(alice: User) -> None:
    base = make_base()
    fox, owl = make_lora(alice, base, "Fox"), make_lora(alice, base, "Owl")
    loras = [{"model": owl.pk, "weight": -0.5}, {"model": "Fox", "weight": 0.7}]
    job = submit(alice, model=fox.pk, prompt="x", loras=loras)
    weights = {entry["name"]: entry["weight"] for entry in job.parameters["loras"]}
    assert weights == {"Fox": 0.7, "Owl": -0.5}


def test_a_whole_network_is_its_own_base_and_wears_loras(alice: User) -> None:
    base = make_base()
    for type_ in ("full", "dreambooth"):
        model = make_base(
            f"My {type_}", type=type_, owner=alice, visibility="private", base_model=base
        )
        lora = make_lora(alice, base, f"Fox for {type_}")
        job = submit(alice, model=model.pk, prompt="x", loras=[{"model": lora.pk, "weight": 0.6}])
        assert (job.model, job.base_model) == (model, model)
        assert [(entry["id"], entry["weight"]) for entry in job.parameters["loras"]] == [
            (lora.pk, 0.6)
        ]
        assert set(job.needed_models.all()) == {model, lora}
        refusal("model_incompatible", submit, alice, model=base.pk, loras=[{"model": model.pk}])


def test_a_dreambooth_of_adapters_acts_as_a_lora(alice: User) -> None:
    base = make_base()
    model = make_lora(alice, base, "My dog", type="dreambooth")
    job = submit(alice, model=model.pk, prompt="x")
    assert (job.model, job.base_model) == (model, base)
    assert [(entry["id"], entry["weight"]) for entry in job.parameters["loras"]] == [
        (model.pk, 1.0)
    ]
    beside = submit(alice, model=base.pk, prompt="x", loras=[{"model": model.pk}])
    assert beside.base_model == base
    assert [entry["id"] for entry in beside.parameters["loras"]] == [model.pk]


def test_a_whole_network_outlives_its_base(alice: User) -> None:
    base = make_base()
    model = make_base("Whole", type="full", owner=alice, visibility="private", base_model=base)
    base.write(is_active=False)
    assert submit(alice, model=model.pk, prompt="x").base_model == model


def test_a_lora_of_another_family_does_not_fit(alice: User) -> None:
    other = make_lora(alice, make_base("Large", architecture="sdxl"), "Owl")
    problem = refusal(
        "model_incompatible",
        submit,
        alice,
        model=make_base().pk,
        loras=[{"model": other.pk}],
    )
    assert list(problem.fields) == ["loras"]


def test_a_base_is_no_lora(alice: User) -> None:
    base, other = make_base(), make_base("Other")
    refusal("model_incompatible", submit, alice, model=base.pk, loras=[{"model": other.pk}])


def test_another_users_models_are_not_found(alice: User, bob: User) -> None:
    lora = make_lora(alice, make_base())
    for body in ({"model": lora.pk}, {"model": "Fox"}):
        assert refusal("model_not_found", submit, bob, **body).status == 404
    problem = refusal("model_not_found", submit, bob, model="Base", loras=[{"model": lora.pk}])
    assert list(problem.fields) == ["loras"]
    assert not GenerationJob.objects.exists()


def test_a_shared_lora_is_for_everyone(alice: User, bob: User) -> None:
    lora = make_lora(alice, make_base(), visibility=Visibility.SHARED)
    assert submit(bob, model=lora.pk, prompt="x").model == lora


@pytest.mark.parametrize("fields", [{"is_active": False}, {"availability": "remote", "path": ""}])
def test_a_model_that_cannot_be_used_is_refused(alice: User, fields: dict[str, Any]) -> None:
    problem = refusal("model_unavailable", submit, alice, model=make_base(**fields).pk)
    assert problem.status == 409


def test_a_video_model_does_not_paint_from_words(alice: User) -> None:
    base = make_base(architecture="svd", category="video")
    assert list(refusal("invalid", submit, alice, model=base.pk).fields) == ["model"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"width": 63}, "width"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"seed": -2}, "seed"),
        ({"promt": "x"}, "promt"),
        ({"scheduler": "best"}, "scheduler"),
        ({"num_images": 10**6}, "num_images"),
        ({"loras": [{"weight": 1}]}, "loras"),
    ],
)
def test_a_bad_value_is_named(alice: User, body: dict[str, Any], field: str) -> None:
    problem = refusal("invalid", submit, alice, model=make_base().pk, **body)
    assert list(problem.fields) == [field]


def test_images_per_request_are_the_users_cap(alice: User) -> None:
    User.objects.filter(pk=alice.pk).update(max_images_per_request=2)
    alice.refresh_from_db()
    base = make_base()
    assert submit(alice, model=base.pk, num_images=2)
    refusal("invalid", submit, alice, model=base.pk, num_images=3)


def test_the_cap_of_active_jobs(alice: User, bob: User) -> None:
    base = make_base()
    User.objects.update(max_active_jobs=1)
    submit(alice, model=base.pk)
    assert refusal("active_jobs_limit", submit, alice, model=base.pk).status == 429
    assert submit(bob, model=base.pk)
    assert GenerationJob.objects.count() == 2


def test_no_room_is_refused_before_any_work(alice: User, settings: Any) -> None:
    base = make_base()
    User.objects.filter(pk=alice.pk).update(stored_bytes=5, max_stored_bytes=5)
    refusal("storage_full", submit, alice, model=base.pk)
    settings.STUDIO_MIN_FREE_BYTES = 10**18
    refusal("disk_full", submit, alice, model=base.pk)


def test_modes_that_do_not_exist_yet_are_refused(alice: User) -> None:
    refusal("method_unavailable", services.submit_generation, alice, mode="upscale", body={})


def test_unsharing_ends_queued_requests_of_others_and_pictures_keep_the_name(
    alice: User, bob: User
) -> None:
    lora = make_lora(alice, make_base(), visibility=Visibility.SHARED)
    done = make_generation(bob, lora, status=Status.COMPLETED, model_name="Fox")
    image = make_image(done)
    own, theirs = submit(alice, model=lora.pk), submit(bob, model=lora.pk)
    model_services.share(alice, lora, Visibility.PRIVATE)
    for job in (own, theirs, done):
        job.refresh_from_db()
    assert [own.status, theirs.status, done.status] == ["queued", "failed", "completed"]
    assert theirs.error("en")["code"] == "model_unavailable"
    assert GeneratedImage.objects.visible_to(bob).get() == image
    assert image.job.model_name == "Fox"


def test_deactivating_a_base_ends_what_waits_for_its_loras(alice: User, staff: User) -> None:
    base = make_base()
    job, plain = submit(alice, model=make_lora(alice, base).pk), submit(alice, model=base.pk)
    DiffusionModel.objects.filter(pk=base.pk).update(title="Starter 64 (practice model)")
    base.refresh_from_db()
    with translation.override("fr"):
        assert base.shown_title != base.title
        model_services.deactivate_model(staff, base)
    for ended in (job, plain):
        ended.refresh_from_db()
        assert (ended.status, ended.error_code) == (Status.FAILED, "model_unavailable")
    assert plain.error_params["model"] == "Starter 64 (practice model)"  # nobody's language


def test_deleting_a_model_ends_what_waits_for_it(alice: User) -> None:
    lora = make_lora(alice, make_base())
    job = submit(alice, model="Base", loras=[{"model": lora.pk, "weight": 0.5}])
    model_services.delete_model(alice, lora)
    job.refresh_from_db()
    assert job.error_code == "model_unavailable"


def test_deleting_a_picture_frees_its_room(
    alice: User, django_capture_on_commit_callbacks: Any
) -> None:
    image = make_image(make_generation(alice, make_base(), status=Status.COMPLETED))
    User.objects.filter(pk=alice.pk).update(stored_bytes=image.size_bytes + 7)
    for _ in range(2):
        with django_capture_on_commit_callbacks(execute=True):
            services.delete_image(alice, image)
    alice.refresh_from_db()
    assert alice.stored_bytes == 7
    assert not storage.exists(image.key) and not storage.exists(image.thumbnail_key)
    assert not GeneratedImage.objects.visible_to(alice).exists()


def test_deleting_a_request_takes_its_pictures(
    alice: User, django_capture_on_commit_callbacks: Any
) -> None:
    job = make_generation(alice, make_base(), status=Status.QUEUED)
    assert refusal("job_active", services.delete_generation, alice, job).status == 409
    services.cancel_generation(alice, job)
    image = make_image(job)
    with django_capture_on_commit_callbacks(execute=True):
        services.delete_generation(alice, job)
    assert not GenerationJob.objects.exists()
    assert not storage.exists(image.key)


def test_cancelling_twice_is_fine(alice: User) -> None:
    job = submit(alice, model=make_base().pk)
    for _ in range(2):
        assert services.cancel_generation(alice, job).status == Status.CANCELED


def test_an_ambiguous_name_lists_the_ids(alice: User, bob: User) -> None:
    base = make_base()
    ids = [
        make_lora(owner, base, visibility=Visibility.SHARED).pk
        for owner in (bob, User.objects.create_user("carol"))
    ]
    problem = refusal("model_ambiguous", submit, alice, model="Fox")
    assert problem.extra["ids"] == ids
    own = make_lora(alice, base)
    assert submit(alice, model="Fox").model == own
    assert DiffusionModel.objects.filter(name="Fox").count() == 3
