"""Pages about models: the list, and one model.

They only show; every change goes through the REST API, which calls the same services. What
trainings and pictures tell about a model they put into its page themselves, so that nothing here
knows them.
"""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext_lazy as _

from models_app.filters import ModelFilter
from models_app.layouts import kohya_entry
from models_app.models import DiffusionModel
from studio_project.api import get_visible
from studio_project.paging import page_by_key

CARDS = 24
SETTING_WORDS = {
    "width": _("Width"),
    "height": _("Height"),
    "num_inference_steps": _("Steps"),
    "guidance_scale": _("Guidance"),
    "scheduler": _("Sampler"),
    "clip_skip": _("Clip skip"),
    "num_frames": _("Frames"),
    "fps": _("Frames per second"),
    "motion_bucket_id": _("Motion"),
    "noise_aug_strength": _("Added noise"),
    "decode_chunk_size": _("Frames decoded at once"),
}
FILTERS = ("category", "owner", "type", "search")


@login_required
def model_list(request: HttpRequest) -> HttpResponse:
    """Show the models the user may see, newest first; `?part=cards` is the cards alone."""
    rows = DiffusionModel.objects.visible_to(request.user).select_related("owner", "base_model")
    found = ModelFilter(request.GET, queryset=rows, request=request)
    models, following = page_by_key(
        request, found.qs if found.is_valid() else rows, CARDS, part="cards"
    )
    context = {
        "models": models,
        "next": following,
        "chosen": {name: request.GET.get(name, "") for name in FILTERS},
        "is_filtered": any(request.GET.get(name) for name in FILTERS),
    }
    part = request.GET.get("part") == "cards"
    return render(
        request, f"models_app/{'_model_cards.html' if part else 'model_list.html'}", context
    )


@login_required
def model_detail(request: HttpRequest, pk: str) -> HttpResponse:
    """Show one model: what it is, where it came from, what can be done with it."""
    rows = DiffusionModel.objects.select_related("owner", "base_model")
    model = get_visible(rows, request.user, pk)
    context = {
        "model": model,
        "settings": [
            (words, model.default_settings[name])
            for name, words in SETTING_WORDS.items()
            if name in model.default_settings
        ],
        "kohya": kohya_entry(model.files),
        "can_download": model.is_file or model.type != DiffusionModel.Type.BASE,
        "can_edit": DiffusionModel.objects.editable_by(request.user).filter(pk=model.pk).exists(),
    }
    return render(request, "models_app/model_detail.html", context)
