"""How long requests take here, learned from those that have finished.

The time of a request is that of its UNet passes, and that of what happens once for each picture
(reading the prompt, decoding, saving); both depend on the size. Each is a median over finished
requests of the same base, mode and device, so that one slow afternoon does not spoil it. What was
never painted at a size is told from the sizes that were; what was never painted with a base, from
other bases by the size of their weights. How the latest requests went says how busy the device is.
Requests that were painted in company count only where none was painted alone; what part of its
time alone each of them took of its batch is learned from them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median
from typing import Any

from django.db.models import Q

from generation_app.models import GenerationJob
from models_app.models import DiffusionModel
from studio_project.models import Worker

MOST = 100
# UNet passes for one step; all others make one.
_PASSES = {"heun": 2.0}
# An engine that takes longer than this to have its model ready has read it from disk.
_LOADED_SECONDS = 0.05
# A longer start than this times the usual one, and by this much, was the loading of a model.
_COLD_FACTOR, _COLD_SECONDS = 2.0, 0.5
_MAX_SLOPE = 2.0
# The machine may have more or less to do than usual: the latest requests tell.
PACE_REQUESTS = 8
_PACE_TRUST = 0.7


@dataclass(frozen=True)
class Work:
    """What the time of a request grows with.

    Attributes:
        pixels: Of one picture, all its frames together.
        passes: UNet passes over all pictures; one without guidance is half a pass.
        images: Pictures.
    """

    pixels: int
    passes: float
    images: int


def work_of(parameters: Mapping[str, Any]) -> Work:
    """Return the work of resolved parameters."""
    steps = parameters["num_inference_steps"] * _PASSES.get(parameters.get("scheduler", ""), 1.0)
    steps *= parameters.get("strength") or 1.0
    scale = parameters.get("hires_scale") or 1.0
    if scale > 1:  # the second pass, on so many more pixels
        again = parameters.get("hires_steps") or parameters["num_inference_steps"]
        steps += again * parameters.get("hires_strength", 1.0) * scale**2
    guided = parameters.get("guidance_scale", 7.0) > 1
    images = parameters["num_images"]
    pixels = parameters["width"] * parameters["height"] * (parameters.get("num_frames") or 1)
    return Work(pixels, max(1.0, steps) * images * (1.0 if guided else 0.5), images)


@dataclass(frozen=True)
class Finished:
    """One finished request.

    Attributes:
        work: What was asked.
        denoise_seconds: In the UNet.
        rest_seconds: In the engine otherwise, without loading.
        start_seconds: All that the claim's time holds beside these: the way to the engine and back,
            and the loading of what was not warm.
        weights_bytes: Size of the base.
        others_seconds: In the engine for those with whom it shared the UNet; its own times are its
            part then.
        had_company: Whether there were any.
        has_loaded: Whether something had to be loaded for it; the engine may have been started too.
    """

    work: Work
    denoise_seconds: float
    rest_seconds: float
    start_seconds: float
    weights_bytes: int = 1
    others_seconds: float = 0.0
    had_company: bool = False
    has_loaded: bool = False


def finished(
    parameters: Mapping[str, Any],
    metrics: Mapping[str, Any],
    wall_seconds: float,
    weights_bytes: int = 1,
) -> Finished | None:
    """Return a finished request's times; None if it does not tell them."""
    try:
        load = float(metrics.get("load_seconds", 0.0))
        seconds = float(metrics["seconds"]) - load
        denoise = float(metrics["denoise_seconds"])
        others = float(metrics.get("company_seconds", 0.0))
    except (KeyError, TypeError, ValueError):
        return None
    if not 0 < denoise <= seconds or not math.isfinite(seconds):
        return None
    start = max(0.0, wall_seconds - seconds - others)
    work, rest = work_of(parameters), seconds - denoise
    size, loaded = max(1, weights_bytes), load > _LOADED_SECONDS
    return Finished(work, denoise, rest, start, size, others, "company" in metrics, loaded)


@dataclass(frozen=True)
class Forecast:
    """How long a request will take from its claim on.

    Attributes:
        seconds: On a worker that has its model ready.
        joint_seconds: What it adds to the time of a batch that it shares with others.
        load_seconds: What a worker that has not needs on top.
        basis: From what it was told: ``size`` (this base at this size), ``base``, ``device`` (this
            base on another device) or ``site`` (other bases).
    """

    seconds: float
    joint_seconds: float
    load_seconds: float
    basis: str


def foretell(samples: Sequence[Finished], work: Work, weights_bytes: int = 1) -> Forecast | None:
    """Return how long a piece of work takes; None without samples.

    Args:
        samples: Finished requests, the latest first. Those of other bases count by the size of
            their weights.
        work: The work.
        weights_bytes: Size of its base.
    """
    if not samples:
        return None
    alike = _alike(samples, work)
    learned = _Learned(alike)
    size = max(1, weights_bytes)
    share = learned.joint_share(samples)
    several = work.images > 1
    latest = [s for s in samples if s.had_company or (s.work.images > 1) == several]
    seconds = learned.seconds(work, size) * learned.pace(latest[:PACE_REQUESTS], share)
    exact = any(sample.work.pixels == work.pixels for sample in alike)
    return Forecast(
        seconds,
        seconds * share,
        learned.load_seconds * size,
        "size" if exact else "base",
    )


