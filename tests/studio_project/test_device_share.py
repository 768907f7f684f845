"""How training and generation share one device."""

from __future__ import annotations

import threading

from studio_project.device_share import CPU_NICE, Device
from tests.studio_project.conftest import wait_until

GIBIBYTE = 1024**3


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


def test_a_lease_waits_for_room_and_is_free_inside_a_claim() -> None:
    device = Device("cuda:0", 16 * GIBIBYTE)
    take(device, "training", 12 * GIBIBYTE)
    with device.lease("training"):
        pass
    assert device.runs("training")
    got_it = threading.Event()

    def wait() -> None:
        with device.lease("generation", 8 * GIBIBYTE) as share:
            assert share.device == "cuda:0"
            got_it.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not device.runs("generation")
    device.give_back("training")
    wait_until(got_it.is_set)
    thread.join()
    assert not device.busy
