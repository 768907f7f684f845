"""What a request for a training names: the dataset, the base model, the method and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from django.utils.translation import gettext as _

from datasets_app.models import Dataset
from models_app.architectures import ARCHITECTURES
from models_app.models import DiffusionModel
from models_app.services import unavailable
from studio_project.api import Problem
from studio_project.models import User
from training_app.models import TrainingJob
from training_app.texts import config_sentence
from training_app.trainer.config import ConfigError, TrainingConfig, resolve_config

TRAINABLE_ARCHITECTURES = frozenset(
    family.name for family in ARCHITECTURES.values() if family.trainable
)


def find_dataset(user: User, dataset_id: int | None) -> Dataset:
    """Return the dataset that a request names.

    Raises:
        Problem: `dataset_not_found`.
    """
    dataset = Dataset.objects.visible_to(user).filter(pk=dataset_id).first()
    if dataset is None:
        message = _("There is no such dataset, or you may not see it.")
        raise Problem("dataset_not_found", message, status=404, fields={"dataset_id": [message]})
    return dataset


def find_base(user: User, base_model_id: int | None) -> DiffusionModel:
    """Return the base model that a request names.

    Raises:
        Problem: `model_not_found`, `model_incompatible` or `model_unavailable`.
    """
    base = DiffusionModel.objects.visible_to(user).filter(pk=base_model_id).first()
    if base is None:
        message = _("There is no such model, or you may not see it.")
        raise Problem("model_not_found", message, status=404, fields={"base_model_id": [message]})
    if base.type != DiffusionModel.Type.BASE:
        _refuse_base("model_incompatible", _("Training starts from a base model; this is not one."))
    if base.is_inpainting:
        # Its UNet learned with masks, which the pictures of a dataset do not have.
        message = _(
            "“%(model)s” paints parts of pictures only and cannot be trained here. Choose a base "
            "model that paints whole pictures."
        ) % {"model": base.shown_title}
        _refuse_base("model_incompatible", message)
    if not DiffusionModel.objects.usable_by(user).filter(pk=base.pk).exists():
        problem = unavailable(base)
        problem.fields = {"base_model_id": [problem.detail]}
        raise problem
    return base


def check_method(type: str, base: DiffusionModel) -> None:
    """Refuse a method that there is not, or not for this base.

    Raises:
        Problem: `invalid` naming `type`, or `method_unavailable`.
    """
    if type not in TrainingJob.Type.values:
        message = _("Choose one of: %(choices)s.") % {"choices": ", ".join(TrainingJob.Type.values)}
        raise Problem("invalid", message, fields={"type": [message]})
    if base.architecture not in TRAINABLE_ARCHITECTURES:
        _refuse_base(
            "method_unavailable",
            _("Models of the family %(family)s only generate; they cannot be trained here.")
            % {"family": base.get_architecture_display()},
        )


def _refuse_base(code: str, message: str, *, status: int = 400) -> NoReturn:
    raise Problem(code, message, status=status, fields={"base_model_id": [message]})


def resolve_settings(
    asked: Mapping[str, Any], type: str, base: DiffusionModel, num_images: int
) -> TrainingConfig:
    """Complete the settings that were asked for.

    Raises:
        Problem: `invalid` naming the setting.
    """
    try:
        return resolve_config(
            dict(asked),
            architecture=base.architecture,
            method=type,
            base_defaults=base.default_settings,
            num_images=num_images,
        )
    except ConfigError as error:
        name, sentence = f"config.{error.field}", config_sentence(error)
        raise Problem("invalid", f"{name}: {sentence}", fields={name: [sentence]}) from error
