"""Watching over a child while it does a job: what both kinds of actors share.

The thread that claimed a job stays with it here: it hands on what the child says, renews the lease,
reads the control flags and the worker's own wish to end, and sees to it that the child stops. What
a message means and what is made of the result is the actor's business.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from django.conf import settings

from studio_project import jobs, storage
from studio_project.asides import Aside, ask_for_room
from studio_project.child_output import Message, merge_steps
from studio_project.child_process import Child
from studio_project.crash_streak import CrashStreak
from studio_project.device_share import Device
from studio_project.jobs import InvalidTransition, Job, JobLost
from studio_project.lease import LeaseKeeper
from studio_project.models import Worker
from studio_project.patience import patiently
from studio_project.seats import Seat, side_by_side
from studio_project.slices import Slice

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.25
DEAD_CHILD_SECONDS = 1.0
# How long a child may take to obey before its whole tree is killed.
OBEY_SECONDS = {"cancel": 10.0, "yield": 25.0, "pause": 120.0, "keep": 600.0}
FINAL_MESSAGES = {"done": "done", "error": "error", "stopped": "stopped"}

JobT = TypeVar("JobT", bound=Job)
OnMessage = Callable[[Message], None]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        kind: ``done``, ``error`` and ``stopped`` are the child's word and for the actor to act on;
            the ``how`` of one that stopped because its turn was over is ``slice``.
            ``crashed``: the child ended without a word and the job was queued again or failed.
            ``lost``: the job is somebody else's; nothing may be written.
        message: The child's last message.
    """

    kind: str
    message: Message = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Whether the job's row needs nothing more from the actor."""
        return self.kind in ("crashed", "lost")


# --- the worker that this process is ----------------------------------------------------------
class _Process:
    """The worker row, the device and the wish to end of this process."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.device = Device()
        self.stopping = threading.Event()
        self.streak = CrashStreak()
        self.warm: list[str] = []


_process = _Process()
_keepers: dict[UUID, LeaseKeeper] = {}


def serve_as(worker: Worker) -> None:
    """Makes this process the given worker."""
    _process.worker = worker
    _process.device = Device(
        worker.device,
        worker.memory_bytes,
        # A budget is kept to on a CPU as well.
        counts_memory=not worker.is_cpu or settings.STUDIO_DEVICE_MEMORY_MB > 0,
        turn_seconds=settings.STUDIO_TURN_SECONDS,
    )
    _process.stopping.clear()
    _process.streak.forget()


def current_worker() -> Worker:
    """The row of the worker that this process is.

    Raises:
        RuntimeError: This process is none.
    """
    if _process.worker is None:
        raise RuntimeError("this process is not a worker; start one with manage.py worker")
    return _process.worker


def current_device() -> Device:
    """The device of this process."""
    return _process.device


def stop_worker() -> None:
    """Asks every job of this process to give itself back, and takes no more."""
    _process.stopping.set()


def worker_stopping() -> bool:
    """Whether this process is about to end."""
    return _process.stopping.is_set()


def note_warm(model_names: list[str]) -> None:
    """Notes which models the engine keeps ready, on the worker's row and for its heartbeats."""
    _process.warm = sorted(model_names)
    Worker.objects.filter(pk=current_worker().pk).update(warm=_process.warm)


def warm_models() -> list[str]:
    """The models that the engine of this process keeps ready."""
    return _process.warm


# --- the loop of an actor -----------------------------------------------------------------------
def run_queue(job_class: type[JobT], run: Callable[[JobT], object]) -> None:
    """Claims jobs one after the other until there is none or this process shall end.

    Args:
        job_class: The kind of job.
        run: Does one, at the same time as others that were claimed with it. If it raises, the job
            fails as ``internal``; is tried again if the storage was away.
    """
    kind, device = job_class.queue_name, _process.device
    while not worker_stopping():
        worker = current_worker()
        worker.refresh_from_db()
        claimed = device.take(
            kind,
            lambda free: jobs.claim_together(job_class, worker, free) or None,  # noqa: B023
            lambda claimed: claimed[0].required_bytes,
        )
        if claimed is None:
            ask_for_room(job_class, worker, device)
            return
        try:
            side_by_side(claimed, lambda job: _run_one(job, run))
        finally:
            device.give_back(kind)
            _ring_others(job_class, device)


def _ring_others(job_class: type[Job], device: Device) -> None:
    """Wakes the other kinds on a device whose room they may have waited for."""
    if not device.counts_memory or worker_stopping():
        return
    for other in jobs.job_classes():
        if other is not job_class:
            jobs.ring(other.queue_name)


