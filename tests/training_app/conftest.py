"""Fixtures of this package's tests."""

from tests.worker_fixtures import once, tiny_base, worker

__all__ = ["once", "tiny_base", "worker"]
