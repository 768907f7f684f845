"""Which devices this machine has, for whoever must not import torch.

``python -m studio_project.devices`` prints them as JSON; it is the only process of the platform
that loads torch, and it ends at once. ``list_devices`` runs it as a child.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

LIST_SECONDS = 120


@dataclass(frozen=True)
class DeviceInfo:
    """One device, or a group: how torch calls it, how people do, and the memory of each."""

    device: str
    name: str
    memory_bytes: int


class DeviceError(Exception):
    """The devices cannot be listed, or one that was named does not exist."""


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu() -> DeviceInfo:
    """The processor, with the memory of the machine or of the container it runs in."""
    return DeviceInfo("cpu", _processor_name()[:200], _memory_bytes())


def _memory_bytes() -> int:
    total: int = psutil.virtual_memory().total
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def detect() -> list[DeviceInfo]:
    """Every CUDA device, else the Apple GPU, else the processor. Imports torch."""
    import torch

    if torch.cuda.is_available():
        devices = []
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            devices.append(DeviceInfo(f"cuda:{index}", properties.name, properties.total_memory))
        return devices
    if torch.backends.mps.is_available():
        return [DeviceInfo("mps", "Apple GPU", torch.mps.recommended_max_memory())]
    return [cpu()]


def list_devices() -> list[DeviceInfo]:
    """What ``detect`` finds, asked of a child process.

    Raises:
        DeviceError: torch is not installed or does not work; says what the child said.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "studio_project.devices"],
            capture_output=True,
            text=True,
            timeout=LIST_SECONDS,
            cwd=Path(__file__).resolve().parent.parent,
            env={**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"torch listed no devices within {LIST_SECONDS} seconds") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DeviceError(f"torch could not list the devices: {last}")
    return [DeviceInfo(**entry) for entry in json.loads(done.stdout.splitlines()[-1])]


def chosen_devices(wanted: str) -> list[DeviceInfo]:
    """The devices that ``STUDIO_DEVICES`` names.

    Args:
        wanted: ``auto``, ``none``, or names separated by commas: ``cpu``, ``mps``, ``cuda:0``. One
            worker gets several devices as a group: ``cuda:0+cuda:1``.

    Raises:
        DeviceError: One of them does not exist here, or is to belong to two workers.
    """
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if names in ([], ["none"]):
        return []
    groups = [[name.strip() for name in group.split("+")] for group in names]
    if all(name == "cpu" for group in groups for name in group):
        return [_group([cpu()] * len(group)) for group in groups]
    found = list_devices()
    if names == ["auto"]:
        return found
    known = {info.device: info for info in [*found, cpu()]}
    if "cuda:0" in known:
        groups = [["cuda:0" if name == "cuda" else name for name in group] for group in groups]
    flat = [name for group in groups for name in group]
    unknown = [name for name in flat if name not in known]
    if unknown:
        raise DeviceError(
            f"no device {', '.join(unknown)} on this machine; it has {', '.join(sorted(known))}"
        )
    twice = sorted({name for name in flat if name != "cpu" and flat.count(name) > 1})
    if twice:
        raise DeviceError(f"{', '.join(twice)} is named twice; a device has one worker")
    return [_group([known[name] for name in group]) for group in groups]


def _group(members: list[DeviceInfo]) -> DeviceInfo:
    """The devices of one worker as one; what needs memory needs it on each."""
    names = list(dict.fromkeys(info.name for info in members))
    kinds = names[0] if len(members) == 1 else f"{len(members)} × {' + '.join(names)}"
    return DeviceInfo(
        "+".join(info.device for info in members),
        kinds[:200],
        min(info.memory_bytes for info in members),
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps([asdict(info) for info in detect()]) + "\n")
