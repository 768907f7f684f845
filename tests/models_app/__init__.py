"""Tests of models_app."""
