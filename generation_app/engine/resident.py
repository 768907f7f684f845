"""The resident engine: serves one request after another and stays warm and well between them.

It owns the warm pipelines of one device. A request that fails is answered with a code; what it left
half-done is cleaned up before the next one. It does not read or write the pipe itself.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from generation_app.engine.company import paint
from generation_app.engine.errors import EngineError, StoppedError
from generation_app.engine.footprint import need_of
from generation_app.engine.generate import Pictures
from generation_app.engine.order import Order, read_order
from generation_app.engine.pipelines import PipelineCache, WarmPipeline, take_room
from generation_app.engine.preview import PreviewClock
from generation_app.engine.request import ImageToVideoRequest
from generation_app.engine.video import Clips
from generation_app.engine.work import Everyone, Line, OwnLine, SharedLine, Stopwatch, Work
from studio_project.child_protocol import error_of, is_device_broken, is_out_of_memory


class Engine:
    """Warm pipelines and the verbs ``run`` and ``release`` on them.

    Args:
        budget_bytes: How much the warm pipelines may hold; None for a share of the device.
    """

    def __init__(self, budget_bytes: int | None = None) -> None:
        self.pipelines = PipelineCache(budget_bytes)

    def run(self, line: Line, message: Mapping[str, Any]) -> None:
        """Serve one request and send ``done`` or ``stopped``.

        Args:
            line: Where messages go and stops come from.
            message: The request of the worker.

        Raises:
            EngineError: The request failed for a reason with a code; the engine stays well.
            Exception: Anything unexpected; the engine stays well too.
        """
        order = read_order(message)
        try:
            outputs, metrics = self._serve(line, order)
        except StoppedError as stop:
            line.send("stopped", how=stop.how)
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            traceback.print_exc(file=sys.stderr)
        else:
            _tell_memory(line, order)
            line.send("done", outputs=outputs, metrics=metrics)
            return
        # Outside the handler, so that nothing refers to the failed request's tensors any more.
        self.release(line)
        request = order.request
        raise EngineError("out_of_memory", width=request.width, height=request.height)

    def run_together(self, line: SharedLine, messages: Sequence[Mapping[str, Any]]) -> None:
        """Serve several requests that share a base, size, steps and scheduler, in one batch.

        Each is answered on its own with ``done``, ``stopped`` or ``error``, by its ``job_id``;
        what goes wrong with one is nothing to the others.

        Args:
            line: Where messages go and stops come from.
            messages: The requests of the worker.

        Raises:
            Exception: The device is broken, and with it the engine; nobody is answered any more.
        """
        started = time.perf_counter()
        orders = _read_company(line, messages)
        lines = list(orders)
        if not lines:
            return
        count = sum(len(order.seeds) for order in orders.values())
        try:
            warm = self._prepare(Everyone(lines), orders[lines[0]], count)
        except Exception as error:
            for one in lines:
                _answer_failure(one, error)
            return
        load_seconds = time.perf_counter() - started
        clock = PreviewClock(len(lines))
        works = [Pictures(warm, orders[one], one, Stopwatch(), clock) for one in lines]
        names = self.pipelines.names
        for work, result in paint(warm.pipe, works, together=count):
            names = self._tell_changes(work.line, names)
            if isinstance(result, Exception):
                _answer_failure(work.line, result)
                continue
            work.stopwatch.add("load", load_seconds)
            metrics = self._metrics(work, warm)
            shared = time.perf_counter() - started - metrics["seconds"]
            metrics |= {"company": count, "company_seconds": round(max(0.0, shared), 4)}
            _tell_memory(work.line, orders[lines[0]])
            work.line.send("done", outputs={"images": result}, metrics=metrics)

    def release(self, line: Line) -> None:
        """Drop every pipeline and tell what is warm: nothing."""
        self.pipelines.clear()
        self._tell_warm(line)

    def _serve(self, line: Line, order: Order) -> tuple[dict[str, Any], dict[str, Any]]:
        stopwatch = Stopwatch()
        warm = self._prepare(line, order, min(order.together, len(order.seeds)))
        stopwatch.lap("load")
        kind: type[Work] = Clips if isinstance(order.request, ImageToVideoRequest) else Pictures
        work = kind(warm, order, line, stopwatch)
        names = self.pipelines.names
        images = work.run()
        self._tell_changes(line, names)
        return {"images": images}, self._metrics(work, warm)

    def _metrics(self, work: Work, warm: WarmPipeline) -> dict[str, Any]:
        return {
            **work.stopwatch.as_metrics(),
            "text_encoder_calls": work.text_encoder_calls,
            "unet_calls": work.unet_calls,
            "resident_bytes": self.pipelines.size_bytes,
            "notes": [*work.notes(), *warm.thrift.notes()],
        }

    def _prepare(self, line: Line, order: Order, together: int) -> WarmPipeline:
        """Return the request's pipeline with its adapters at work.

        Args:
            line: Where it is told what is loaded.
            order: The request, or the first of those that share a batch.
            together: How many pictures will be at work at a time.
        """
        if (how := line.stop_requested()) is not None:
            raise StoppedError(how)
        if torch.get_num_threads() != order.threads:
            torch.set_num_threads(order.threads)
        need, room = need_of(order.request, together), take_room(order.device, order.memory_bytes)
        warm = self.pipelines.find(order.base_sha256, order.device)
        if warm is None:
            line.send("phase", phase="loading_model")
            warm = self.pipelines.load(
                order.base_folder,
                sha256=order.base_sha256,
                architecture=order.architecture,
                device=order.device,
                name=order.base_name,
                need=need,
                room=room,
            )
            self._tell_warm(line)
        elif any(lora.sha256 not in warm.adapters.attached for lora in order.loras):
            line.send("phase", phase="loading_model")
        try:
            warm.adapters.activate(order.loras)
        except EngineError:
            raise
        except Exception:
            # A pipeline whose adapters are in an unknown state must not paint for anybody.
            self.pipelines.drop(warm)
            self._tell_warm(line)
            raise
        warm.thrift.begin(need, room)
        return warm

    def _tell_changes(self, line: Line, names: list[str]) -> list[str]:
        """Tell what is warm if others had to make room; return it."""
        if self.pipelines.names != names:
            self._tell_warm(line)
        return self.pipelines.names

    def _tell_warm(self, line: Line) -> None:
        line.send("warm", models=self.pipelines.names, hashes=self.pipelines.hashes)


def _tell_memory(line: Line, order: Order) -> None:
    """Tell what the device really lacks: several models may be warm, and torch keeps more."""
    if torch.device(order.device).type == "cuda":
        line.send("memory", held_bytes=torch.cuda.memory_reserved(order.device))


def _read_company(line: SharedLine, messages: Sequence[Mapping[str, Any]]) -> dict[OwnLine, Order]:
    """Check the requests of a batch; one that is wrong or does not fit the first is answered."""
    orders: dict[OwnLine, Order] = {}
    for message in messages:
        one = OwnLine(line, str(message.get("job_id")))
        try:
            order = read_order(message)
            key = next(iter(orders.values()), order).company_key
            if key is None or order.company_key != key:
                raise EngineError("invalid_request", field="orders")
            orders[one] = order
        except Exception as error:
            _answer_failure(one, error)
    return orders


def _answer_failure(line: Line, error: Exception) -> None:
    """Tell what became of one request of a batch that has made nothing.

    Raises:
        Exception: The error itself, if it is the device's: no other request will do better.
    """
    if is_device_broken(error):
        raise error
    if isinstance(error, StoppedError):
        line.send("stopped", how=error.how)
        return
    traceback.print_exception(error, file=sys.stderr)
    code, params = error_of(error)
    line.send("error", code=code, params=params)
