"""The administration shows whose jobs there are, and never what they are about."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.test import Client
from django.urls import reverse

from generation_app.models import GenerationJob
from studio_project.models import AuditEntry, User
from tests.factories import make_base, make_generation, make_image, make_training
from training_app.models import TrainingJob


@pytest.mark.parametrize("kind", ["training_app_trainingjob", "generation_app_generationjob"])
def test_contents_stay_with_the_owner(
    kind: str, browser: Callable[..., Client], alice: User, staff: User
) -> None:
    training = make_training(alice, title="Secret fox")
    request = make_generation(alice, make_base(), status="running")
    GenerationJob.objects.update(parameters={**request.parameters, "prompt": "Secret fox"})
    job = training if "training" in kind else request
    client = browser(staff)
    for page in (
        reverse(f"admin:{kind}_changelist"),
        reverse(f"admin:{kind}_change", args=[job.pk]),
        reverse(f"admin:{kind}_history", args=[job.pk]),
    ):
        answer = client.get(page)
        assert answer.status_code == 200
        assert b"Secret" not in answer.content


def test_pictures_are_listed_without_prompts(
    browser: Callable[..., Client], alice: User, staff: User
) -> None:
    image = make_image(make_generation(alice, make_base(), status="completed"))
    for page in ("changelist", "change"):
        args = [image.pk] if page == "change" else []
        path = reverse(f"admin:generation_app_generatedimage_{page}", args=args)
        answer = browser(staff).get(path)
        assert answer.status_code == 200
        assert b"a fox" not in answer.content


def test_canceling_leaves_an_audit_row(
    browser: Callable[..., Client], alice: User, staff: User
) -> None:
    job = make_training(alice, status="queued")
    browser(staff).post(
        reverse("admin:training_app_trainingjob_changelist"),
        {"action": "cancel", "_selected_action": [str(job.pk)]},
    )
    job.refresh_from_db()
    assert job.status == TrainingJob.Status.CANCELED
    assert AuditEntry.objects.get().action == "training_job.canceled"
