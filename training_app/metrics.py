"""The numbers of a training, step by step: written in chunks, read after a step.

A run of 100,000 steps is a thousand rows. Writing belongs to the one worker that holds the job.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from studio_project.child_output import Message
from training_app.models import TrainingJob, TrainingMetric

Point = list[Any]


def points_of(message: Message) -> Iterator[Point]:
    """Yield `[step, loss, learning_rate, gradient_norm]` of every step that a message tells of.

    The worker keeps all messages of a burst under `history`, and each of them lists its own steps.
    """
    for part in message.get("history", ()):
        if isinstance(part, dict):
            yield from points_of(part)
        else:
            step, loss, learning_rate, *norm = part
            yield [step, loss, learning_rate, norm[0] if norm else None]


def forget_from(job: TrainingJob, step: int) -> None:
    """Drop what was written of a step and those after it, because they are done again."""
    chunk = TrainingMetric.chunk_of(step)
    job.metrics.filter(chunk__gt=chunk).delete()
    row = job.metrics.filter(chunk=chunk).first()
    if row is not None:
        row.points = [point for point in row.points if point[0] < step]
        row.save(update_fields=["points"])


def write(job: TrainingJob, points: Iterable[Point]) -> None:
    """Add the points of some steps; those of a step that is there already replace it."""
    chunks: dict[int, dict[int, Point]] = {}
    for point in points:
        chunks.setdefault(TrainingMetric.chunk_of(point[0]), {})[point[0]] = point
    rows = {row.chunk: row for row in job.metrics.filter(chunk__in=chunks)}
    for chunk, new in chunks.items():
        old = {point[0]: point for point in rows[chunk].points} if chunk in rows else {}
        merged = [point for _step, point in sorted({**old, **new}.items())]
        TrainingMetric.objects.update_or_create(job=job, chunk=chunk, defaults={"points": merged})


def read(job: TrainingJob, *, after_step: int, limit: int) -> list[Point]:
    """Return the points of the first steps after one, in order."""
    rows = job.metrics.filter(chunk__gte=after_step // TrainingMetric.STEPS).order_by("chunk")
    wanted = rows[: limit // TrainingMetric.STEPS + 2].values_list("points", flat=True)
    points = (point for chunk in wanted for point in chunk if point[0] > after_step)
    return [point for point, _number in zip(points, range(limit), strict=False)]
