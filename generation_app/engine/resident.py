"""The resident engine: serves one request after another and stays warm and well between them.

It owns the warm pipelines of one device. A request that fails is answered with a code; what it left
half-done is cleaned up before the next one. It does not read or write the pipe itself.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from typing import Any

import torch

from generation_app.engine.errors import EngineError, StoppedError
from generation_app.engine.footprint import need_of
from generation_app.engine.generate import Pictures
from generation_app.engine.order import Order, read_order
from generation_app.engine.pipelines import PipelineCache, WarmPipeline, room_on
from generation_app.engine.request import ImageToVideoRequest
from generation_app.engine.thrift import is_out_of_memory
from generation_app.engine.video import Clips
from generation_app.engine.work import Line, Stopwatch, Work


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
            line.send("done", outputs=outputs, metrics=metrics)
            return
        # Outside the handler, so that nothing refers to the failed request's tensors any more.
        self.release(line)
        request = order.request
        raise EngineError("out_of_memory", width=request.width, height=request.height)

    def release(self, line: Line) -> None:
        """Drop every pipeline and tell what is warm: nothing."""
        self.pipelines.clear()
        self._tell_warm(line)

    def _serve(self, line: Line, order: Order) -> tuple[dict[str, Any], dict[str, Any]]:
        if torch.get_num_threads() != order.threads:
            torch.set_num_threads(order.threads)
        stopwatch = Stopwatch()
        warm = self._prepare(line, order)
        stopwatch.lap("load")
        kind: type[Work] = Clips if isinstance(order.request, ImageToVideoRequest) else Pictures
        work = kind(warm, order, line, stopwatch)
        names = self.pipelines.names
        images = work.run()
        if self.pipelines.names != names:  # others had to make room
            self._tell_warm(line)
        metrics = {
            **stopwatch.as_metrics(),
            "text_encoder_calls": work.text_encoder_calls,
            "unet_calls": work.unet_calls,
            "resident_bytes": self.pipelines.size_bytes,
            "notes": [*work.notes(), *warm.thrift.notes()],
        }
        return {"images": images}, metrics

    def _prepare(self, line: Line, order: Order) -> WarmPipeline:
        """Return the request's pipeline with its adapters at work."""
        if (how := line.stop_requested()) is not None:
            raise StoppedError(how)
        need, room = need_of(order.request), room_on(order.device, order.memory_bytes)
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

    def _tell_warm(self, line: Line) -> None:
        line.send("warm", models=self.pipelines.names, hashes=self.pipelines.hashes)
