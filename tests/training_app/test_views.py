"""The pages of trainings: the list, the form with its review, and one training."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from studio_project.models import User
from tests.factories import make_base, make_dataset, make_lora, make_training, make_worker
from training_app import estimates
from training_app.forms import CHOICE_LABELS, applies, expert_groups
from training_app.models import TrainingCheckpoint, TrainingNote, TrainingSample
from training_app.texts import note_sentence
from training_app.trainer.config import FIELDS, resolve_config
from training_app.trainer.presets import METHODS
from training_app.views import asked_config

Browser = Callable[[User | None], Client]
# Fields that stand outside the expert drawer, in the open form.
IN_THE_OPEN = {"preset", "trigger_word"}


def _resolved() -> dict[str, Any]:
    return resolve_config(
        {}, architecture="sd1", method="lora", base_defaults={}, num_images=2
    ).as_dict()


def test_list_shows_my_trainings_alone(browser: Browser, alice: User, bob: User) -> None:
    mine = make_training(alice)
    make_training(bob, title="Secret")
    page = browser(alice).get("/training")
    assert page.context["trainings"] == [mine]
    assert b"Secret" not in page.content
    assert b"/thumbnail" not in page.content

    model = make_lora(alice, make_base(), thumbnail_key="models/t.webp")
    make_training(alice, status="completed", output_model=model)
    assert f"/api/models/{model.pk}/thumbnail" in browser(alice).get("/training").content.decode()


@pytest.mark.parametrize(
    ("query", "statuses"),
    [("running", {"queued", "pending"}), ("completed", {"completed"}), ("failed", {"canceled"})],
)
def test_list_can_be_narrowed(
    browser: Browser, alice: User, query: str, statuses: set[str]
) -> None:
    for status in ("queued", "pending", "completed", "canceled"):
        make_training(alice, status=status)
    page = browser(alice).get(f"/training?status={query}")
    assert {job.status for job in page.context["trainings"]} == statuses


def test_list_costs_the_same_for_one_and_for_twenty(
    browser: Browser, alice: User, django_assert_max_num_queries: Any
) -> None:
    for _number in range(20):
        make_training(alice, status="queued")
    client = browser(alice)
    with django_assert_max_num_queries(12):
        client.get("/training")


# --- the form -----------------------------------------------------------------------------------
def test_every_setting_of_a_training_has_its_place_in_the_form() -> None:
    shown = {field.name for _title, fields in expert_groups() for field in fields}
    assert shown | IN_THE_OPEN == set(FIELDS)
    assert not shown & IN_THE_OPEN


def test_every_choice_has_a_label() -> None:
    choices = {
        value
        for _title, fields in expert_groups()
        for field in fields
        for value, _ in field.choices
    }
    assert choices == set(CHOICE_LABELS)


def test_form_shows_datasets_with_counts_and_warnings(
    browser: Browser, alice: User, bob: User
) -> None:
    make_dataset(alice, name="Many", captions=("a fox",) * 1 + ("",) * 6)
    make_dataset(alice, name="Few")
    make_dataset(alice, name="Nothing", captions=())
    make_dataset(bob, name="Secret")
    answer = browser(alice).get("/training/new")
    page = answer.content.decode()
    assert [row.name for row in answer.context["cards"]] == ["Few", "Many", "Nothing"]
    assert "6 without caption" in page
    assert "Few pictures" in page
    assert "Empty: add pictures first" in page
    assert "Secret" not in page


def test_form_chooses_the_best_ready_base_beforehand(browser: Browser, alice: User) -> None:
    make_base("Small", size_bytes=10)
    best = make_base("Large", size_bytes=1000)
    make_base("Remote", availability="remote", path="", size_bytes=5000)
    make_base("Other family", architecture="svd", size_bytes=9000)
    make_base("Painter", is_inpainting=True, size_bytes=9000)
    page = browser(alice).get("/training/new")
    assert page.context["base"] == str(best.pk)
    assert f'value="{best.pk}"' in page.content.decode()


def test_form_opens_with_what_the_address_names(browser: Browser, alice: User) -> None:
    wanted = make_dataset(alice, name="Wanted")
    make_dataset(alice, name="Newer")
    base = make_base()
    page = browser(alice).get(f"/training/new?dataset={wanted.pk}&base={base.pk}")
    assert page.context["chosen"] == wanted
    assert page.context["base"] == str(base.pk)


def test_form_starts_from_an_earlier_training_of_mine(
    browser: Browser, alice: User, bob: User
) -> None:
    job = make_training(alice, config={"rank": 7}, dataset=make_dataset(alice))
    page = browser(alice).get(f"/training/new?like={job.pk}")
    assert json.loads(page.context["asked_json"]) == {"rank": 7}
    assert browser(bob).get(f"/training/new?like={job.pk}").context["like"] is None
    assert browser(alice).get("/training/new?like=nonsense").status_code == 200


def _review(client: Client, **values: Any) -> Any:
    return client.get("/training/new", {"part": "review", **values})


def test_review_shows_what_the_choices_come_to(browser: Browser, alice: User) -> None:
    dataset, base = make_dataset(alice), make_base()
    page = _review(browser(alice), dataset_id=dataset.pk, base_model_id=base.pk, rank="4")
    expected = resolve_config(
        {"rank": 4},
        architecture="sd1",
        method="lora",
        base_defaults=base.default_settings,
        num_images=2,
    )
    assert page.context["config"] == expected
    assert b"<html" not in page.content


def test_review_knows_the_methods(browser: Browser, alice: User) -> None:
    dataset, base = make_dataset(alice), make_base()
    chosen = {"dataset_id": dataset.pk, "base_model_id": base.pk, "rank": "4", "class_prompt": "x"}
    full = _review(browser(alice), type="full", **chosen)
    # Neither belongs to it; what another method was told stays in the form, unheard.
    assert full.context["config"].tune == "unet"
    assert "Full fine-tuning" in full.content.decode()
    assert "Effective learning rate" in full.content.decode()
    assert _review(browser(alice), type="dreambooth", **chosen).context["config"].has_prior
    assert "error" in _review(browser(alice), type="hypernetwork", **chosen).context


def test_settings_are_shown_for_the_methods_that_know_them() -> None:
    fields = {field.name: field for _title, group in expert_groups() for field in group}
    assert fields["class_prompt"].methods == ("dreambooth",)
    assert (fields["rank"].methods, fields["rank"].tune) == (METHODS, "adapters")
    assert applies("rank", "lora", "adapters") and not applies("rank", "full", "unet")
    assert not applies("class_prompt", "lora", "adapters")


def test_review_names_the_setting_that_cannot_be_used(browser: Browser, alice: User) -> None:
    dataset, base = make_dataset(alice), make_base()
    page = _review(browser(alice), dataset_id=dataset.pk, base_model_id=base.pk, rank="9999")
    assert b'data-problem-field="rank"' in page.content
    assert b"<strong>Rank</strong>" in page.content


def test_review_warns_of_pictures_without_words(browser: Browser, alice: User) -> None:
    dataset, base = make_dataset(alice, captions=("a fox", "")), make_base()
    chosen = {"dataset_id": dataset.pk, "base_model_id": base.pk}
    assert _review(browser(alice), **chosen).context["problems"]
    assert not _review(browser(alice), trigger_word="zorp", **chosen).context["problems"]


def test_review_tells_nothing_of_what_is_not_mine(browser: Browser, alice: User, bob: User) -> None:
    dataset = make_dataset(bob, name="Secret")
    base = make_base("Secret base", owner=bob, visibility="private")
    page = _review(browser(alice), dataset_id=dataset.pk, base_model_id=base.pk)
    assert b"Secret" not in page.content
    assert _review(browser(alice), dataset_id="x", base_model_id="9" * 30).status_code == 200


def test_review_knows_the_cost_once_it_was_measured(browser: Browser, alice: User) -> None:
    dataset, base, worker = make_dataset(alice), make_base(), make_worker()
    chosen = {"dataset_id": dataset.pk, "base_model_id": base.pk, "max_train_steps": "50"}
    assert "not known yet" in _review(browser(alice), **chosen).content.decode()
    config = resolve_config(
        {}, architecture="sd1", method="lora", base_defaults=base.default_settings, num_images=2
    ).as_dict()
    cost = {"seconds_per_step": 2.0, "peak_memory_bytes": 3 * 10**9}
    estimates.note(base, config, "lora", worker, **cost)
    page = _review(browser(alice), **chosen)
    assert page.context["seconds"] == 100
    assert "1 min 40 s" in page.content.decode() and "3.0" in page.content.decode()


def test_empty_fields_are_left_to_the_defaults() -> None:
    asked = asked_config(
        {
            "rank": "8",
            "learning_rate": "0.001",
            "flip": "",
            "seed": "x",
            "sample_prompts": "a\n\nb",
        },
        "lora",
    )
    assert asked == {"rank": 8, "learning_rate": 0.001, "seed": "x", "sample_prompts": ["a", "b"]}


# --- one ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("part", ["", "?part=head", "?part=timeline"])
def test_a_stranger_gets_404(browser: Browser, alice: User, bob: User, part: str) -> None:
    job = make_training(alice, resolved_config=_resolved())
    assert browser(bob).get(f"/training/{job.pk}{part}").status_code == 404
    assert browser(alice).get(f"/training/{job.pk}{part}").status_code == 200


def test_a_training_that_is_being_canceled_offers_nothing_more(
    browser: Browser, alice: User
) -> None:
    job = make_training(
        alice, status="running", step=5, cancel_requested=True, resolved_config=_resolved()
    )
    head = browser(alice).get(f"/training/{job.pk}?part=head").content.decode()
    assert "It is being canceled." in head
    assert "data-api" not in head
    queue = browser(alice).get("/queue?part=lists").content.decode()
    assert "Being canceled" in queue and f"/training/{job.pk}/cancel" not in queue


@pytest.mark.parametrize(
    ("status", "offered"),
    [
        ("pending", "/start"),
        ("queued", "/cancel"),
        ("running", "/pause"),
        ("running", "/stop"),
        ("running", "/cancel"),
        ("paused", "/resume"),
        ("failed", "?like="),
    ],
)
def test_each_state_offers_its_way_on(
    browser: Browser, alice: User, status: str, offered: str
) -> None:
    job = make_training(alice, status=status, resolved_config=_resolved())
    assert offered in browser(alice).get(f"/training/{job.pk}").content.decode()


def test_a_queued_training_tells_its_place_or_why_it_waits(browser: Browser, alice: User) -> None:
    job = make_training(alice, status="queued", resolved_config=_resolved())
    page = browser(alice).get(f"/training/{job.pk}").content.decode()
    assert "No worker that could do it is running" in page


def test_a_failed_training_says_why_and_the_way_out(browser: Browser, alice: User) -> None:
    job = make_training(
        alice, status="failed", error_code="non_finite_loss", resolved_config=_resolved()
    )
    page = browser(alice).get(f"/training/{job.pk}").content.decode()
    assert "lower learning rate" in page


def test_a_finished_training_leads_to_its_model(browser: Browser, alice: User) -> None:
    model = make_lora(alice, make_base())
    job = make_training(alice, status="completed", output_model=model, resolved_config=_resolved())
    page = browser(alice).get(f"/training/{job.pk}").content.decode()
    assert f"/text-to-image?model={model.pk}" in page
    assert "Use it now" in page


@pytest.mark.parametrize(
    ("code", "params", "words"),
    [
        ("rolled_back", {"step": 40, "learning_rate": 5e-5}, "step 40"),
        (
            "micro_batch_halved",
            {"train_batch_size": 2, "gradient_accumulation_steps": 2},
            "2 pictures at a time",
        ),
        ("pictures_cropped", {"count": 3, "share": 0.375}, "38% of one"),
        ("pictures_cropped", {"count": 1, "share": 0.25}, "1 picture does not fit its size"),
        ("pictures_enlarged", {"count": 3, "factor": 2.5}, "up to 2.5 times"),
        ("pictures_enlarged", {"count": 1, "factor": 2.5}, "1 picture is small"),
        ("class_images_made", {"count": 80, "reused": 20}, "80 painted"),
        ("text_too_long", {"count": 4}, "4 captions are longer"),
        ("text_too_long", {"count": 1}, "1 caption is longer"),
        ("slice_over", {"step": 12}, "turn"),
        ("kept", {"step": 12, "total": 100}, "12 of 100"),
    ],
)
def test_every_note_is_a_sentence(code: str, params: dict[str, Any], words: str) -> None:
    sentence = note_sentence(code, params)
    assert words in sentence
    assert sentence.endswith(".") and "%(" not in sentence


def test_timeline_speaks_in_sentences(browser: Browser, alice: User) -> None:
    job = make_training(alice, resolved_config=_resolved())
    TrainingNote.objects.create(job=job, code="started", params={"worker": "gpu-1"})
    page = browser(alice).get(f"/training/{job.pk}?part=timeline").content.decode()
    assert "Started on gpu-1." in page


def test_a_model_tells_its_owner_where_it_came_from(
    browser: Browser, alice: User, bob: User
) -> None:
    model = make_lora(alice, make_base(), visibility="shared")
    job = make_training(alice, title="Origin of it", output_model=model, status="completed")
    address = f"/training?part=origin&model={model.pk}"
    assert f"/training/{job.pk}" in browser(alice).get(address).content.decode()
    assert b"Origin of it" not in browser(bob).get(address).content
    for odd in ("x", "9" * 5000):
        assert browser(alice).get(f"/training?part=origin&model={odd}").status_code == 200

    early = make_lora(alice, model.base_model)
    TrainingCheckpoint.objects.create(job=job, epoch=1, step=10, model=early)
    for step in (5, 10, 20):
        TrainingSample.objects.create(
            job=job,
            step=step,
            index=0,
            prompt=f"painted at {step}",
            seed=0,
            width=64,
            height=64,
            key=f"jobs/{step}.png",
            thumbnail_key=f"jobs/{step}.webp",
        )
    page = browser(alice).get(f"/training?part=origin&model={early.pk}").content.decode()
    assert f"/training/{job.pk}" in page
    assert "painted at 10" in page and "painted at 20" not in page
    assert "painted at 20" in browser(alice).get(address).content.decode()
