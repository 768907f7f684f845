"""The abstract job: its state, the legal transitions between states, and what each one writes.

A transition is one guarded ``UPDATE``; the row that it hits is the proof that nobody was faster.
Which job a worker gets is decided in ``claiming``, what happens to the forgotten in ``sweeping``.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from django.conf import settings
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.translation import gettext_lazy

from studio_project import events
from studio_project.jobs.choosing import Candidate
from studio_project.jobs.errors import ErrorText, describe_error
from studio_project.jobs.numbers import all_finite, finite
from studio_project.jobs.ordering import queue_order
from studio_project.jobs.querysets import JobQuerySet
from studio_project.jobs.registry import announce_queue, ring
from studio_project.jobs.workers import waiting_reason

if TYPE_CHECKING:
    from studio_project.models import Worker

MAX_CRASHES = 3
LOG_TAIL_CHARACTERS = 32_000


class InvalidTransition(Exception):
    """The job is not in a state from which this step is possible (any more)."""


class JobLost(Exception):
    """The job belongs to somebody else by now: kill the child and write nothing more."""


class Job(models.Model):
    """Work for a worker. Concrete classes add what is to be computed and what came out.

    ``epoch`` rises with every claim: what a worker writes names the epoch of its own claim, so a
    worker that was given up cannot write any more. ``version`` rises with everything a page may
    show. ``turn_at`` is the start that counts against its owner when turns are given out; a job
    that lost its worker gets it back. ``passed_over_at`` is when another first went before it out
    of turn (see ``choosing``).
    """

    class Status(models.TextChoices):
        """Where a job stands; the last three are final."""

        PENDING = "pending", gettext_lazy("Not started")
        QUEUED = "queued", gettext_lazy("Waiting")
        RUNNING = "running", gettext_lazy("Running")
        PAUSED = "paused", gettext_lazy("Paused")
        COMPLETED = "completed", gettext_lazy("Completed")
        FAILED = "failed", gettext_lazy("Failed")
        CANCELED = "canceled", gettext_lazy("Canceled")

    class WaitingReason(models.TextChoices):
        """Why a queued job waits."""

        BEHIND_JOBS = "behind_jobs", gettext_lazy("Other jobs come first")
        DEVICE_BUSY = "device_busy", gettext_lazy("The device has no room for it at the moment")
        NO_WORKER = "no_worker", gettext_lazy("No worker that could do it is running")
        QUEUE_PAUSED = "queue_paused", gettext_lazy("The queue is paused")

    FINAL: ClassVar[frozenset[str]] = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELED})
    # To each state, the states one may come from.
    SOURCES: ClassVar[dict[str, frozenset[str]]] = {
        Status.QUEUED: frozenset({Status.PENDING, Status.PAUSED, Status.RUNNING}),
        Status.RUNNING: frozenset({Status.QUEUED}),
        Status.PAUSED: frozenset({Status.RUNNING}),
        Status.COMPLETED: frozenset({Status.RUNNING}),
        Status.FAILED: frozenset({Status.PENDING, Status.QUEUED, Status.RUNNING, Status.PAUSED}),
        Status.CANCELED: frozenset({Status.PENDING, Status.QUEUED, Status.RUNNING, Status.PAUSED}),
    }
    queue_name: ClassVar[str]
    noun: ClassVar[str]
    # Rows that ``candidate`` looks at, read along with the job.
    candidate_rows: ClassVar[tuple[str, ...]] = ()

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PENDING)
    phase = models.CharField(max_length=20, blank=True, default="")
    waiting_reason = models.CharField(
        max_length=20, blank=True, default="", choices=WaitingReason.choices
    )
    priority = models.IntegerField(default=0)
    progress = models.FloatField(default=0.0)
    step = models.PositiveIntegerField(default=0)
    total_steps = models.PositiveIntegerField(default=0)
    eta_seconds = models.PositiveIntegerField(null=True, blank=True)
    error_code = models.CharField(max_length=40, blank=True, default="")
    error_params = models.JSONField(default=dict, blank=True, encoder=DjangoJSONEncoder)
    epoch = models.PositiveIntegerField(default=0)
    version = models.PositiveIntegerField(default=1)
    crash_count = models.PositiveIntegerField(default=0)
    crash_step = models.PositiveIntegerField(default=0)
    worker = models.ForeignKey("studio.Worker", null=True, blank=True, on_delete=models.SET_NULL)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    cancel_requested = models.BooleanField(default=False)
    stop_requested = models.CharField(max_length=10, blank=True, default="")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    queued_at = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    turn_at = models.DateTimeField(null=True, blank=True, editable=False)
    passed_over_at = models.DateTimeField(null=True, blank=True, editable=False)
    finished_at = models.DateTimeField(null=True, blank=True)
    required_bytes = models.PositiveBigIntegerField(default=0)
    required_devices = models.PositiveSmallIntegerField(default=1)
    log_tail = models.TextField(blank=True, default="")

    objects = JobQuerySet.as_manager()

    class Meta:
        """No table of its own."""

        abstract = True

    def __str__(self) -> str:
        return self.label

    # --- what a concrete class may add ------------------------------------------------------
    def event_fields(self) -> dict[str, Any]:
        """A few scalars that this kind of job adds to its event."""
        return {}

    @classmethod
    def slice_seconds(cls) -> float:
        """How long a run may last while others wait; 0 for any time."""
        return 0.0

    def candidate(self, worker: Worker, free_bytes: int | None) -> Candidate:
        """What a worker weighs that might start the job now; see ``choosing``."""
        return Candidate(self.pk, self.passed_over_at)

    def checkpoint_step(self) -> int:
        """The step from which the job would go on after a crash; 0 starts it anew."""
        return 0

    # --- reading ----------------------------------------------------------------------------
    @property
    def label(self) -> str:
        """What the log calls the job: never its title or prompt."""
        return f"{self.noun} {self.pk}"

    @property
    def is_final(self) -> bool:
        """Whether nothing will happen to the job any more."""
        return self.status in self.FINAL

    def error(self, language: str | None = None) -> ErrorText | None:
        """What went wrong, in a reader's language; ``None`` if nothing did."""
        return describe_error(self.error_code, self.error_params, language, job=self.id)

    def position(self) -> int | None:
        """The place in the queue, the next job being 1; ``None`` for a job that does not wait."""
        if self.status != self.Status.QUEUED:
            return None
        order = queue_order(type(self))
        return order.index(self.pk) + 1 if self.pk in order else None

    def as_event(self) -> dict[str, Any]:
        """The scalars that travel when the job changed."""
        return {
            "type": f"{self.noun}.changed",
            "id": str(self.id),
            "version": self.version,
            "ts": timezone.now().isoformat(),
            "status": str(self.status),
            "phase": self.phase,
            "waiting_reason": str(self.waiting_reason),
            "progress": finite(self.progress) or 0.0,
            "step": self.step,
            "total_steps": self.total_steps,
            "eta_seconds": self.eta_seconds,
            **{name: finite(value) for name, value in self.event_fields().items()},
        }

    def announce(self) -> None:
        """Tells the owner's pages how the job stands, and everybody's how long the queue is."""
        events.publish(self.as_event(), users=[self.owner_id])

    # --- transitions ------------------------------------------------------------------------
    def move(
        self,
        to: str,
        *,
        from_: Collection[str],
        epoch: int | None = None,
        only: models.Q | None = None,
        **fields: Any,
    ) -> None:
        """Takes the job to another state, if it is still where the caller believes.

        Args:
            to: The new state.
            from_: The states that the job may be in.
            epoch: The caller's claim; required of whoever speaks for a worker.
            only: A further condition on the row.
            **fields: Further columns to write in the same statement.

        Raises:
            ValueError: No rule leads from one of ``from_`` to ``to``.
            InvalidTransition: The job is elsewhere by now, or was claimed anew.
        """
        sources = frozenset(map(str, from_))
        if not sources or not sources <= self.SOURCES.get(to, frozenset()):
            raise ValueError(f"no transition from {sorted(sources)} to {to}")
        rows = type(self).objects.filter(only or models.Q(), pk=self.pk, status__in=sources)
        if epoch is not None:
            rows = rows.filter(epoch=epoch)
        written = {**self._written_on(to, sources), **all_finite(fields)}
        if not rows.update(status=to, version=F("version") + 1, **written):
            raise InvalidTransition(f"{self.label} cannot become {to}")
        self.refresh_from_db()
        self.announce()
        if to == self.Status.QUEUED:
            ring(self.queue_name)
        announce_queue()

    def _written_on(self, to: str, sources: frozenset[str]) -> dict[str, Any]:
        """The columns that follow from the new state alone."""
        written: dict[str, Any] = {"lease_expires_at": None, "eta_seconds": None}
        if to == self.Status.QUEUED:
            written |= {"worker": None, "phase": "", "waiting_reason": waiting_reason(self)}
            if self.Status.RUNNING in sources:
                # The worker went, not the job's turn: its start does not count against the owner.
                written["turn_at"] = None
            else:
                written |= {"queued_at": Now(), "stop_requested": "", "finished_at": None}
        elif to == self.Status.PAUSED:
            written |= {"worker": None, "phase": "", "waiting_reason": "", "stop_requested": ""}
        elif to in self.FINAL:
            written |= {"phase": "", "waiting_reason": "", "finished_at": Now()}
            if to == self.Status.COMPLETED:
                written |= {"progress": 1.0, "error_code": "", "error_params": {}}
        return written

    def write_progress(self, **fields: Any) -> None:
        """Writes what a running job reports; the caller does so at most 4 times a second.

        Numbers that are not finite are left out.

        Raises:
            JobLost: Another claim owns the job, or it is not running any more.
        """
        fields = all_finite(fields)
        mine = type(self).objects.running().filter(pk=self.pk, epoch=self.epoch)
        if not mine.update(version=F("version") + 1, **fields):
            raise JobLost(self.label)
        self.refresh_from_db(
            fields=["status", "phase", "waiting_reason", "version", "progress", *fields]
        )
        self.announce()

    def renew_lease(self, **fields: Any) -> None:
        """Moves the end of the lease on, by the database's clock. No page is told of it.

        Args:
            **fields: Columns to write along, such as ``log_tail``.

        Raises:
            JobLost: As for ``write_progress``.
        """
        mine = type(self).objects.running().filter(pk=self.pk, epoch=self.epoch)
        if not mine.update(lease_expires_at=lease_end(), **fields):
            raise JobLost(self.label)

    def request_cancel(self) -> None:
        """Cancels at once what no worker holds, and asks the worker for the rest.

        A final job stays as it is.
        """
        waiting = (self.Status.PENDING, self.Status.QUEUED, self.Status.PAUSED)
        # Between the two statements a worker may claim the job or give it back: look again.
        for _attempt in range(5):
            try:
                self.move(self.Status.CANCELED, from_=waiting, cancel_requested=True)
                return
            except InvalidTransition:
                running = type(self).objects.running().filter(pk=self.pk)
                asked = running.update(cancel_requested=True, version=F("version") + 1)
                self.refresh_from_db()
                if asked:
                    self.announce()
                if asked or self.is_final:
                    return

    def request_stop(self, how: str, *, status: str = Status.RUNNING) -> None:
        """Asks the worker of a job to pause it, or to stop and keep what there is.

        Args:
            how: ``pause`` or ``keep``.
            status: Where the job must stand: with a worker, or queued for the next one.

        Raises:
            InvalidTransition: The job stands elsewhere.
        """
        rows = type(self).objects.filter(pk=self.pk, status=status)
        if not rows.update(stop_requested=how, version=F("version") + 1):
            raise InvalidTransition(f"{self.label} is not {status}")
        self.refresh_from_db()
        self.announce()

    # --- the ends of a run that every kind of job shares -------------------------------------
    def settle_stopped(self, how: str) -> None:
        """Records that the child stopped as it was asked to: canceled, paused or given back.

        After ``slice`` the turn counts as over, so that others come first; after ``yield`` the
        worker went and the job keeps it. A child that stops on ``keep`` had nothing to keep.

        Raises:
            InvalidTransition: The claim is lost.
        """
        running = [self.Status.RUNNING]
        if (
            how in ("cancel", "keep")
            or type(self).objects.filter(pk=self.pk, cancel_requested=True).exists()
        ):
            self.move(self.Status.CANCELED, from_=running, epoch=self.epoch)
        elif how == "pause":
            self.move(self.Status.PAUSED, from_=running, epoch=self.epoch)
        elif how == "slice":
            self.move(self.Status.QUEUED, from_=running, epoch=self.epoch, turn_at=Now())
        else:
            self.move(self.Status.QUEUED, from_=running, epoch=self.epoch)

    def fail(self, code: str, /, **params: Any) -> None:
        """Ends a running job with an error.

        Raises:
            InvalidTransition: The claim is lost.
        """
        self.move(
            self.Status.FAILED,
            from_=[self.Status.RUNNING],
            epoch=self.epoch,
            error_code=code,
            error_params=all_finite(params),
        )

    def settle_crashed(self, *, only: models.Q | None = None, **fields: Any) -> None:
        """Counts a crash and queues the job again; the third without progress ends it.

        Progress is a checkpoint newer than the one at the crash before. What the user asked for
        meanwhile (cancel, pause) is done instead of trying again.

        Args:
            only: See ``move``.
            **fields: Columns to write along, such as ``log_tail``.

        Raises:
            InvalidTransition: The claim is lost.
        """
        self.refresh_from_db(
            fields=["crash_count", "crash_step", "cancel_requested", "stop_requested"]
        )
        step = self.checkpoint_step()
        crashes = 1 if step > self.crash_step else self.crash_count + 1
        fields |= {"crash_count": crashes, "crash_step": step}
        status = self.Status
        if self.cancel_requested:
            to = status.CANCELED
        elif crashes >= MAX_CRASHES:
            to = status.FAILED
            fields |= {"error_code": "worker_lost", "error_params": {"crashes": crashes}}
        elif self.stop_requested == "pause":
            to = status.PAUSED
        else:
            to = status.QUEUED
        self.move(to, from_=[status.RUNNING], epoch=self.epoch, only=only, **fields)


def lease_end() -> Any:
    """When a lease that is given or renewed now ends, by the database's clock."""
    return Now() + timedelta(seconds=settings.STUDIO_LEASE_SECONDS)
