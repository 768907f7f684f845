"""The engine as a resident child of a worker: ``python -m generation_app.engine``.

It serves ``run`` requests, or several ``together``, one after another until the worker closes the
line; ``stop`` ends the one at work within a step, ``release`` gives all memory back.
"""

from __future__ import annotations

import sys

from studio_project.child_protocol import loading_libraries, run_child


def main() -> int:
    """Serve until the worker is done; return the exit status."""
    with loading_libraries():
        from generation_app.engine.resident import Engine
    engine = Engine()
    return run_child(engine.run, together=engine.run_together, commands={"release": engine.release})


if __name__ == "__main__":
    sys.exit(main())
