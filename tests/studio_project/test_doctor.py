"""What `manage.py doctor` finds, and what it says to do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.core.management import call_command

from studio_project import health, site_marker
from studio_project.devices import DeviceError, DeviceInfo
from studio_project.management.commands import doctor

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "chosen_devices", lambda wanted: [DeviceInfo("cpu", "A", 1)])
    monkeypatch.setitem(health.CHECKS, "migrations", lambda: True)


def findings(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}


def test_a_site_without_workers_is_told_how_to_get_some(
    capsys: pytest.CaptureFixture[str],
) -> None:
    site_marker.write()
    call_command("doctor", "--json")
    found = findings(capsys)
    assert found["workers"]["state"] == "warning"
    assert "manage.py worker" in found["workers"]["cure"]
    others = {entry["state"] for name, entry in found.items() if name != "workers"}
    assert others == {"ok"}


def test_what_has_failed_has_a_cure_and_a_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    def no_torch(wanted: str) -> list[DeviceInfo]:
        raise DeviceError("torch could not list the devices: no torch here")

    def broken() -> bool:
        raise ConnectionError

    monkeypatch.setattr(doctor, "chosen_devices", no_torch)
    monkeypatch.setitem(health.CHECKS, "redis", broken)
    settings.STUDIO_MIN_FREE_BYTES = 2**60
    with pytest.raises(SystemExit) as ended:
        call_command("doctor")
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "failed  devices: torch could not list the devices: no torch here" in said
    assert "STUDIO_DEVICES" in said
    assert "failed  disk" in said
    assert "warning  Redis: does not answer" in said


def test_a_check_that_cannot_be_made_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise() -> str:
        raise KeyError("surprise")

    monkeypatch.setattr(doctor.site_marker, "refusal", surprise)
    with pytest.raises(SystemExit):
        call_command("doctor", "--json")
    found = findings(capsys)
    assert found["marker"]["state"] == "failed"
    assert found["workers"]["state"] == "warning"
