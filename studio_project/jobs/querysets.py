"""The questions that every kind of job is asked: whose, and where it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from django.db import models

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser

    from studio_project.jobs.base import Job
    from studio_project.models import User


class JobQuerySet(models.QuerySet):
    """Jobs, which only their owner sees."""

    model: type[Job]  # type: ignore[assignment]

    def visible_to(self, user: User | AnonymousUser) -> Self:
        """Keep the user's own jobs."""
        if not user.is_authenticated:
            return self.none()
        return self.filter(owner=user)

    def live(self) -> Self:
        """Keep what is not final."""
        return self.exclude(status__in=self.model.FINAL)

    def queued(self) -> Self:
        """Keep what waits for a worker."""
        return self.filter(status=self.model.Status.QUEUED)

    def running(self) -> Self:
        """Keep what a worker has claimed."""
        return self.filter(status=self.model.Status.RUNNING)
