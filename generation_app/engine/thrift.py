"""Makes a picture with less memory: what is done, step by step, when a device runs out of it.

The engine's other pipelines go first. Then the rows of a UNet call, which guidance doubles, are
computed one after the other; the VAE works tile by tile (a clip: frame by frame); and only the
network that works stays on the device, the others rest in RAM. What failed is tried again in place,
so finished steps and pictures are kept. What helped is remembered for the model and the size.

Rows apart and tiles round otherwise than before; tiles also see less of what surrounds them. How
much memory a request needs is foreseen in ``footprint``; this module only obeys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from generation_app.engine.footprint import TILE_SIDE, Measures, Need, choose_measures
from models_app.device_memory import free_memory
from studio_project.child_protocol import is_out_of_memory

_REST = torch.device("cpu")
#: With so much more room than there was, what has been learned is tried anew.
GROWN = 1.25
Run = Callable[..., Any]


class Thrift:
    """The networks of one pipeline, and how sparing they are at the moment.

    Attributes:
        measures: What is done for the request at work.
        on_device: The components on the device.
    """

    def __init__(
        self,
        pipe: Any,
        architecture: str,
        device: str,
        *,
        in_turn: bool = False,
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        """Stands between the pipeline and its networks.

        Args:
            pipe: The pipeline; its networks lie on the device, or in RAM.
            architecture: Its family.
            device: Where they compute, and say that they are.
            in_turn: Whether they were loaded into RAM.
            make_room: Lets go of what else the engine keeps; returns whether there was something.
        """
        self._pipe, self._architecture = pipe, architecture
        self._device, self._make_room = torch.device(device), make_room
        parts = pipe.components.items()
        self._networks: dict[str, Any] = {n: p for n, p in parts if isinstance(p, torch.nn.Module)}
        self.measures = Measures(in_turn=in_turn)
        self.on_device = set() if in_turn else set(self._networks)
        #: What helped at which size, and the room that there was then.
        self._learned: dict[Need, tuple[Measures, int | None]] = {}
        self._need = Need(0, 0)
        self._room: int | None = None
        self._used: set[str] = set()
        for name, network in self._networks.items():
            _say_where(network, self._device)
            if name == "vae":
                network.encode = self._guarded(name, network.encode, self._encode)
                network.decode = self._guarded(name, network.decode, self._decode)
            else:
                rows = self._in_rows if name == "unet" else _plainly
                network.forward = self._guarded(name, network.forward, rows)

    # --- requests -----------------------------------------------------------------------------
    def begin(self, need: Need, room: int | None) -> None:
        """Gets ready for a request: with what helped before, else with what will be needed.

        Args:
            need: How large it is.
            room: Bytes of the device that there are for it; None if nobody knows.
        """
        self._need, self._room, self._used = need, room, set()
        measures, room_then = self._learned.get(need, (None, None))
        if room is not None and room_then is not None and room > GROWN * room_then:
            measures = None  # whoever was in the way has gone
        if measures is None and room is not None:
            weights = {name: self.bytes_of(name) for name in self._networks}
            itemsize = self._pipe.unet.dtype.itemsize
            measures = choose_measures(self._architecture, weights, need, room, itemsize)
        if measures is None:
            # Networks that rest in RAM did not fit when they were loaded.
            measures = Measures(in_turn=self.measures.in_turn)
        self.measures = measures
        self._attempt(None, self._take_seats)

    def bytes_of(self, component: str) -> int:
        """What a network holds, wherever it is."""
        network = self._networks[component]
        return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))

    def notes(self) -> list[dict[str, Any]]:
        """Say which measures the request at work needed."""
        return [{"code": code, "params": {}} for code in sorted(self._used)]

    # --- what stands before the networks -------------------------------------------------------
    def _guarded(self, name: str, run: Run, how: Callable[..., Any]) -> Run:
        @functools.wraps(run)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            def attempt() -> Any:
                self._seat(name)
                return how(run, args, kwargs)

            rows = len(args[0]) if name in ("unet", "vae") else 1
            return self._attempt(name, attempt, rows)

        return guarded

    def _attempt(self, name: str | None, attempt: Callable[[], Any], rows: int = 1) -> Any:
        """Does something, with one measure more each time that memory runs out.

        Raises:
            torch.OutOfMemoryError: There is no further measure.
        """
        while True:
            try:
                return attempt()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler: a failure keeps what it came through alive.
            free_memory()
            if not self._save(name, rows):
                raise torch.OutOfMemoryError(f"out of memory in {name}, and nothing left to do")

    def _save(self, name: str | None, rows: int) -> bool:
        """Take the next measure that helps a component; returns whether there was one."""
        if self._make_room():
            return True
        now, at_once = self.measures, min(rows, self.measures.rows_at_once or rows)
        if name == "unet" and at_once > 1:
            now = replace(now, rows_at_once=(at_once + 1) // 2)
        elif name == "vae" and not now.in_tiles and (rows > 1 or self._has_tiles):
            now = replace(now, in_tiles=True)
        elif not now.in_turn:
            now = replace(now, in_turn=True)
        else:
            return False
        self.measures = now
        self._learned[self._need] = now, self._room
        return True

    def _take_seats(self) -> None:
        """Bring every network onto the device, unless they take turns."""
        if not self.measures.in_turn:
            for name in self._networks:
                self._seat(name)

    def _seat(self, name: str) -> None:
        """Bring a network onto the device; if they take turns, the others leave it."""
        # What is moved in inference mode could not be changed outside of it again.
        with torch.inference_mode(False):
            if self.measures.in_turn:
                self._used.add("networks_in_turn")
                for other in self.on_device - {name}:
                    self._networks[other].to(_REST)
                    self.on_device.discard(other)
                if name not in self.on_device and self._device.type == "cuda":
                    torch.cuda.empty_cache()
            if name not in self.on_device:
                try:
                    self._networks[name].to(self._device)
                except (RuntimeError, MemoryError):
                    self._networks[name].to(_REST)  # the layers that had found room
                    raise
                self.on_device.add(name)

    # --- rows and tiles ------------------------------------------------------------------------
    def _in_rows(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the UNet on so many rows at a time; what belongs to rows is cut with them."""
        rows, at_once = len(args[0]), self.measures.rows_at_once
        if not 0 < at_once < rows:
            return run(*args, **kwargs)
        self._used.add("rows_apart")
        parts = [
            run(*_cut(args, rows, begin, at_once), **_cut(kwargs, rows, begin, at_once))
            for begin in range(0, rows, at_once)
        ]
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))

    @property
    def _has_tiles(self) -> bool:
        return hasattr(self._pipe.vae, "use_tiling")

    def _encode(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        with_tiles = self.measures.in_tiles and self._has_tiles
        return self._tiled(run, args, kwargs, 1) if with_tiles else run(*args, **kwargs)

    def _decode(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if not self.measures.in_tiles:
            return run(*args, **kwargs)
        if self._has_tiles:
            return self._tiled(run, args, kwargs, self._pipe.vae_scale_factor)
        if len(args[0]) == 1:
            return run(*args, **kwargs)
        self._used.add("in_tiles")
        frames = [run(frame, **{**kwargs, "num_frames": 1}) for frame in args[0].split(1)]
        pixels = torch.cat([frame[0] for frame in frames])
        return (pixels,) if type(frames[0]) is tuple else type(frames[0])(sample=pixels)

    def _tiled(
        self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any], factor: int
    ) -> Any:
        vae, side = self._pipe.vae, max(args[0].shape[-2:]) * factor
        vae.tile_sample_min_size = min(TILE_SIDE, side // 2)
        vae.tile_latent_min_size = vae.tile_sample_min_size // self._pipe.vae_scale_factor
        self._used.add("in_tiles")
        vae.use_tiling = True
        try:
            return run(*args, **kwargs)
        finally:
            vae.use_tiling = False


def _plainly(run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return run(*args, **kwargs)


def _cut(value: Any, rows: int, begin: int, count: int) -> Any:
    """The part of arguments that belongs to some of the rows."""
    if isinstance(value, torch.Tensor):
        is_cut = value.ndim > 0 and len(value) == rows
        return value[begin : begin + count] if is_cut else value
    if isinstance(value, tuple):
        return tuple(_cut(each, rows, begin, count) for each in value)
    if isinstance(value, dict):
        return {name: _cut(each, rows, begin, count) for name, each in value.items()}
    return value


def _say_where(network: torch.nn.Module, device: torch.device) -> None:
    """Has a network say that it is on a device also while it rests: what it is given goes there."""
    own = type(network)
    network.__class__ = type(
        own.__name__, (own,), {"device": property(lambda _: device), "__module__": own.__module__}
    )
