"""Which devices a machine has, without this process importing torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from studio_project import devices
from studio_project.devices import DeviceError, DeviceInfo, chosen_devices

GPUS = [DeviceInfo("cuda:0", "A", 10), DeviceInfo("cuda:1", "B", 20)]


@pytest.fixture
def _gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "list_devices", lambda: GPUS)


@pytest.mark.usefixtures("_gpus")
def test_which_devices_a_setting_names() -> None:
    assert chosen_devices("auto") == GPUS
    assert chosen_devices("none") == chosen_devices("") == []
    assert chosen_devices("cuda:1") == GPUS[1:]
    assert chosen_devices("cuda") == GPUS[:1]
    assert [info.device for info in chosen_devices("cuda:0, cpu")] == ["cuda:0", "cpu"]
    with pytest.raises(DeviceError, match=r"cuda:7.*cuda:0, cuda:1"):
        chosen_devices("cuda:7")


@pytest.mark.usefixtures("_gpus")
def test_a_group_of_devices_has_one_worker() -> None:
    assert chosen_devices("cuda:0 + cuda:1") == [DeviceInfo("cuda:0+cuda:1", "2 × A + B", 10)]
    names = [info.device for info in chosen_devices("cuda+cuda:1, cpu")]
    assert names == ["cuda:0+cuda:1", "cpu"]
    for twice in ("cuda:0+cuda:0", "cuda:0+cuda:1,cuda:0"):
        with pytest.raises(DeviceError, match="cuda:0 is named twice"):
            chosen_devices(twice)
    with pytest.raises(DeviceError, match="no device cuda:2"):
        chosen_devices("cuda:1+cuda:2")


def test_a_cpu_needs_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> list[DeviceInfo]:
        raise AssertionError

    monkeypatch.setattr(devices, "list_devices", never)
    (info,) = chosen_devices("cpu")
    assert info.device == "cpu"
    assert info.memory_bytes > 0
    assert info.name
    (two,) = chosen_devices("cpu+cpu")
    assert two == DeviceInfo("cpu+cpu", f"2 × {info.name}", info.memory_bytes)


def test_a_child_lists_them() -> None:
    found = devices.list_devices()
    assert found
    assert {type(info) for info in found} == {DeviceInfo}


def test_what_the_child_said_is_told_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: no torch here\n")
    monkeypatch.setattr(devices.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DeviceError, match="no torch here"):
        devices.list_devices()

    def slow(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("python", 120)

    monkeypatch.setattr(devices.subprocess, "run", slow)
    with pytest.raises(DeviceError, match="120 seconds"):
        devices.list_devices()


def test_the_worker_and_its_foundations_do_not_import_torch() -> None:
    script = (
        "import os, sys; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings';"
        "import django; django.setup();"
        "import studio_project.worker_process, studio_project.supervision, studio_project.devices;"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
