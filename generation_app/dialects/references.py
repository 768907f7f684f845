"""Which name means which model to a client that knows names only."""

from __future__ import annotations

from collections import defaultdict

from django.utils.translation import gettext as _

from generation_app.engine.request import MODES
from models_app.models import DiffusionModel
from studio_project.api import Problem
from studio_project.models import User


def usable_models(user: User, *, with_masks: bool = False) -> list[DiffusionModel]:
    """Return what this user can paint with now, newest first.

    Args:
        user: Who asks.
        with_masks: Whether what paints parts of pictures only is of use to them.
    """
    rows = DiffusionModel.objects.usable_by(user).select_related("owner")
    rows = rows.filter(architecture__in=MODES["text-to-image"].architectures)
    return list(rows if with_masks else rows.exclude(is_inpainting=True))


def named(user: User, models: list[DiffusionModel]) -> list[tuple[str, DiffusionModel]]:
    """Return each model with the text that means it and no other: its name, else its id.

    One's own model comes before a shared one of the same name, as everywhere.
    """
    by_name: defaultdict[str, list[DiffusionModel]] = defaultdict(list)
    for model in models:
        by_name[model.name].append(model)
    meant = {}
    for name, bearers in by_name.items():
        candidates = [model for model in bearers if model.owner_id == user.pk] or bearers
        if len(candidates) == 1:
            meant[candidates[0].pk] = name
    return [(meant.get(model.pk, str(model.pk)), model) for model in models]


def best_base(user: User) -> DiffusionModel:
    """Return the base model that is used when none is named: the largest that is ready.

    Raises:
        Problem: `model_unavailable`: there is none.
    """
    bases = [model for model in usable_models(user) if model.type == DiffusionModel.Type.BASE]
    if not bases:
        message = _("No model of this site can paint at the moment.")
        raise Problem("model_unavailable", message, status=409, fields={"model": [message]})
    return max(bases, key=lambda model: (model.size_bytes, -model.pk))
