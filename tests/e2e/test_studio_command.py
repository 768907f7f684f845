"""`manage.py studio`: one instance, and nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.e2e.site import ROOT, Site, poll


def test_a_second_start_on_the_same_data_is_refused(site: Site) -> None:
    environment = {**site.environment, "STUDIO_PORT": "0"}
    environment.pop("STUDIO_BASE_URL")
    second = subprocess.run(
        [sys.executable, "manage.py", "studio"],
        cwd=ROOT,
        env={**environment, "STUDIO_PORT": str(site.port)},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert second.returncode != 0
    assert "already" in second.stdout + second.stderr
    assert site.answers("/readyz")


def _family(site: Site) -> list[psutil.Process]:
    assert site.process is not None
    return psutil.Process(site.process.pid).children(recursive=True)


def test_no_process_outlives_the_site(tmp_path: Path) -> None:
    own = Site(tmp_path)
    for how in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        own.start()
        assert own.process is not None
        family = _family(own)
        assert len(family) >= 3
        own.process.send_signal(how)
        own.process.wait(timeout=60)
        poll(
            lambda family=family: (
                not any(
                    process.is_running() and process.status() != psutil.STATUS_ZOMBIE
                    for process in family
                )
            ),
            seconds=60,
            what=f"every process gone after {how.name}",
        )
