"""The models that a request names: found, and checked to go together and with its mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from generation_app.engine.request import MODES, GenerationRequest
from models_app.models import DiffusionModel
from models_app.services import resolve_model
from studio_project.api import Problem
from studio_project.models import User


@dataclass(frozen=True)
class Chosen:
    """The models a request is painted with."""

    model: DiffusionModel
    base: DiffusionModel
    loras: tuple[tuple[DiffusionModel, float], ...] = ()

    @property
    def all(self) -> list[DiffusionModel]:
        """Every model whose files are needed."""
        return [self.base, *(lora for lora, _weight in self.loras)]


def resolve_named(user: User, reference: Any, field: str) -> DiffusionModel:
    """Return the model that a field of a request means.

    Raises:
        Problem: As `resolve_model`, or `invalid`; either names the field.
    """
    if reference in (None, "") or isinstance(reference, bool):
        message = _("Name a model by its id or its name.")
        raise Problem("invalid", message, fields={field: [message]})
    if not isinstance(reference, int | str):
        message = _("A model is an id or a name.")
        raise Problem("invalid", message, fields={field: [message]})
    try:
        return resolve_model(user, reference)
    except Problem as error:
        error.fields = {field: [error.detail]}
        raise


def base_of(user: User, model: DiffusionModel) -> DiffusionModel:
    """Return the pipeline a model is painted with: itself, or the base that an adapter brings.

    Raises:
        Problem: `model_unavailable`.
    """
    if not model.is_adapter:
        return model
    base = (
        DiffusionModel.objects.usable_by(user).filter(pk=model.base_model_id).first()
        if model.base_model_id
        else None
    )
    if base is None:
        message = _("The base model that “%(model)s” was trained on cannot be used now.") % {
            "model": model.shown_title
        }
        raise Problem("model_unavailable", message, status=409, fields={"model": [message]})
    return base


def require_mode(mode: str, base: DiffusionModel) -> None:
    """Refuse a base for inpainting where there is no mask: it paints nothing but parts of pictures.

    Raises:
        Problem: `model_incompatible` naming `model`.
    """
    if base.is_inpainting and not MODES[mode].takes_inpainting_models:
        message = _(
            "“%(model)s” paints parts of pictures only. Choose another model, or the mode "
            "“inpaint” with a picture and its mask."
        ) % {"model": base.shown_title}
        raise Problem("model_incompatible", message, fields={"model": [message]})


def choose_loras(
    user: User, model: DiffusionModel, base: DiffusionModel, request: GenerationRequest
) -> tuple[tuple[DiffusionModel, float], ...]:
    """Resolve the adapters; the model itself comes first when it is one.

    Raises:
        Problem: As `resolve_named`, or `model_incompatible`.
    """
    chosen: dict[int, tuple[DiffusionModel, float]] = {}
    if model.is_adapter:
        chosen[model.pk] = (model, 1.0)
    for choice in getattr(request, "loras", ()):
        lora = resolve_named(user, choice.model, "loras")
        if not lora.is_adapter or lora.architecture != base.architecture:
            message = _("“%(lora)s” does not fit onto “%(base)s”.") % {
                "lora": lora.shown_title,
                "base": base.shown_title,
            }
            raise Problem("model_incompatible", message, fields={"loras": [message]})
        chosen[lora.pk] = (lora, choice.weight)
    return tuple(chosen.values())
