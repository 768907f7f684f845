"""Paints several pictures at once: each by itself, but for the UNet, which is asked for all.

Pictures may belong to one request or to several; each keeps its seed, noise scheduler, words and
end. Those at work go through their steps side by side; a request that fails or is stopped leaves,
and the others go on. A call of the UNet that fails for several fails for each of them: what to do
when memory runs out ``thrift`` has tried by then, and the worker tries each again alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from generation_app.engine.denoise import Call, Predictor
from generation_app.engine.word_memory import remembered_words

if TYPE_CHECKING:
    from generation_app.engine.generate import Pictures

# One picture on its way: it yields what it asks the UNet, is sent the answers, and returns what its
# ``image`` message said.
Painting = Generator[Call, torch.Tensor, dict[str, Any]]
Result = list[dict[str, Any]] | Exception


@dataclass
class _Request:
    """One request at work, with what it has made so far and how it ended."""

    work: Pictures
    count: int = 0
    made: list[dict[str, Any]] = field(default_factory=list)
    result: Result | None = None
    is_told: bool = False


@dataclass
class _Picture:
    """One picture at work; without a call it is done, or its request has ended."""

    request: _Request
    painting: Painting
    call: Call | None = None

    def advance(self, answer: torch.Tensor | Exception | None) -> None:
        """Go on until the UNet is needed again; nothing that goes wrong is anybody else's."""
        request, self.call = self.request, None
        if request.result is not None:
            self.painting.close()
            return
        watch = request.work.stopwatch
        watch.resume()
        try:
            if isinstance(answer, Exception):
                self.call = self.painting.throw(answer)
            else:
                self.call = self.painting.send(answer)  # type: ignore[arg-type]
            watch.lap("denoise")
        except StopIteration as end:
            request.made.append(end.value)
            if len(request.made) == request.count:
                request.result = request.made
        except Exception as error:
            request.result = error


@torch.inference_mode()
def paint(
    pipe: Any, works: Sequence[Pictures], *, together: int
) -> Iterator[tuple[Pictures, Result]]:
    """Paint the pictures of some requests.

    Args:
        pipe: The pipeline that all of them use.
        works: The requests; those of several have equal sizes, steps and noise schedulers.
        together: How many pictures may be at work at a time.

    Yields:
        Each request when it has ended, with what it made or what went wrong (``StoppedError`` for
        one that was asked to stop).
    """
    requests, predict = [_Request(work) for work in works], Predictor(pipe)
    waiting = deque(picture for request in requests for picture in _begin(request))
    yield from _ended(requests)
    with remembered_words(pipe.unet):
        while waiting:
            at_work = [waiting.popleft() for _ in range(min(together, len(waiting)))]
            for picture in at_work:
                picture.advance(None)
            yield from _ended(requests)
            while at_work := [picture for picture in at_work if picture.call is not None]:
                for group in _alike(at_work):
                    for picture, answer in zip(group, _ask(predict, group), strict=True):
                        picture.advance(answer)
                yield from _ended(requests)


def _begin(request: _Request) -> list[_Picture]:
    request.work.stopwatch.resume()
    try:
        paintings = request.work.paintings()
    except Exception as error:
        request.result = error
        return []
    request.count = len(paintings)
    return [_Picture(request, painting) for painting in paintings]


def _ended(requests: Sequence[_Request]) -> Iterator[tuple[Pictures, Result]]:
    """Tell once of each request that has ended."""
    for request in requests:
        if request.result is not None and not request.is_told:
            request.is_told = True
            yield request.work, request.result


def _alike(pictures: Sequence[_Picture]) -> list[list[_Picture]]:
    """Put those together that the UNet can be asked for at once; prompts differ in length."""
    groups: dict[tuple[int, ...], list[_Picture]] = {}
    for picture in pictures:
        if picture.call is not None:
            groups.setdefault(picture.call.shape, []).append(picture)
    return list(groups.values())


def _ask(predict: Predictor, pictures: Sequence[_Picture]) -> list[torch.Tensor | Exception]:
    """Ask the UNet for some pictures, and count to each request its share of the time."""
    started = time.perf_counter()
    calls = [picture.call for picture in pictures if picture.call is not None]
    answers: list[torch.Tensor | Exception]
    try:
        answers = [*predict(calls)]
    except Exception as error:  # whose fault it is nobody can tell
        answers = [error] * len(calls)
    seconds = (time.perf_counter() - started) / len(pictures)
    for picture in pictures:
        picture.request.work.stopwatch.add("denoise", seconds)
    return answers