def _alike(samples: Sequence[Finished], work: Work) -> Sequence[Finished]:
    """Return the samples that were painted as the work will be, if there are any.

    Several pictures at once cost less each; who will have company nobody knows.
    """
    alone = [sample for sample in samples if not sample.had_company]
    several = work.images > 1
    return [one for one in alone if (one.work.images > 1) == several] or alone or samples


class _Learned:
    """What finished requests tell: two curves over the size, and the usual start."""

    def __init__(self, samples: Sequence[Finished]) -> None:
        self._per_pass = _Curve(
            (s.work.pixels, s.denoise_seconds / s.work.passes / s.weights_bytes) for s in samples
        )
        self._per_image = _Curve(
            (s.work.pixels, s.rest_seconds / s.work.images / s.weights_bytes) for s in samples
        )
        usual = self._start = _usual_start(samples)
        cold = [s for s in samples if s.start_seconds > _COLD_FACTOR * usual + _COLD_SECONDS]
        loads = [(s.start_seconds - usual) / s.weights_bytes for s in cold]
        self.load_seconds = median(loads) if loads else 0.0

    def seconds(self, work: Work, weights_bytes: int) -> float:
        """Return how long a piece of work takes once its model is ready."""
        passes = work.passes * self._per_pass.at(work.pixels)
        images = work.images * self._per_image.at(work.pixels)
        return (passes + images) * weights_bytes + self._start

    def pace(self, latest: Sequence[Finished], share: float) -> float:
        """Return how much slower than usual the device is just now, most of it trusted.

        Args:
            latest: The latest requests.
            share: What part of its time alone one in company takes.
        """
        ratios = [self._part_of(s) / (share if s.had_company else 1.0) for s in latest]
        return float(median(ratios) ** _PACE_TRUST) if ratios else 1.0

    def joint_share(self, samples: Sequence[Finished]) -> float:
        """Return what part of its time alone a request takes of a batch.

        Until any had company, those of several pictures tell: these share the UNet likewise.
        """
        shared = [s for s in samples if s.had_company] or [s for s in samples if s.work.images > 1]
        return min(1.0, median(map(self._part_of, shared))) if shared else 1.0

    def _part_of(self, sample: Finished) -> float:
        """Return what a request took, with its part of the start, by what it takes alone."""
        own = sample.denoise_seconds + sample.rest_seconds
        start = self._start * own / (own + sample.others_seconds)
        return (own + start) / self.seconds(sample.work, sample.weights_bytes)


def _usual_start(samples: Iterable[Finished]) -> float:
    """Return the start of the quicker half of those that loaded nothing; 0 as long as all did."""
    starts = sorted(s.start_seconds for s in samples if not s.has_loaded)
    return median(starts[: (len(starts) + 1) // 2]) if starts else 0.0


class _Curve:
    """A value over the size of a picture, from values at the sizes there were.

    The nearest size gives it; how it grows is the median slope between all pairs of sizes in
    logarithms (Theil–Sen), and proportionally where only one size is known.
    """

    def __init__(self, found: Iterable[tuple[int, float]]) -> None:
        by_size: defaultdict[int, list[float]] = defaultdict(list)
        for size, value in found:
            by_size[size].append(value)
        medians = self._medians = {size: median(values) for size, values in by_size.items()}
        slopes = [
            math.log(medians[b] / medians[a]) / math.log(b / a)
            for a, b in combinations(sorted(medians), 2)
            if medians[a] > 0 and medians[b] > 0
        ]
        self._slope = min(max(median(slopes), 0.0), _MAX_SLOPE) if slopes else 1.0

    def at(self, pixels: int) -> float:
        """Return the value at a size."""
        nearest = min(self._medians, key=lambda size: abs(math.log(size / pixels)))
        return float(self._medians[nearest] * (pixels / nearest) ** self._slope)


# --- the site's own rows --------------------------------------------------------------------------
def forecast(
    base: DiffusionModel, mode: str, parameters: Mapping[str, Any], workers: Collection[Worker]
) -> Forecast | None:
    """Return how long a request will take here; None before anything like it was made.

    Args:
        base: What it is painted with.
        mode: The mode of the request.
        parameters: Its resolved values.
        workers: Who might do it: finished requests on their kind of device come first.
    """
    work = work_of(parameters)
    same_device = Q(worker__device_name__in={worker.device_name for worker in workers})
    same_base = Q(base_model=base)
    for condition, basis in ((same_base & same_device, ""), (same_base, "device"), (Q(), "site")):
        samples = _finished_rows(condition, mode)
        found = foretell(samples, work, base.size_bytes)
        if found is not None:
            return replace(found, basis=basis or found.basis)
    return None


def _finished_rows(condition: Q, mode: str) -> list[Finished]:
    """Return the latest finished requests of a mode that a condition keeps."""
    rows = GenerationJob.objects.filter(
        condition, mode=mode, status=GenerationJob.Status.COMPLETED, crash_count=0
    ).exclude(base_model=None)
    kept = rows.order_by("-created_at").values_list(
        "parameters", "metrics", "started_at", "finished_at", "base_model__size_bytes"
    )[:MOST]
    samples = (
        finished(parameters, metrics, (ended - started).total_seconds(), size)
        for parameters, metrics, started, ended, size in kept
        if started and ended
    )
    return [sample for sample in samples if sample is not None]
