"""One child at work for several jobs: each has a seat in it that looks like a child of its own.

Whoever watches over a job need not know of the others: its seat has its own messages, its stop
reaches its own request, and leaving it is nothing to the rest. The child hears of the run when the
last of the jobs has said what it wants, or has left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from django.db import connection

from studio_project.child_output import Mailbox
from studio_project.child_process import Child
from studio_project.jobs import Job

JobT = TypeVar("JobT", bound=Job)
_companies: dict[UUID, Company] = {}


def side_by_side(claimed: Sequence[JobT], run: Callable[[JobT], None]) -> None:
    """Does the jobs of one run at the same time, each in a thread; one alone in the caller's.

    Args:
        claimed: The jobs.
        run: Does one of them, and answers for what goes wrong with it.
    """
    if len(claimed) == 1:
        run(claimed[0])
        return
    company = Company(str(job.pk) for job in claimed)

    def work(job: JobT) -> None:
        try:
            run(job)
        finally:
            _companies.pop(job.pk, None)
            company.leave(str(job.pk))
            connection.close()

    _companies.update((job.pk, company) for job in claimed)
    threads = [threading.Thread(target=work, args=(job,), name="job") for job in claimed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def seat_of(job: Job, child: Child) -> Child | Seat:
    """What stands for a child to a job: the child itself, or the job's seat among others."""
    company = _companies.get(job.pk)
    return Seat(company, str(job.pk), child) if company else child


class Company:
    """The jobs of one run.

    Args:
        job_ids: All that were claimed for it.
    """

    def __init__(self, job_ids: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._present = set(job_ids)
        self._requests: dict[str, Mapping[str, Any]] = {}
        self._child: Child | None = None
        self.has_started = False

    def sit(self, job_id: str, child: Child) -> Mailbox:
        """Gives a job its seat in the child, which is the same for all; returns its messages."""
        with self._lock:
            self._child = child
        return child.open_box(job_id)

    def enter(self, job_id: str, request: Mapping[str, Any]) -> None:
        """Takes a job's request; the last one starts the run."""
        with self._lock:
            self._requests[job_id] = request
            self._start_if_complete()

    def leave(self, job_id: str) -> bool:
        """Goes on without a job, of which nothing is heard any more.

        Returns:
            Whether any other is left.
        """
        with self._lock:
            self._present.discard(job_id)
            self._requests.pop(job_id, None)
            self._start_if_complete()
            if self._child is not None:
                self._child.close_box(job_id)
            return bool(self._present)

    def _start_if_complete(self) -> None:
        if self.has_started or self._child is None:
            return
        if not self._requests or set(self._requests) != self._present:
            return
        requests = [{**request, "job_id": job_id} for job_id, request in self._requests.items()]
        self.has_started = True
        self._child.start_log()
        self._child.send({"cmd": "run", "requests": requests})


class Seat:
    """One job's part of a child; see ``Child`` for what it stands in for."""

    # What crashes here may be anybody's fault.
    is_shared = True

    def __init__(self, company: Company, job_id: str, child: Child) -> None:
        self._company, self._job_id, self._child = company, job_id, child
        self.messages = company.sit(job_id, child)

    @property
    def alive(self) -> bool:
        """Whether the child runs."""
        return self._child.alive

    def start_log(self) -> None:
        """Nothing: the log begins with the run."""

    def log_tail(self) -> str:
        """Nothing: what a child writes that works for several people is for none of them."""
        return ""

    def send(self, command: Mapping[str, Any]) -> bool:
        """Enters the run, or sends a command that means this job alone."""
        if command["cmd"] == "run":
            self._company.enter(self._job_id, command["request"])
        elif self._company.has_started:
            self._child.send({**command, "job_id": self._job_id})
        else:
            self.messages.put({"type": "stopped", "how": command["how"]})
            self._company.leave(self._job_id)
        return self.alive

    def kill(self) -> int:
        """Leaves the child, which is killed with its last job.

        Returns:
            The exit status of the child; 0 while it goes on for others.
        """
        if self._company.leave(self._job_id) and self._child.alive:
            self._child.send({"cmd": "stop", "how": "cancel", "job_id": self._job_id})
            return 0
        return self._child.kill()
