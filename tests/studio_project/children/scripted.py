"""A child that does what its request says, with the protocol of the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from studio_project.child_protocol import Channel, ChildError, run_child


class AcceleratorError(RuntimeError):
    """Named like torch's."""


def handle(channel: Channel, request: dict[str, Any]) -> None:
    for action in request["actions"]:
        name, argument = action["do"], action.get("with")
        if name == "steps":
            for step in range(1, argument + 1):
                channel.send("step", step=step, total_steps=argument, loss=0.5)
        elif name == "send":
            channel.send(argument.pop("type"), **argument)
        elif name == "print":
            print(argument)
        elif name == "raw":
            os.write(channel._out_fd, argument.encode())
        elif name == "log":
            sys.stderr.write(argument)
        elif name == "exit":
            os._exit(argument)
        elif name == "raise":
            raise ChildError(argument, number=3)
        elif name == "oom":
            raise MemoryError
        elif name == "break_device":
            raise AcceleratorError("CUDA error: an illegal memory access was encountered")
        elif name == "hang":
            time.sleep(600)
        elif name == "deaf":
            import signal

            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            channel.send("phase", phase="deaf")
            time.sleep(600)
        elif name == "chatter":
            import signal

            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                channel.send("note", code=argument)
                time.sleep(0.01)
        elif name == "grandchild":
            started = subprocess.Popen(
                [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
            )
            channel.send("phase", phase="forked", pid=started.pid)
        elif name == "wait":
            while channel.stop_requested() is None:
                time.sleep(0.01)
            channel.send("stopped", how=channel.stop_requested(), step=7)
            return
        elif name == "await_stop":
            while channel.stop_requested() is None:
                time.sleep(0.01)
        elif name == "aside":
            while not channel.aside_wanted():
                time.sleep(0.01)
            channel.send("aside", held_bytes=argument)
            how = channel.wait_aside()
            channel.send("back", seconds=60.0)
            if how is not None:
                channel.send("stopped", how=how)
                return
        elif name == "environment":
            channel.send("phase", phase="environment", names=sorted(os.environ))
    channel.send("done", outputs={}, metrics={})


def together(channel: Channel, requests: list[dict[str, Any]]) -> None:
    """Wait until each of several requests is stopped as it expects."""
    for request in requests:
        while channel.stop_of(request["job_id"]) != request["until"]:
            time.sleep(0.01)
        channel.send("stopped", how=request["until"], job_id=request["job_id"])


def release(channel: Channel) -> None:
    channel.send("warm", models=[])


if __name__ == "__main__":
    once = "--once" in sys.argv
    sys.exit(run_child(handle, once=once, together=together, commands={"release": release}))
