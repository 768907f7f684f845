"""One worker: a device, its row, its heartbeat, and the threads that hear the doorbells.

What an actor does with a job is not told here. The row is how the site knows of the worker; losing
the database or Redis for a while only makes it wait.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dramatiq
import psutil
from django.conf import settings
from django.db import (
    DatabaseError,
    IntegrityError,
    close_old_connections,
    connections,
    transaction,
)
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils.module_loading import autodiscover_modules
from dramatiq.common import q_name

from studio_project import child_process, jobs, site_marker, supervision
from studio_project.asides import ask_for_room
from studio_project.devices import DeviceInfo
from studio_project.jobs.workers import alive_since
from studio_project.models import Worker

logger = logging.getLogger(__name__)

QUEUES = ("training", "generation", "default")
# How long an idle consumer sleeps between two looks at its queue.
IDLE_MS = 20
SHUTDOWN_SECONDS = 30


class Listener(dramatiq.Worker):
    """A Dramatiq worker with one thread and one message per queue, and without delay queues."""

    def __init__(self, broker: dramatiq.Broker, queues: set[str]) -> None:
        super().__init__(broker, queues=queues, worker_timeout=IDLE_MS, worker_threads=len(queues))
        # One message in hand per queue, the running one included: a second bell must be left to
        # another worker.
        self.queue_prefetch = 1

    def _add_consumer(self, queue_name: str, *, delay: bool = False) -> None:
        if queue_name == q_name(queue_name):
            super()._add_consumer(queue_name)

    def listen(self, wanted: bool) -> None:
        """Hears the bells or leaves them to others; jobs that run go on."""
        if wanted and not self.workers:
            self.start()
        for consumer in self.consumers.values():
            if wanted and consumer.paused:
                consumer.resume()
            elif not wanted and not consumer.paused:
                consumer.pause()


class WorkerProcess:
    """This process as a worker.

    Args:
        info: The device that it owns.
        queues: The queues that it serves.
    """

    def __init__(self, info: DeviceInfo, queues: tuple[str, ...] = QUEUES) -> None:
        self.info = info
        self.queues = queues
        self.row = self._register()
        self._ended = threading.Event()

    # --- the row -----------------------------------------------------------------------------
    def _register(self) -> Worker:
        """Takes a row: the wanted name's, or a numbered one's if a living process goes by it."""
        host, number = socket.gethostname()[:150], 1
        wanted = name = f"{host}-{self.info.device}"
        while (row := _take_row(name, self._fields(host))) is None:
            number += 1
            name = f"{wanted}-{number}"
        return row

    def _fields(self, host: str) -> dict[str, Any]:
        return {
            "host": host,
            "machine": _machine(),
            "pid": os.getpid(),
            "device": self.info.device,
            "device_name": self.info.name,
            "memory_bytes": self.info.memory_bytes,
            "queues": list(self.queues),
            "code_version": site_marker.code_version(),
            "started_at": Now(),
            "last_seen_at": Now(),
            "state": Worker.State.STARTING,
            "refusal": "",
            "warm": [],
            "crash_streak": 0,
            "quarantined": False,
        }

    def _mine(self) -> QuerySet[Worker]:
        """This process's row; none if it was deleted or is somebody else's by now."""
        return Worker.objects.filter(pk=self.row.pk, pid=os.getpid(), machine=_machine())

    # --- running -----------------------------------------------------------------------------
    def run(self) -> int:
        """Works until TERM or Ctrl-C, gives back what it was doing, returns the exit status."""
        supervision.serve_as(self.row)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        autodiscover_modules("actors")
        listener = Listener(dramatiq.get_broker(), set(self.queues))
        logger.info("worker %s on %s is up", self.row.name, self.info.name or self.info.device)
        try:
            while True:
                self._beat(listener)
                if self._ended.wait(settings.STUDIO_HEARTBEAT_SECONDS):
                    return 0
        finally:
            self._shut_down(listener)

    def _on_signal(self, number: int, frame: object) -> None:
        if self._ended.is_set():
            child_process.stop_children(0)
            os._exit(1)
        supervision.stop_worker()
        self._ended.set()

    def _beat(self, listener: Listener) -> None:
        """Says that this worker lives, hears whether it may work, and looks for forgotten jobs."""
        try:
            refused = bool(self._write_beat(site_marker.refusal()))
            listener.listen(not refused)
            if not refused:
                self._look_for_jobs()
        except DatabaseError as error:
            logger.warning("heartbeat: the database is away: %s", error)
            connections.close_all()

    def _write_beat(self, refusal: str) -> str:
        """Writes the row; returns why the worker takes no jobs, empty if it does."""
        close_old_connections()
        quarantined = Worker.objects.filter(pk=self.row.pk).values_list("quarantined", flat=True)
        if True in quarantined:
            refusal = refusal or "quarantined"
        elif self.row.quarantined:
            supervision.forget_crashes()
        if refusal != self.row.refusal:
            logger.warning("takes no jobs: %s" if refusal else "takes jobs again%s", refusal)
        state = Worker.State.BUSY if supervision.current_device().busy else Worker.State.IDLE
        written = self._mine().update(
            last_seen_at=Now(),
            state=Worker.State.REFUSING if refusal else state,
            refusal=refusal,
            warm=supervision.warm_models(),
        )
        if not written:
            # Somebody deleted or took the row: this process is a worker all the same.
            self.row.pk = self._register().pk
        self.row.refresh_from_db()
        return refusal

    def _look_for_jobs(self) -> None:
        """Does what a doorbell would, in case one was lost or Redis is away."""
        actors, device = {a.queue_name: a for a in self._actors()}, supervision.current_device()
        for job_class in jobs.job_classes():
            actor = actors.get(job_class.queue_name)
            if actor is None or device.runs(job_class.queue_name):
                continue
            free = device.free_bytes(job_class.queue_name)
            if jobs.claimable(job_class, self.row, free).exists():
                threading.Thread(target=_answer, args=(actor.fn,), daemon=True).start()
            else:
                ask_for_room(job_class, self.row, device)

    def _actors(self) -> list[dramatiq.Actor]:
        """The actors that answer to doorbells of the queues that this worker serves."""
        broker = dramatiq.get_broker()
        names = {job_class.queue_name for job_class in jobs.job_classes()} & set(self.queues)
        return [actor for actor in broker.actors.values() if actor.queue_name in names]

    def _shut_down(self, listener: Listener) -> None:
        logger.info("worker %s is stopping", self.row.name)
        supervision.stop_worker()
        listener.stop(timeout=SHUTDOWN_SECONDS * 1000)
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        while supervision.current_device().busy and time.monotonic() < deadline:
            time.sleep(0.05)
        child_process.stop_children(1.0)
        try:
            self._mine().update(state=Worker.State.STOPPED, warm=[], last_seen_at=Now())
        except DatabaseError as error:
            logger.warning("the row of this worker was not updated: %s", error)


def _answer(fn: Callable[[], object]) -> None:
    try:
        fn()
    except Exception:
        logger.exception("an actor broke")
    finally:
        connections.close_all()


def _take_row(name: str, fields: dict[str, Any]) -> Worker | None:
    """Makes the row of a name, or takes over that of a dead process; ``None`` if it is taken."""
    row = Worker.objects.filter(name=name).first()
    if row is None:
        try:
            with transaction.atomic():
                row = Worker.objects.create(name=name, **fields)
        except IntegrityError:  # another process that starts was faster
            return None
    elif _is_living(row):
        return None
    else:
        # Of several that start at once, the first changes what the others look for.
        same = Worker.objects.filter(pk=row.pk, pid=row.pid, machine=row.machine)
        if not same.update(**fields):
            return None
        _requeue_what_died_with(row)
    row.refresh_from_db()
    return row


def _is_living(worker: Worker) -> bool:
    """Whether the process of a row runs and is not this one.

    Here the system knows. Of another machine, or another container of the same name, only its
    heartbeat tells.
    """
    if worker.state == Worker.State.STOPPED:
        return False
    if worker.machine != _machine():
        return worker.last_seen_at >= alive_since()
    try:
        return worker.pid != os.getpid() and "worker" in psutil.Process(worker.pid).cmdline()
    except psutil.Error:
        return False


@functools.cache
def _machine() -> str:
    """What tells this system, and this container, from others: process numbers mean nothing there.

    Where there is no ``/proc``, there are no containers either.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return f"{uuid.getnode():x}"


def _requeue_what_died_with(before: Worker) -> None:
    """Takes up at once what the former process of this row left, instead of at its lease's end."""
    for job_class in jobs.job_classes():
        for job in job_class.objects.running().filter(worker=before):
            try:
                job.settle_crashed()
                logger.warning("%s was left by a worker that died: now %s", job.label, job.status)
            except jobs.InvalidTransition:
                continue
