"""Run the whole site in one terminal: Redis, web, workers, sweeper."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import redis
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser

from studio_project import redis_server, site_marker
from studio_project.accounts import ensure_first_administrator
from studio_project.devices import DeviceError, DeviceInfo, chosen_devices
from studio_project.services import Log, Service, Services

EXIT_ALREADY_RUNNING = 3
READY_SECONDS = 120.0
POLL_SECONDS = 0.1
WATCH_SECONDS = 0.25


class Stopped(Exception):
    """Ctrl-C or TERM came while the site was starting."""


class Command(BaseCommand):
    """Everything under one roof; it ends when it is told to, and leaves no process behind."""

    help = (
        "Run the whole site in one terminal: a Redis-compatible server if none is given, "
        "migrations, the web server, one worker per device and the sweeper."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        """See ``BaseCommand``."""
        parser.add_argument(
            "--prepare",
            action="store_true",
            help="only bring the database and the models up to date, then end",
        )

    def handle(self, *args: object, **options: object) -> None:
        """See ``BaseCommand``."""
        if options["prepare"]:
            self._prepare()
            return
        self.hurry, self.ended = threading.Event(), threading.Event()
        with one_instance(settings.DATA_DIR):
            require_free_port(settings.STUDIO_HOST, settings.STUDIO_PORT)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as it is under nohup
                signal.signal(signal.SIGHUP, self._on_signal)
            self.log = Log()
            self.services = Services(self.log, settings.BASE_DIR)
            self.env = {**os.environ, "PYTHONUNBUFFERED": "1"}
            self.env["DJANGO_SETTINGS_MODULE"] = os.environ["DJANGO_SETTINGS_MODULE"]
            self.env[site_marker.VARIABLE] = site_marker.code_version()
            try:
                self._start()
                while not self.ended.wait(WATCH_SECONDS):
                    self.services.watch()
            except Stopped:
                pass
            finally:
                self._stop()

    def _on_signal(self, number: int, frame: object) -> None:
        if self.ended.is_set():
            self.hurry.set()
        self.ended.set()

    # --- preparing ---------------------------------------------------------------------------
    def _prepare(self) -> None:
        """Tables, first administrator, models and the marker by which workers know the site."""
        Path(settings.STATIC_ROOT).mkdir(parents=True, exist_ok=True)
        call_command("migrate", interactive=False, verbosity=0)
        call_command("createcachetable", verbosity=0)
        administrator = ensure_first_administrator()
        if administrator is not None:
            name, password = administrator
            self.stdout.write(
                f"The first administrator is {name} with the password {password}\n"
                "It is shown only now: keep it, or change it after signing in."
            )
        call_command("seed_models", verbosity=0)
        site_marker.write()

    # --- starting ----------------------------------------------------------------------------
    def _start(self) -> None:
        """Starts everything in order, each when what it needs is ready."""
        with ThreadPoolExecutor(1) as pool:
            # torch takes seconds to say what devices there are; meanwhile the rest goes on.
            devices = pool.submit(chosen_devices, settings.STUDIO_DEVICES)
            self._start_redis()
            self._run_once("setup", "studio", "--prepare")
            web = self._start_web()
            self._start_workers(devices)
        self.services.add(self._manage("sweeper", "sweep", "--forever"))
        self._wait("the web server", web_is_ready, web)
        self.log.write("studio", f"Studio is ready: {settings.STUDIO_BASE_URL}/")

    def _manage(self, name: str, *arguments: str, stop_seconds: float = 20.0) -> Service:
        command = [sys.executable, str(settings.BASE_DIR / "manage.py"), *arguments]
        return Service(name, command, self.env, stop_seconds)

    def _start_redis(self) -> None:
        url = os.environ.get("STUDIO_REDIS_URL", "")
        service = None
        if not url:
            try:
                server = redis_server.configure(settings.DATA_DIR)
            except redis_server.NoServerError as error:
                raise CommandError(str(error)) from error
            url = self.env["STUDIO_REDIS_URL"] = server.url
            # Its advice on the kernel is for servers with much more to keep in memory.
            unsaid = ("Memory overcommit", "signal-handler", "Transparent Huge Pages")
            service = self.services.add(Service("redis", server.command, self.env, unsaid=unsaid))
        client = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
        self._wait("Redis", lambda: bool(client.ping()), service)
        client.close()

    def _run_once(self, name: str, *arguments: str) -> None:
        service = self._manage(name, *arguments)
        service.start(self.log, settings.BASE_DIR)
        try:
            while service.alive:
                self._pause()
        finally:
            service.signal(signal.SIGKILL)
        if service.process is not None and service.process.wait():
            raise CommandError("the site could not be prepared; the lines above say why")

    def _start_web(self) -> Service:
        command = [sys.executable, "-m", "daphne", "-b", settings.STUDIO_HOST]
        if settings.STUDIO_BEHIND_PROXY:
            command.append("--proxy-headers")
        command += ["-p", str(settings.STUDIO_PORT), "-v", "0", "studio_project.asgi:application"]
        return self.services.add(Service("web", command, self.env))

    def _start_workers(self, devices: Future[list[DeviceInfo]]) -> None:
        while not devices.done():
            self._pause()
        try:
            found = devices.result()
        except DeviceError as error:
            raise CommandError(
                f"{error}. STUDIO_DEVICES=none starts the site without workers."
            ) from error
        if not found:
            self.log.write("studio", "no workers on this machine (STUDIO_DEVICES is none)")
        for info in found:
            name = "worker" if len(found) == 1 else info.device
            self.log.write("studio", f"{name} works on {info.device} ({info.name})")
            # It gives back what it is doing, which takes half a minute at most.
            self.services.add(
                self._manage(name, "worker", "--device", info.device, stop_seconds=40.0)
            )

    def _wait(self, what: str, ready: Callable[[], bool], service: Service | None) -> None:
        """Waits until something answers.

        Raises:
            CommandError: It did not in time, or its process ended three times meanwhile.
            Stopped: The site shall end.
        """
        deadline = time.monotonic() + READY_SECONDS
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException, redis.RedisError):
                if ready():
                    return
            if time.monotonic() > deadline or (service is not None and service.failures >= 3):
                raise CommandError(f"{what} did not become ready; the lines above say why")
            self.services.watch()
            self._pause()

    def _pause(self) -> None:
        if self.ended.wait(POLL_SECONDS):
            raise Stopped

    # --- stopping ----------------------------------------------------------------------------
    def _stop(self) -> None:
        """Stops everything; Redis last, for the others still speak to it."""
        self.log.write("studio", "stopping; once more Ctrl-C to hurry")
        names = [service.name for service in self.services if service.name != "redis"]
        self.services.stop(names, hurry=self.hurry)
        self.services.stop(hurry=self.hurry)
        if "STUDIO_REDIS_URL" not in os.environ:
            redis_server.address_file(settings.DATA_DIR).unlink(missing_ok=True)
        self.log.write("studio", "stopped")


@contextlib.contextmanager
def one_instance(data_dir: Path) -> Iterator[None]:
    """Holds the lock of a data directory as long as the site runs.

    Raises:
        CommandError: Another site runs on the same data.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "studio.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise CommandError(
                f"Studio already runs on the data in {data_dir} ({file.read().strip()}). Stop it "
                "first, or set STUDIO_DATA_DIR to another folder and STUDIO_PORT to another port.",
                returncode=EXIT_ALREADY_RUNNING,
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()}, {settings.STUDIO_BASE_URL}")
        file.flush()
        yield
        file.truncate(0)


def require_free_port(host: str, port: int) -> None:
    """Checks that the web server will be able to listen.

    Raises:
        CommandError: Something else does already, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CommandError(
                f"Nothing can listen at {host}:{port} ({error.strerror}). Set STUDIO_PORT (or "
                "STUDIO_HOST) to something else."
            ) from error


def web_is_ready() -> bool:
    """Whether ``/readyz`` answers well."""
    anywhere = settings.STUDIO_HOST in ("0.0.0.0", "::")  # noqa: S104  # nosec B104
    host = "127.0.0.1" if anywhere else settings.STUDIO_HOST
    connection = http.client.HTTPConnection(host, settings.STUDIO_PORT, timeout=10)
    try:
        base = urlsplit(settings.STUDIO_BASE_URL)
        headers = {"Host": base.netloc, "X-Forwarded-Proto": base.scheme}
        connection.request("GET", "/readyz", headers=headers)
        # A site behind a proxy sends plain HTTP to its https address: it answers all the same.
        return connection.getresponse().status in (200, 301)
    finally:
        connection.close()
