"""How training and generation share one device."""

from __future__ import annotations

import pytest

from studio_project import device_share
from studio_project.device_share import CPU_NICE, Device

GIBIBYTE = 1024**3


class Clock:
    """A clock that stands still until a test moves it."""

    now = 1000.0


def take(device: Device, kind: str, size: int) -> bool:
    """Claim a job of a size, if there is room for it."""

    def claim(free: int | None) -> int | None:
        return size if free is None or size <= free else None

    return device.take(kind, claim, lambda job: job) is not None


def test_on_a_cpu_both_run_with_the_threads_shared_out() -> None:
    device = Device("cpu", 4 * GIBIBYTE)
    assert take(device, "training", 3 * GIBIBYTE)
    assert take(device, "generation", 3 * GIBIBYTE)
    training, generation = device.share("training"), device.share("generation")
    assert training.threads >= generation.threads >= 1
    assert training.nice == CPU_NICE
    device.give_back("generation")
    assert device.share("training") == training  # a resumed training computes as before


def test_a_job_gets_as_many_devices_of_a_group_as_it_needs() -> None:
    group = Device("cuda:0+cuda:1+cuda:2", 16 * GIBIBYTE)
    assert group.share("generation").device == "cuda:0"
    assert group.share("training", 2).device == "cuda:0+cuda:1"
    assert group.share("training", 2).threads == max(1, group.share("training").threads // 2)
    assert not group.is_cpu
    assert Device("cpu+cpu").is_cpu


def test_on_a_gpu_only_what_fits_beside_the_other_is_claimed() -> None:
    device = Device("cuda:0", 16 * GIBIBYTE)
    assert take(device, "training", 12 * GIBIBYTE)
    assert device.free_bytes("generation") == 4 * GIBIBYTE
    assert not take(device, "generation", 6 * GIBIBYTE)
    assert take(device, "generation", 3 * GIBIBYTE)
    device.give_back("training")
    assert device.free_bytes("training") == 13 * GIBIBYTE
    assert device.share("training").nice == 0


def test_what_a_job_really_holds_counts_if_it_is_more_than_it_said() -> None:
    device = Device("cuda:0", 16 * GIBIBYTE)
    assert take(device, "training", 7 * GIBIBYTE)
    device.grow("training", 12 * GIBIBYTE)
    assert device.free_bytes("generation") == 4 * GIBIBYTE
    device.grow("training", 11 * GIBIBYTE)
    assert device.free_bytes("generation") == 4 * GIBIBYTE
    device.grow("training", 20 * GIBIBYTE)
    assert device.free_bytes("generation") == 0


def test_one_job_of_a_kind_runs_at_a_time() -> None:
    device = Device()
    assert take(device, "training", 1)
    assert not take(device, "training", 1)
    device.give_back("training")
    assert not device.busy
    assert take(device, "training", 1)


def test_what_is_merely_warm_is_dropped_when_it_does_not_fit() -> None:
    device = Device("cuda:0", 16 * GIBIBYTE)
    released: list[str] = []
    device.on_release("generation", lambda: released.append("generation"))
    take(device, "generation", 6 * GIBIBYTE)
    device.give_back("generation")
    take(device, "training", 8 * GIBIBYTE)
    device.give_back("training")
    assert released == []
    take(device, "training", 12 * GIBIBYTE)
    device.give_back("training")
    assert released == ["generation"]
    take(device, "training", 12 * GIBIBYTE)
    assert released == ["generation"]  # nothing is warm any more


def test_a_job_that_does_not_say_what_it_needs_gets_the_whole_device() -> None:
    device = Device("cuda:0", 16 * GIBIBYTE)
    released: list[str] = []
    device.on_release("generation", lambda: released.append("generation"))
    take(device, "generation", GIBIBYTE)
    device.give_back("generation")
    take(device, "training", 0)
    assert released == ["generation"]


def test_an_engine_that_fails_to_release_does_not_stop_the_training() -> None:
    device = Device("cuda:0", GIBIBYTE)

    def broken() -> None:
        raise OSError

    device.on_release("generation", broken)
    take(device, "generation", GIBIBYTE)
    device.give_back("generation")
    assert take(device, "training", GIBIBYTE)


# --- turns, where the device holds a training or pictures --------------------------------------
TURN = 15.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let the test say what time it is."""
    made = Clock()
    monkeypatch.setattr(device_share.time, "monotonic", lambda: made.now)
    return made


@pytest.fixture
def busy(clock: Clock) -> Device:
    """A GPU of 16 GiB that a training of 12 GiB has just got."""
    device = Device("cuda:0", 16 * GIBIBYTE, turn_seconds=TURN)
    assert take(device, "training", 12 * GIBIBYTE)
    return device


def test_a_training_keeps_its_turn_and_then_stands_aside_for_who_waits(
    busy: Device, clock: Clock
) -> None:
    assert not take(busy, "generation", 6 * GIBIBYTE)
    busy.want_room("generation", 6 * GIBIBYTE)
    clock.now += TURN - 1
    assert not busy.should_stand_aside("training")
    clock.now += 1
    assert busy.should_stand_aside("training")
    busy.stand_aside("training", GIBIBYTE)
    assert not busy.should_stand_aside("training")
    assert busy.free_bytes("generation") == 15 * GIBIBYTE
    assert take(busy, "generation", 6 * GIBIBYTE)
    assert busy.runs("training")


def test_nobody_stands_aside_for_nobody(busy: Device, clock: Clock) -> None:
    clock.now += TURN
    assert not busy.should_stand_aside("training")
    busy.want_room("generation", 6 * GIBIBYTE)
    busy.want_room("generation", 0)  # it was canceled
    assert not busy.should_stand_aside("training")
    assert not busy.should_stand_aside("generation")


def test_it_comes_back_when_no_more_pictures_are_asked_for(busy: Device, clock: Clock) -> None:
    released: list[str] = []
    busy.on_release("generation", lambda: released.append("generation"))
    busy.want_room("generation", 6 * GIBIBYTE)
    busy.stand_aside("training", GIBIBYTE)
    assert not busy.come_back("training")  # they have not come yet
    assert take(busy, "generation", 6 * GIBIBYTE)
    assert not busy.come_back("training")  # they are there
    busy.give_back("generation")
    assert not busy.come_back("training")  # the next one may be on its way
    clock.now += device_share.LINGER_SECONDS
    assert released == []
    assert busy.come_back("training")
    assert released == ["generation"]
    assert busy.free_bytes("generation") == 4 * GIBIBYTE


def test_pictures_without_end_get_two_turns_for_each_of_the_training(
    busy: Device, clock: Clock
) -> None:
    busy.want_room("generation", 6 * GIBIBYTE)
    busy.stand_aside("training", GIBIBYTE)
    assert take(busy, "generation", 6 * GIBIBYTE)
    clock.now += 5 * TURN  # it loads its model
    busy.give_back("generation")
    clock.now += 2 * TURN - 1
    assert take(busy, "generation", 6 * GIBIBYTE)
    clock.now += 2
    busy.give_back("generation")
    assert not take(busy, "generation", 6 * GIBIBYTE)
    busy.want_room("generation", 6 * GIBIBYTE)
    assert busy.come_back("training")
    assert not busy.should_stand_aside("training")
    clock.now += TURN
    assert busy.should_stand_aside("training")


def test_a_turn_that_nobody_takes_ends(busy: Device, clock: Clock) -> None:
    busy.want_room("generation", 6 * GIBIBYTE)
    busy.stand_aside("training", GIBIBYTE)
    clock.now += 2 * TURN - 1
    assert not busy.come_back("training")
    clock.now += 1
    assert busy.come_back("training")


def test_a_run_that_shall_be_kept_comes_back_after_the_picture_in_work(
    busy: Device, clock: Clock
) -> None:
    busy.want_room("generation", 6 * GIBIBYTE)
    busy.stand_aside("training", GIBIBYTE)
    assert take(busy, "generation", 6 * GIBIBYTE)
    busy.want_room("generation", 6 * GIBIBYTE)
    assert not busy.come_back("training", hurry=True)
    busy.give_back("generation")
    assert not take(busy, "generation", 6 * GIBIBYTE)
    assert busy.come_back("training", hurry=True)


def test_nobody_stands_aside_in_vain(busy: Device, clock: Clock) -> None:
    clock.now += TURN
    busy.want_room("generation", 15 * GIBIBYTE)
    assert busy.should_stand_aside("training")
    busy.stand_aside("training", 2 * GIBIBYTE)  # what it holds all the same is too much
    assert not take(busy, "generation", 15 * GIBIBYTE)
    assert busy.come_back("training")
    clock.now += TURN
    assert not busy.should_stand_aside("training")


def test_a_training_does_not_wait_for_the_end_of_a_stream_of_pictures(clock: Clock) -> None:
    device = Device("cuda:0", 16 * GIBIBYTE, turn_seconds=TURN)
    assert take(device, "generation", 6 * GIBIBYTE)
    device.want_room("training", 12 * GIBIBYTE)
    clock.now += 2 * TURN - 1
    device.give_back("generation")
    assert take(device, "generation", 6 * GIBIBYTE)
    clock.now += 1
    device.give_back("generation")
    assert device.free_bytes("generation") == 0
    device.want_room("generation", 6 * GIBIBYTE)  # it waits since now, the training for longer
    assert take(device, "training", 12 * GIBIBYTE)


def test_a_budget_is_kept_to_on_a_cpu_as_well() -> None:
    device = Device("cpu", 4 * GIBIBYTE, counts_memory=True)
    assert take(device, "training", 3 * GIBIBYTE)
    assert not take(device, "generation", 3 * GIBIBYTE)
    assert device.share("training").nice == CPU_NICE
