"""Makes the base models that every site knows exist."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from models_app.inspection import InspectionError
from models_app.installation import seed_models
from models_app.registry import STARTER_FOLDER
from studio_project.api import Problem


class Command(BaseCommand):
    """Registers the known models of hubs as remote, and the starter as ready."""

    help = (
        "Registers the known base models and installs the starter model. Safe to repeat: what "
        "administrators changed stays."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Let the starter come from another folder."""
        parser.add_argument(
            "--starter", type=Path, default=STARTER_FOLDER, help="a diffusers folder"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run."""
        try:
            for name, done in seed_models(options["starter"]):
                if done != "unchanged" or options["verbosity"] > 1:
                    self.stdout.write(f"{name}: {done}")
        except InspectionError as error:
            raise CommandError(f"The starter model cannot be installed: {error}") from error
        except Problem as problem:
            raise CommandError(f"{problem.detail} {problem.hint}") from problem
