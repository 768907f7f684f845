"""Tests of the engine: torch, no Django."""
