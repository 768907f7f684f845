"""Many people at once: counts stay right, the cap holds, one picture is one picture."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.db.models import Sum

from datasets_app import intake, keeping, services
from datasets_app.images import keep_picture
from datasets_app.models import Dataset, DatasetImage
from studio_project.api import Problem
from studio_project.models import User
from tests.datasets_app.makers import png, upload

pytestmark = pytest.mark.django_db(transaction=True)

Files = Callable[[], set[str]]


def at_once(*verbs: Callable[[], Any]) -> list[Any]:
    """Run functions in threads that start together; return results and problems in order."""
    start = threading.Barrier(len(verbs))
    outcomes: list[Any] = [None] * len(verbs)

    def run(index: int, verb: Callable[[], Any]) -> None:
        start.wait()
        try:
            outcomes[index] = verb()
        except Problem as problem:
            outcomes[index] = problem
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(verbs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes


def add(user: User, dataset: Dataset, *seeds: int) -> Callable[[], services.UploadResult]:
    files = [upload(f"{seed}.png", png(seed)) for seed in seeds]
    own = Dataset.objects.get(pk=dataset.pk)
    return lambda: services.add_files(user, own, files)


def assert_counts_are_right(dataset: Dataset) -> None:
    dataset.refresh_from_db()
    rows = DatasetImage.objects.live().filter(dataset=dataset)
    total = rows.aggregate(total=Sum("size_bytes"))["total"] or 0
    assert (dataset.num_items, dataset.size_bytes) == (rows.count(), total)
    assert User.objects.get(pk=dataset.owner_id).stored_bytes == total


def test_counts_are_right_when_many_add(alice: User, foxes: Dataset, stored_files: Files) -> None:
    results = at_once(*(add(alice, foxes, *range(10 * n, 10 * n + 5)) for n in range(6)))
    assert [len(result.created) for result in results] == [5] * 6
    assert_counts_are_right(foxes)
    assert foxes.num_items == 30
    assert len(stored_files()) == 60


def test_the_same_picture_at_once_is_taken_once(
    alice: User, foxes: Dataset, stored_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All get past the early check together, so that only the constraint can decide.
    together = threading.Barrier(5)
    early = threading.local()
    real = intake.Intake._refuse_twin

    def late(self: intake.Intake, picture: Any) -> None:
        if getattr(early, "passed", False):
            real(self, picture)
            return
        early.passed = True
        together.wait(30)

    monkeypatch.setattr(intake.Intake, "_refuse_twin", late)
    results = at_once(*(add(alice, foxes, 1) for _index in range(5)))
    assert sorted(len(result.created) for result in results) == [0, 0, 0, 0, 1]
    codes = [item["code"] for result in results for item in result.rejected]
    assert codes == ["duplicate_picture"] * 4
    assert len(stored_files()) == 2
    assert_counts_are_right(foxes)


def test_the_cap_holds_when_many_add(alice: User, foxes: Dataset, stored_files: Files) -> None:
    (first,) = add(alice, foxes, 0)().created
    other = services.create_dataset(alice, name="Others")
    User.objects.filter(pk=alice.pk).update(max_stored_bytes=4 * first.size_bytes + 40)
    results = at_once(
        *(add(alice, foxes if n % 2 else other, 10 + 2 * n, 11 + 2 * n) for n in range(6))
    )
    taken = sum(len(result.created) for result in results)
    alice.refresh_from_db()
    assert 1 <= taken <= 3
    assert alice.stored_bytes <= alice.max_stored_bytes
    rows = DatasetImage.objects.live()
    assert alice.stored_bytes == rows.aggregate(total=Sum("size_bytes"))["total"]
    assert len(stored_files()) == 2 * rows.count()


def test_deleting_a_picture_twice_at_once_counts_once(alice: User, foxes: Dataset) -> None:
    images = add(alice, foxes, 1, 2)().created
    copies = [DatasetImage.objects.get(pk=images[0].pk) for _index in range(4)]
    outcomes = at_once(*(lambda copy=copy: services.delete_image(alice, copy) for copy in copies))
    assert [isinstance(outcome, Problem) for outcome in outcomes].count(False) == 1
    assert_counts_are_right(foxes)
    assert foxes.num_items == 1


def test_adding_to_a_dataset_that_is_being_deleted_leaves_no_bytes_behind(
    alice: User, foxes: Dataset, stored_files: Files
) -> None:
    add(alice, foxes, 100)()
    own = Dataset.objects.get(pk=foxes.pk)
    at_once(
        *(add(alice, foxes, *range(10 * n, 10 * n + 4)) for n in range(3)),
        lambda: services.delete_dataset(alice, own),
    )
    alice.refresh_from_db()
    assert alice.stored_bytes == 0
    assert not DatasetImage.objects.live().exists()
    services.collect_garbage(grace_seconds=0)
    assert stored_files() == set()


def test_versions_rise_with_every_change(alice: User, foxes: Dataset) -> None:
    (image,) = add(alice, foxes, 1)().created
    foxes.refresh_from_db()
    before = foxes.version
    copies = [DatasetImage.objects.get(pk=image.pk) for _index in range(4)]
    at_once(
        *(
            lambda c=copy, n=n: services.edit_image(alice, c, caption=f"{n}")
            for n, copy in enumerate(copies)
        )
    )
    foxes.refresh_from_db()
    image.refresh_from_db()
    assert (foxes.version, image.version) == (before + 4, 5)


def test_one_picture_is_decoded_at_a_time(
    alice: User, foxes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, most = 0, 0
    guard = threading.Lock()

    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal busy, most
        with guard:
            busy += 1
            most = max(most, busy)
        try:
            return keep_picture(*args, **kwargs)
        finally:
            with guard:
                busy -= 1

    monkeypatch.setattr(keeping, "keep_picture", watched)
    at_once(*(add(alice, foxes, 10 * n, 10 * n + 1) for n in range(5)))
    assert most == 1


def test_no_transaction_is_open_while_a_picture_is_decoded_or_stored(
    alice: User, foxes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outside(real: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*args: Any, **kwargs: Any) -> Any:
            assert not connection.in_atomic_block
            return real(*args, **kwargs)

        return checked

    monkeypatch.setattr(intake, "keep", outside(intake.keep))
    monkeypatch.setattr(intake.storage, "save", outside(intake.storage.save))
    assert len(add(alice, foxes, 1, 2)().created) == 2
