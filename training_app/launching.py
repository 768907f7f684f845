"""How a trainer is started: as one process, or as one on each of several devices."""

from __future__ import annotations

import sys

from studio_project.child_process import Child
from studio_project.device_share import DeviceShare, devices_of

TRAINER = "training_app.trainer"

_LAUNCHER = (
    "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no",
    "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1",
    # They meet at a port that the system chooses, so that two launches on one machine do not clash.
    # The launcher's own way to do that (standalone) would read pickles from that port.
    "--main_process_port", "0",
)  # fmt: skip
# What the processes say to each other stays on this machine.
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def start_trainer(share: DeviceShare) -> Child:
    """Start a trainer that uses all devices of a share; of several processes the first is heard."""
    count = len(devices_of(share.device))
    if count == 1:
        return Child(TRAINER, nice=share.nice)
    env = _LOOPBACK if sys.platform == "linux" else {}
    command = [sys.executable, "-m", *_LAUNCHER, "--num_processes", str(count)]
    return Child([*command, "--module", TRAINER], env=env, nice=share.nice)
