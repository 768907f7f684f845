"""Where queued jobs stand and why they wait, as things are now. It changes nothing."""

from __future__ import annotations

from uuid import UUID

from studio_project.jobs import Job, queue_order
from studio_project.jobs.workers import alive_since, can_hold, live_workers
from studio_project.models import Worker


class Waiting:
    """Where queued jobs stand and why they wait, looked up once for a whole list."""

    def __init__(self) -> None:
        self._order: dict[str, dict[UUID, int]] = {}
        self._able: dict[str, list[Worker]] = {}
        self._present: list[Worker] | None = None

    def position(self, job: Job) -> int | None:
        """Return the place in the queue, the next one being 1; None when not queued."""
        if job.status != Job.Status.QUEUED:
            return None
        return self.places(type(job)).get(job.pk)

    def places(self, job_class: type[Job]) -> dict[UUID, int]:
        """Return the place of each waiting job of a kind, in the order of their turns."""
        name = job_class.queue_name
        if name not in self._order:
            order = enumerate(queue_order(job_class), start=1)
            self._order[name] = {pk: place for place, pk in order if pk is not None}
        return self._order[name]

    def workers(self, job_class: type[Job]) -> list[Worker]:
        """Return the workers that live and take jobs of a kind."""
        name = job_class.queue_name
        if name not in self._able:
            self._able[name] = live_workers(name)
        return self._able[name]

    def reason(self, job: Job) -> str:
        """Return why a queued job waits as things stand now; empty when it is not queued."""
        if job.status != Job.Status.QUEUED:
            return ""
        reasons = Job.WaitingReason
        name, able = job.queue_name, self.workers(type(job))
        if any(can_hold(worker, job.required_bytes, job.required_devices) for worker in able):
            busy = job.waiting_reason == reasons.DEVICE_BUSY
            return str(reasons.DEVICE_BUSY if busy else reasons.BEHIND_JOBS)
        refusing = any(name in worker.queues for worker in self._seen())
        return str(reasons.QUEUE_PAUSED if refusing and not able else reasons.NO_WORKER)

    def _seen(self) -> list[Worker]:
        """Return the workers that live, whether they take work or not."""
        if self._present is None:
            self._present = list(seen_workers())
        return self._present


def seen_workers() -> list[Worker]:
    """Return the workers that were seen lately and have not stopped."""
    rows = Worker.objects.filter(last_seen_at__gte=alive_since())
    return list(rows.exclude(state=Worker.State.STOPPED).order_by("name"))
