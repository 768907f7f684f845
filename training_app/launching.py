"""How a trainer is started: as one process, or as one on each of several devices."""

from __future__ import annotations

import sys

from studio_project.child_process import Child
from studio_project.device_share import DeviceShare, devices_of

TRAINER = "training_app.trainer"

_LAUNCHER = (
    "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no",
    "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1",
)  # fmt: skip
# The launcher meets its processes at a port that the system chooses, so that two launches on one
# machine do not clash, and all they say to each other stays on this machine.
_LAUNCHER_ENVIRONMENT = {"PET_STANDALONE": "1", "PET_LOCAL_ADDR": "127.0.0.1"}
_ON_LINUX = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def start_trainer(share: DeviceShare) -> Child:
    """Start a trainer that uses all devices of a share; of several processes the first is heard."""
    count = len(devices_of(share.device))
    if count == 1:
        return Child(TRAINER, nice=share.nice)
    env = _LAUNCHER_ENVIRONMENT | (_ON_LINUX if sys.platform == "linux" else {})
    command = [sys.executable, "-m", *_LAUNCHER, "--num_processes", str(count)]
    return Child([*command, "--module", TRAINER], env=env, nice=share.nice)
