"""Pages about generating: text to image, the user's pictures, and one picture.

They only show; every change goes through the REST API, which calls the same services.
"""

from __future__ import annotations

import json
from typing import Any

from django.contrib.auth.decorators import login_required
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _

from datasets_app.models import DatasetImage
from generation_app.engine.request import SEED_COUNT, Limits
from generation_app.engine.vocabulary import SCHEDULERS
from generation_app.forms import (
    defaults_by_architecture,
    format_field,
    hires_fields,
    quality_fields,
    shapes,
    size_fields,
    strength_field,
    video_fields,
)
from generation_app.models import GeneratedImage
from generation_app.notes import notes_of
from models_app.models import DiffusionModel
from studio_project.api import get_visible, signed_in, whole_number
from studio_project.models import User
from studio_project.paging import page_by_key

TILES = 60
MADE_WITH = 24


@login_required
def text_to_image(request: HttpRequest) -> HttpResponse:
    """Show the generate page.

    `?model=`, `?mode=`, `?image=` (to make again) and `?job=` say what it opens with, `?from=` and
    `?dataset_image=` which picture it starts from.
    """
    user: User = signed_in(request)  # type: ignore[assignment]
    schedulers = {name: words.title for name, words in SCHEDULERS.items()}
    limits = Limits()
    context = {
        "sizes": size_fields(user),
        "shapes": shapes(),
        "format": format_field(),
        "qualities": quality_fields(),
        "strength": strength_field(),
        "hires": hires_fields(),
        "motion": video_fields(),
        "mode": request.GET.get("mode", ""),
        "start_json": json.dumps(_start_of(request, user)),
        "defaults_json": json.dumps(defaults_by_architecture()),
        "schedulers_json": json.dumps(schedulers),
        "model": request.GET.get("model", ""),
        "image": request.GET.get("image", ""),
        "job": request.GET.get("job", ""),
        "limits": limits,
        "largest_seed": SEED_COUNT - 1,
    }
    return render(request, "generation_app/text_to_image.html", context)


def _start_of(request: HttpRequest, user: User) -> dict[str, Any] | None:
    """Return the picture that the page shall start from, if this user may see it."""
    image, shown = request.GET.get("from", ""), request.GET.get("dataset_image", "")
    if (pk := whole_number(image)) is not None:
        made = GeneratedImage.objects.visible_to(user).filter(pk=pk).first()
        if made is not None and not made.is_video:
            return {
                "reference": {"image_id": made.pk},
                "url": reverse("image-file", args=[made.pk]),
                "width": made.width,
                "height": made.height,
            }
    if (pk := whole_number(shown)) is not None:
        picture = DatasetImage.objects.visible_to(user).filter(pk=pk).first()
        if picture is not None:
            return {
                "reference": {"dataset_image_id": picture.pk},
                "url": reverse("dataset-image-file", args=[picture.dataset_id, picture.pk]),
                "width": picture.width,
                "height": picture.height,
            }
    return None


@login_required
def image_list(request: HttpRequest) -> HttpResponse:
    """Show the user's pictures, newest first.

    `?part=tiles` is the tiles alone; with `model` those that were made with it.
    """
    rows = GeneratedImage.objects.visible_to(signed_in(request)).select_related("job")
    search = request.GET.get("search", "").strip()
    if search:
        rows = rows.filter(
            Q(parameters__prompt__icontains=search) | Q(job__model_title__icontains=search)
        )
    model = request.GET.get("model", "")
    if model:
        number = whole_number(model)
        rows = rows.none() if number is None else rows.filter(job__model_id=number)
    images, following = page_by_key(request, rows, MADE_WITH if model else TILES, part="tiles")
    context = {"images": images, "next": following, "search": search, "of_model": model}
    part = request.GET.get("part") == "tiles"
    name = "_tiles.html" if part else "image_list.html"
    return render(request, f"generation_app/{name}", context)


@login_required
def image_detail(request: HttpRequest, pk: str) -> HttpResponse:
    """Show one picture with its parameters; `?part=panel` is the side panel's content."""
    image = get_visible(GeneratedImage.objects.select_related("job"), signed_in(request), pk)
    rows = GeneratedImage.objects.visible_to(signed_in(request))
    newer = rows.filter(_beside(image, newer=True)).order_by("created_at", "pk").first()
    older = rows.filter(_beside(image, newer=False)).order_by("-created_at", "-pk").first()
    model = (
        DiffusionModel.objects.visible_to(signed_in(request)).filter(pk=image.job.model_id).first()
    )
    context = {
        "image": image,
        "model": model,
        "facts": facts_of(image),
        "prompt": image.parameters.get("prompt", ""),
        "negative_prompt": image.parameters.get("negative_prompt", ""),
        "newer": newer,
        "older": older,
    }
    part = request.GET.get("part") == "panel"
    name = "_panel.html" if part else "image_detail.html"
    return render(request, f"generation_app/{name}", context)


def _beside(image: GeneratedImage, *, newer: bool) -> Q:
    """Say which pictures come after, or before, this one in the order of the grid."""
    how = "gt" if newer else "lt"
    return Q(**{f"created_at__{how}": image.created_at}) | Q(
        created_at=image.created_at, **{f"pk__{how}": image.pk}
    )


def _enlarged(given: dict[str, Any]) -> str | None:
    scale = given.get("hires_scale") or 1
    return f"{scale:g} ×" if scale > 1 else None


def facts_of(image: GeneratedImage) -> list[tuple[Any, Any]]:
    """Return the parameters a reader wants to see, with their words."""
    given = image.parameters
    scheduler = SCHEDULERS.get(str(given.get("scheduler", "")))
    loras = ", ".join(
        f"{lora.get('title') or lora.get('name')} × {lora.get('weight', 1):g}"
        for lora in given.get("loras") or []
    )
    frames, fps = given.get("num_frames"), given.get("fps")
    facts = [
        (_("Size"), f"{image.width} × {image.height}"),
        (
            _("Frames"),
            frames and _("%(frames)s at %(fps)s a second") % {"frames": frames, "fps": fps},
        ),
        (_("Motion"), given.get("motion_bucket_id")),
        (_("Seed"), str(image.seed)),
        (_("Steps"), given.get("num_inference_steps")),
        (_("Guidance"), given.get("guidance_scale")),
        (_("Sampler"), scheduler.title if scheduler else given.get("scheduler")),
        (_("Strength"), given.get("strength")),
        (_("Enlarged by"), _enlarged(given)),
        (_("LoRAs"), loras),
        (_("Clip skip"), given.get("clip_skip") or None),
        (_("Note"), " ".join(note["message"] for note in notes_of(image.job))),
    ]
    return [(label, value) for label, value in facts if value not in (None, "")]