def _run_one(job: JobT, run: Callable[[JobT], object]) -> None:
    logger.info("%s starts (epoch %s)", job.label, job.epoch)
    started = time.monotonic()
    try:
        with LeaseKeeper(job) as keeper:
            _keepers[job.pk] = keeper
            run(job)
    except (JobLost, InvalidTransition):
        logger.warning("%s belongs to somebody else by now", job.label)
    except Exception as error:
        logger.exception("%s broke", job.label)
        try:
            _settle_broken(job, error)
        except InvalidTransition:
            logger.warning("%s belongs to somebody else by now", job.label)
    finally:
        _keepers.pop(job.pk, None)
    logger.info("%s left after %.1f s", job.label, time.monotonic() - started)


def _settle_broken(job: Job, error: Exception) -> None:
    if not storage.is_away(error):
        job.fail("internal", exception=type(error).__name__)
        return
    # Taken up again at once, a job would spend all its attempts on one short outage.
    _process.stopping.wait(settings.STUDIO_LEASE_SECONDS / 3)
    job.settle_crashed()


def supervise(
    job: Job,
    child: Child | Seat,
    request: dict[str, Any],
    *,
    on_message: OnMessage,
    stands_aside: bool = False,
) -> Outcome:
    """Lets a child do a job and stays with it until the end.

    ``step`` messages reach ``on_message`` at most four times a second and always the last; each
    carries under ``history`` all steps since the one before. A database or a storage that is away
    is waited for as long as the lease holds, and the message is then handed over again.

    Args:
        job: The claimed job.
        child: A running child, or a seat in one; an engine stays alive, a trainer ends itself.
        request: What it shall do.
        on_message: Called with every message but the last. ``JobLost`` from it ends the run.
        stands_aside: Whether the child can leave the device to others for a while.

    Returns:
        How the run ended. After ``crashed`` and ``lost`` the child is dead.
    """
    return _Supervision(job, child, on_message, stands_aside).run(request)


