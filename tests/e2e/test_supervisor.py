"""`manage.py studio` heals what is killed, and other commands find what it runs."""

from __future__ import annotations

import base64
import json
import stat
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.e2e.site import PASSWORD, Site, poll

SERVICES = ("daphne", "manage.py worker", "manage.py sweep", "valkey-server")


def _others(site: Site, needle: str, before: psutil.Process) -> list[psutil.Process]:
    return [process for process in site.processes(needle) if process.pid != before.pid]


@pytest.fixture
def own_site(tmp_path: Path) -> Iterator[Site]:
    """A site that the test may break, and that ends with it whatever happens."""
    made = Site(tmp_path)
    yield made
    made.stop()


def _token(site: Site) -> str:
    """Make the administrator a token."""
    basic = base64.b64encode(f"root:{PASSWORD}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{site.url}/api/tokens/", b'{"name": "test"}', headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)["token"])


def test_whatever_is_killed_comes_back_and_the_site_ends_clean(own_site: Site) -> None:
    site = own_site
    site.start()
    address = site.folder / "data" / "redis.url"
    assert stat.S_IMODE(address.stat().st_mode) == 0o600
    password = address.read_text().partition("://:")[2].partition("@")[0]
    for needle in SERVICES:
        victim = poll(lambda needle=needle: site.processes(needle), seconds=60, what=needle)[0]
        assert password not in " ".join(victim.cmdline())
        victim.kill()
        poll(
            lambda needle=needle, victim=victim: _others(site, needle, victim),
            seconds=60,
            what=f"{needle} again",
        )
    poll(lambda: site.answers("/readyz"), seconds=60, what="the site is ready again")

    def all_is_well() -> bool:
        findings = json.loads(site.manage("doctor", "--json"))
        return {finding["state"] for finding in findings} == {"ok"}

    poll(all_is_well, seconds=60, what="the doctor finds nothing")
    bearer = {"Authorization": f"Bearer {_token(site)}"}
    url = site.url.replace("http", "ws", 1) + "/ws/events/"
    with connect(url, additional_headers=bearer) as socket:
        assert json.loads(socket.recv(timeout=30))["type"] == "connection.ready"
        site.stop()
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                socket.recv(timeout=10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012  # "service restart": come back later
    log = site.log.read_text()
    assert log.count("Studio is ready: " + site.url) == 1
    assert log.rstrip().endswith("stopped")
    assert "Traceback" not in log
    assert not address.exists()
