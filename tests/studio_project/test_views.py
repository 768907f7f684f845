"""Home, queue, account and the frame: what each shows, and to whom."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from allauth.account.models import EmailAddress
from django.test import Client

from studio_project.models import ApiToken, User
from tests.factories import (
    make_base,
    make_dataset,
    make_generation,
    make_image,
    make_lora,
    make_training,
    make_worker,
)

Browser = Callable[[User | None], Client]


@pytest.mark.parametrize("path", ["/", "/queue", "/account", "/account/", "/queue/"])
def test_pages_send_strangers_to_the_sign_in_page(browser: Browser, db: None, path: str) -> None:
    response = browser(None).get(path)
    assert response.status_code == 302
    assert response["Location"].startswith("/accounts/login/")


def test_home_of_someone_new_leads_to_a_dataset(browser: Browser, alice: User) -> None:
    response = browser(alice).get("/")
    assert response.context["steps"].now == "data"
    assert b"/datasets?new=1" in response.content


def test_home_leads_from_a_dataset_to_training_and_on_to_the_first_picture(
    browser: Browser, alice: User
) -> None:
    dataset = make_dataset(alice)
    page = browser(alice).get("/")
    assert page.context["steps"].now == "train"
    assert f"/training/new?dataset={dataset.pk}".encode() in page.content

    base = make_base()
    model = make_lora(alice, base)
    page = browser(alice).get("/")
    assert page.context["steps"].now == "generate"
    assert f"/text-to-image?model={model.pk}".encode() in page.content

    make_image(make_generation(alice, model))
    assert browser(alice).get("/").context["steps"].now == "done"


def test_home_names_a_training_that_failed_and_the_way_on(browser: Browser, alice: User) -> None:
    make_dataset(alice)
    job = make_training(alice, status="failed", error_code="internal")
    page = browser(alice).get("/").content.decode()
    assert f"/training/{job.pk}" in page
    assert "Train again" in page


def test_home_shows_nothing_of_another_user(browser: Browser, alice: User, bob: User) -> None:
    make_dataset(bob, name="Secret foxes")
    make_training(bob, title="Secret training", status="running")
    make_image(make_generation(bob))
    page = browser(alice).get("/")
    assert b"Secret" not in page.content
    assert page.context["images"] == []
    assert page.context["live"] == []


def test_a_single_email_address_can_neither_be_removed_nor_made_primary(
    browser: Browser, alice: User
) -> None:
    EmailAddress.objects.create(user=alice, email=alice.email, primary=True)
    page = browser(alice).get("/accounts/email/").content.decode()
    assert alice.email in page and 'name="action_add"' in page
    assert "action_remove" not in page and "action_primary" not in page
    EmailAddress.objects.create(user=alice, email="b@example.org")
    page = browser(alice).get("/accounts/email/").content.decode()
    assert "action_remove" in page and "action_primary" in page


def test_queue_shows_others_as_bars_without_contents(
    browser: Browser, alice: User, bob: User
) -> None:
    mine = make_training(alice, title="My training", status="queued")
    make_training(bob, title="Secret training", status="running", progress=0.5)
    page = browser(alice).get("/queue")
    assert [job.pk for job in page.context["mine"]] == [mine.pk]
    assert page.context["others"] == [
        {"status": "running", "progress": 0.5, "noun": "training_job"}
    ]
    assert b"Secret" not in page.content
    assert f"/api/training/{mine.pk}/cancel".encode() in page.content


def test_queue_names_only_warm_models_that_the_reader_may_see(
    browser: Browser, alice: User, bob: User
) -> None:
    base = make_base("Shared base")
    secret = make_lora(bob, base, "Secret fox")
    make_worker(warm=[base.name, secret.name])
    page = browser(alice).get("/queue").content.decode()
    assert "Shared base" in page
    assert "Secret fox" not in page


def test_queue_lists_cost_the_same_for_one_job_and_for_twenty(
    browser: Browser, alice: User, django_assert_max_num_queries: Callable[[int], object]
) -> None:
    client = browser(alice)
    for _number in range(20):
        make_training(alice, status="queued")
    with django_assert_max_num_queries(16):  # type: ignore[attr-defined]
        client.get("/queue?part=lists")


def test_strip_shows_the_running_job_before_the_waiting_ones(browser: Browser, alice: User) -> None:
    make_training(alice, title="Waits", status="queued")
    running = make_training(alice, title="Runs", status="running", progress=0.257)
    page = browser(alice).get("/queue?part=strip").content.decode()
    assert f'data-job="{running.pk}"' in page
    assert 'data-count="2"' in page
    assert "25%" in page
    assert "<html" not in page


def test_account_page_lists_my_living_tokens_without_secrets(
    browser: Browser, alice: User, bob: User
) -> None:
    _row, secret = ApiToken.issue(alice, "nightly")
    ApiToken.issue(bob, "of bob")
    page = browser(alice).get("/account").content.decode()
    assert "nightly" in page
    assert "of bob" not in page
    assert secret not in page


def test_language_is_kept_with_the_account_and_in_a_cookie(browser: Browser, alice: User) -> None:
    client = browser(alice)
    response = client.post("/account/language", {"language": "fr", "next": "/models"})
    assert response["Location"] == "/models"
    alice.refresh_from_db()
    assert alice.language == "fr"
    assert '<html lang="fr"' in client.get("/").content.decode()
    assert client.cookies["django_language"].value == "fr"


def test_language_switch_never_leads_off_the_site(browser: Browser, alice: User) -> None:
    target = {"language": "fr", "next": "https://example.org/"}
    assert browser(alice).post("/account/language", target)["Location"] == "/"


def test_unknown_language_and_theme_change_nothing(browser: Browser, alice: User) -> None:
    client = browser(alice)
    client.post("/account/language", {"language": "xx"})
    client.post("/account/theme", {"theme": "pink"})
    alice.refresh_from_db()
    assert (alice.language, alice.theme) == ("", "system")


def test_theme_is_written_into_the_page(browser: Browser, alice: User) -> None:
    client = browser(alice)
    client.post("/account/theme", {"theme": "dark"})
    assert 'data-theme="dark"' in client.get("/").content.decode()


def test_a_closed_hint_stays_closed(browser: Browser, alice: User) -> None:
    client = browser(alice)
    assert b'data-hint="home"' in client.get("/").content
    client.cookies["studio_hints"] = "models.home"
    assert b'data-hint="home"' not in client.get("/").content


def test_pages_hold_no_inline_script_or_style(browser: Browser, alice: User) -> None:
    make_dataset(alice)
    job = make_training(alice, status="running")
    client = browser(alice)
    paths = ("/", "/queue", "/account", "/datasets", "/models", "/training", "/training/new")
    for path in (*paths, f"/training/{job.pk}", "/text-to-image", "/images"):
        page = client.get(path).content.decode()
        assert " style=" not in page, path
        assert "<style" not in page, path
        assert " onclick=" not in page, path
        assert page.count("<script") == page.count("<script src="), path


def test_missing_page_says_so_in_words(browser: Browser, alice: User) -> None:
    response = browser(alice).get("/nothing-here")
    assert response.status_code == 404
    assert b"Nothing here" in response.content
