"""Registers a diffusers folder on this machine's disk as a base model."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from models_app.inspection import InspectionError
from models_app.installation import InstallationError, add_folder
from studio_project.api import Problem


class Command(BaseCommand):
    """Inspects a folder, copies what is needed into the storage and shares it with everyone."""

    help = (
        "Adds a diffusers folder (Stable Diffusion 1.x, 2.x or XL, for inpainting too, or Video) "
        "as a base model that everyone may use. The folder is copied and not needed afterwards."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Ask for the folder and what to call it."""
        parser.add_argument("folder", type=Path)
        parser.add_argument("--title", default="", help="what people read")
        parser.add_argument("--name", default="", help="what scripts use (default: the folder's)")
        parser.add_argument(
            "--trigger", action="append", default=[], help="a trigger word; may be repeated"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run."""
        try:
            model, report = add_folder(
                options["folder"],
                title=options["title"],
                name=options["name"],
                trigger_words=options["trigger"],
            )
        except (InspectionError, InstallationError) as error:
            raise CommandError(error.detail) from error
        except Problem as problem:
            raise CommandError(f"{problem.detail} {problem.hint}") from problem
        self.stdout.write(
            self.style.SUCCESS(
                f"{model.name} is ready: {model.get_architecture_display()}"
                f"{' for inpainting' * model.is_inpainting}, "
                f"{report.prediction_type} prediction, {report.width}×{report.height} pixels, "
                f"{model.size_bytes / 1e6:.0f} MB."
            )
        )
