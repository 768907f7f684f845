"""Fixtures of this package's tests."""

from tests.worker_fixtures import _warm_children, once, tiny_base, worker

__all__ = ["_warm_children", "once", "tiny_base", "worker"]