class _Supervision:
    """One run: the clocks that tick beside it and what was asked of the child."""

    def __init__(
        self, job: Job, child: Child | Seat, on_message: OnMessage, stands_aside: bool
    ) -> None:
        self.job, self.child, self.on_message = job, child, on_message
        now = time.monotonic()
        self.heard_at = self.renewed_at = self.looked_at = now
        self.progress_at = 0.0
        self.held: Message | None = None
        self.asked, self.asked_at = "", 0.0
        self.is_killed = False
        self.slice = Slice(job)
        self.aside = Aside(job.queue_name, child, _process.device, is_able=stands_aside)

    def run(self, request: dict[str, Any]) -> Outcome:
        """See ``supervise``."""
        try:
            self.child.start_log()
            self.child.send({"cmd": "run", "request": request})
            outcome = self._loop()
            self._hand_over_held()
            if not outcome.settled:
                self._patiently(lambda: self.job.renew_lease(log_tail=self._log_tail()))
        except (JobLost, InvalidTransition):
            logger.warning("%s is lost; its child is killed", self.job.label)
            self.child.kill()
            return Outcome("lost")
        except BaseException:
            self.child.kill()
            raise
        if outcome.kind == "crashed":
            outcome = self._settle_crash(outcome)
        else:
            _process.streak.note(_process.worker, self.job, crashed=False)
        return outcome

    def _loop(self) -> Outcome:
        while True:
            message = self.child.messages.get(self._pause())
            now = time.monotonic()
            if message is not None:
                self.heard_at = now
                if message["type"] in FINAL_MESSAGES:
                    return self._final(message)
                self._take(message, now)
            self._hand_over_held(only_if_due=True)
            self._tick(now)
            self._insist(now)
            ended = self._ended(now) if message is None else None
            if ended is not None:
                return ended

    def _final(self, message: Message) -> Outcome:
        if self.slice.is_over and message.get("how") == "yield" and not worker_stopping():
            message = {**message, "how": "slice"}
        return Outcome(FINAL_MESSAGES[message["type"]], message)

    def _pause(self) -> float:
        """How long nothing needs to be done unless the child speaks."""
        return PROGRESS_SECONDS if self.held else min(0.25, settings.STUDIO_CONTROL_SECONDS)

    # --- what the child says -----------------------------------------------------------------
    def _take(self, message: Message, now: float) -> None:
        if message["type"] == "step":
            self.slice.stepped()
            self.held = merge_steps(self.held, message) if self.held else message
        else:
            self._hand_over_held()
            if message["type"] == "back":
                self.slice.skip(message["seconds"])
            if self.aside.heard(message):
                _ring_others(type(self.job), _process.device)
            self._patiently(lambda: self.on_message(message))

    def _hand_over_held(self, *, only_if_due: bool = False) -> None:
        """Hands the latest progress to the actor; its turn comes four times a second."""
        due = time.monotonic() - self.progress_at >= PROGRESS_SECONDS
        if self.held is None or (only_if_due and not due):
            return
        message, self.held = self.held, None
        self.progress_at = time.monotonic()
        self._patiently(lambda: self.on_message(message))

    # --- the clocks --------------------------------------------------------------------------
    def _tick(self, now: float) -> None:
        keeper = _keepers.get(self.job.pk)
        if keeper is not None:
            keeper.seen()
        if now - self.renewed_at >= settings.STUDIO_HEARTBEAT_SECONDS:
            self._patiently(lambda: self.job.renew_lease(log_tail=self._log_tail()))
            self.renewed_at = now
            self._patiently(lambda: self.slice.look(current_worker(), current_device()))
        if now - self.looked_at >= settings.STUDIO_CONTROL_SECONDS:
            self.looked_at = now
            self._patiently(self._read_flags)
            if self.aside.look(self.asked):
                self.heard_at = now  # it was silent because it stood aside

    def _read_flags(self) -> None:
        mine = type(self.job).objects.running().filter(pk=self.job.pk, epoch=self.job.epoch)
        flags = mine.values_list("cancel_requested", "stop_requested").first()
        if flags is None:
            raise JobLost(self.job.label)
        cancel, stop = flags
        leaves = worker_stopping() or self.slice.is_over
        wish = "cancel" if cancel else stop or ("yield" if leaves else "")
        if wish and wish != self.asked:
            logger.info("%s is asked to stop (%s)", self.job.label, wish)
            self.asked, self.asked_at = wish, time.monotonic()
            self.child.send({"cmd": "stop", "how": wish})

    def _patiently(self, action: Callable[[], None]) -> None:
        """Does something for which database or storage may be away for as long as the lease holds.

        Raises:
            JobLost: The lease has run out without the database.
            Exception: The storage is away for longer.
        """
        deadline = self.renewed_at + settings.STUDIO_LEASE_SECONDS
        if not patiently(action, label=self.job.label, deadline=deadline):
            raise JobLost(self.job.label)

    # --- ends that the child does not announce -----------------------------------------------
    def _insist(self, now: float) -> None:
        """Kills a child that does not obey, also one that talks on; what it said still counts."""
        late = self.asked and now - self.asked_at > OBEY_SECONDS[self.asked]
        if late and not self.is_killed:
            logger.warning("%s: its child did not obey %s", self.job.label, self.asked)
            self.is_killed = True
            self.child.kill()

    def _ended(self, now: float) -> Outcome | None:
        if self.child.messages.finished or (
            not self.child.alive and now - self.heard_at > DEAD_CHILD_SECONDS
        ):
            status = self.child.kill()
            logger.warning("%s: its child ended with status %s", self.job.label, status)
            return self._without_word("disobeyed" if self.is_killed else "exit", status)
        is_silent = now - self.heard_at > settings.STUDIO_CHILD_SILENCE_SECONDS
        if is_silent and not self.aside.is_aside:
            logger.warning("%s: its child has been silent for too long", self.job.label)
            self.child.kill()
            return self._without_word("silent", None)
        return None

    def _without_word(self, reason: str, status: int | None) -> Outcome:
        """A child that died while it was to stop has stopped; else it has crashed."""
        if self.asked in ("cancel", "yield", "pause"):
            return self._final({"type": "stopped", "how": self.asked, "reason": reason})
        return Outcome("crashed", {"type": "crashed", "reason": reason, "status": status})

    def _settle_crash(self, outcome: Outcome) -> Outcome:
        if not self.child.is_shared:
            _process.streak.note(_process.worker, self.job, crashed=True)
        try:
            self.job.settle_crashed(log_tail=self._log_tail())
        except InvalidTransition:
            return Outcome("lost", outcome.message)
        return outcome

    def _log_tail(self) -> str:
        return self.child.log_tail()[-jobs.LOG_TAIL_CHARACTERS :]


def forget_crashes() -> None:
    """Begins to count anew; an administrator has released the worker."""
    _process.streak.forget()
