"""What every request at work has in common: it is watched, can be stopped, tells of its files.

How a picture or a clip comes to be is the business of ``generate`` and ``video``.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from generation_app.engine import preview
from generation_app.engine.errors import StoppedError
from generation_app.engine.metadata import FORMAT_VERSION, library_versions
from generation_app.engine.order import Order
from generation_app.engine.pipelines import WarmPipeline


class Line(Protocol):
    """What the engine needs of its line to the worker."""

    def send(self, message_type: str, /, **fields: Any) -> None:
        """Send one message."""

    def stop_requested(self) -> str | None:
        """How the request shall stop, or None."""


class SharedLine(Line, Protocol):
    """A line on which several requests are worked on at once."""

    def stop_of(self, job_id: str) -> str | None:
        """How one of them shall stop, or None."""


class OwnLine:
    """One request's part of a shared line: its messages and its stop carry its id."""

    def __init__(self, line: SharedLine, job_id: str) -> None:
        self._line = line
        self._job_id = job_id

    def send(self, message_type: str, /, **fields: Any) -> None:
        """Send one message."""
        self._line.send(message_type, **fields, job_id=self._job_id)

    def stop_requested(self) -> str | None:
        """How the request shall stop, or None."""
        return self._line.stop_of(self._job_id)


class Everyone:
    """The lines of all requests of a batch, for what is done for all of them."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines

    def send(self, message_type: str, /, **fields: Any) -> None:
        """Send one message to each."""
        for line in self._lines:
            line.send(message_type, **fields)

    def stop_requested(self) -> str | None:
        """Whoever shall stop leaves at the first step; the others go on."""
        return None


class Stopwatch:
    """Adds up how long each part of a request takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Count the time since the last lap to a part."""
        now = time.perf_counter()
        self.add(part, now - self._last)
        self._last = now

    def add(self, part: str, seconds: float) -> None:
        """Count seconds to a part."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def resume(self) -> None:
        """Go on counting from now; what others did meanwhile is not this request's."""
        self._last = time.perf_counter()

    def as_metrics(self) -> dict[str, float]:
        """Return ``{part}_seconds``, and ``seconds`` for the whole."""
        named = {f"{part}_seconds": round(value, 4) for part, value in self.seconds.items()}
        return {"seconds": round(sum(self.seconds.values()), 4), **named}


class Work(ABC):
    """One request at work on one warm pipeline.

    Args:
        warm: The pipeline.
        order: The request.
        line: Where messages go and stops come from.
        stopwatch: What counts its time.
        clock: When previews are due; a batch shares one.
    """

    def __init__(
        self,
        warm: WarmPipeline,
        order: Order,
        line: Line,
        stopwatch: Stopwatch,
        clock: preview.PreviewClock | None = None,
    ) -> None:
        self._warm = warm
        self._order = order
        self.line = line
        self.stopwatch = stopwatch
        self._clock = clock or preview.PreviewClock()
        self._total_steps = 0
        self.text_encoder_calls = 0
        self.unet_calls = 0

    @abstractmethod
    def run(self) -> list[dict[str, Any]]:
        """Make every image.

        Returns:
            What each ``image`` message said, without its parameters.

        Raises:
            EngineError: A value does not fit this model, or a picture is not finite.
            StoppedError: A stop was asked for.
        """

    def notes(self) -> list[dict[str, Any]]:
        """Say what the person should know about how the request was understood."""
        return []

    def _check_stop(self) -> None:
        how = self.line.stop_requested()
        if how is not None:
            raise StoppedError(how)

    def _phase(self, phase: str) -> None:
        self._check_stop()
        self.line.send("phase", phase=phase)

    def _stepped(self, index: int, render: Callable[[], Image.Image], *, is_last: bool) -> None:
        """Tell of a step over the whole request, show a preview if one is due, obey a stop.

        Args:
            index: Of the image.
            render: Paints where the denoising is going.
            is_last: Whether the finished picture follows at once.
        """
        self.unet_calls += 1
        self.line.send(
            "step",
            step=self.unet_calls,
            total_steps=self._total_steps,
            image_index=index,
        )
        self._check_stop()
        if self._order.preview and not is_last and self._clock.is_due(self):
            started = time.monotonic()
            data = preview.encode_jpeg(render())
            self._clock.made(time.monotonic() - started, self)
            self.line.send("preview", image_index=index, data=data)

    def _path(self, index: int, suffix: str) -> Path:
        self._order.output_folder.mkdir(parents=True, exist_ok=True)
        return self._order.output_folder / f"{index:03d}-{self._order.seeds[index]}.{suffix}"

    def _announce(
        self, index: int, path: Path, image: Image.Image, parameters: dict[str, Any], **more: Any
    ) -> dict[str, Any]:
        """Send what was written, and return it without its parameters."""
        made = {
            "index": index,
            "seed": self._order.seeds[index],
            "path": str(path),
            "width": image.width,
            "height": image.height,
            "size_bytes": path.stat().st_size,
            **more,
        }
        self.stopwatch.lap("save")
        self.line.send("image", **made, parameters=parameters)
        return made

    def _parameters(self, index: int) -> dict[str, Any]:
        """Every resolved value of one image; made alone it has this seed and one image."""
        order, warm = self._order, self._warm
        loras = [{"name": x.name, "weight": x.weight, "sha256": x.sha256} for x in order.loras]
        values = order.request.as_parameters()
        if order.prompts:
            values["prompt"] = order.prompts[index]
        return values | {
            "format": FORMAT_VERSION,
            "software": "Studio",
            "mode": order.mode,
            "seed": order.seeds[index],
            "num_images": 1,
            "index": index,
            "model": {
                "name": order.base_name,
                "sha256": order.base_sha256,
                "architecture": warm.architecture,
            },
            "loras": loras,
            "libraries": dict(library_versions()),
            "device": torch.device(order.device).type,
            "dtype": str(warm.pipe.unet.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }

    def _written(self, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the parameters, and what the file says: them and the worker's own words."""
        parameters = self._parameters(index)
        extra = {"metadata": self._order.metadata} if self._order.metadata else {}
        return parameters, parameters | extra
