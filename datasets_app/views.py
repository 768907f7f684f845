"""Pages about datasets: the list, and one dataset with its pictures and captions.

They only show; every change goes through the REST API, which calls the same services.
"""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from datasets_app.models import Dataset, DatasetImage
from studio_project.api import get_visible, signed_in
from studio_project.paging import page_by_key

CARDS = 24
PICTURES = 60
# Below this side a picture is soft for the large base models; the practice model is smaller.
SMALL_SIDE = 512
WITHOUT_CAPTION = Q(caption="")
SMALL = Q(width__lt=SMALL_SIDE) | Q(height__lt=SMALL_SIDE)


@login_required
def dataset_list(request: HttpRequest) -> HttpResponse:
    """Show the datasets the user may see, newest first; `?part=cards` is the cards alone."""
    rows = Dataset.objects.visible_to(signed_in(request)).with_cover().select_related("owner")
    whose = request.GET.get("whose", "")
    if whose == "mine":
        rows = rows.filter(owner=signed_in(request))
    elif whose == "shared":
        rows = rows.exclude(owner=signed_in(request))
    search = request.GET.get("search", "").strip()
    if search:
        rows = rows.filter(name__icontains=search)
    datasets, following = page_by_key(request, rows, CARDS, part="cards")
    context = {"datasets": datasets, "next": following, "whose": whose, "search": search}
    part = request.GET.get("part") == "cards"
    name = "_dataset_cards.html" if part else "dataset_list.html"
    return render(request, f"datasets_app/{name}", context)


@login_required
def dataset_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """Show one dataset; `?part=pictures` is the pictures alone, `?part=counts` the counts alone."""
    dataset = get_visible(Dataset.objects.select_related("owner"), signed_in(request), pk)
    pictures = DatasetImage.objects.live().filter(dataset=dataset)
    show = request.GET.get("show", "")
    part = request.GET.get("part", "")
    context = {
        "dataset": dataset,
        "show": show,
        "can_edit": Dataset.objects.editable_by(signed_in(request)).filter(pk=pk).exists(),
        "small_side": SMALL_SIDE,
        "caption_length": DatasetImage.CAPTION_LENGTH,
        "max_repeats": DatasetImage.MAX_REPEATS,
    }
    if part != "pictures":
        context["counts"] = pictures.aggregate(
            all=Count("pk"),
            uncaptioned=Count("pk", filter=WITHOUT_CAPTION),
            small=Count("pk", filter=SMALL),
        )
    if part != "counts":
        chosen = {"uncaptioned": WITHOUT_CAPTION, "small": SMALL}.get(show)
        rows = pictures.filter(chosen) if chosen else pictures
        context["pictures"], context["next"] = page_by_key(request, rows, PICTURES, part="pictures")
    names = {"pictures": "_pictures.html", "counts": "_counts.html"}
    return render(request, f"datasets_app/{names.get(part, 'dataset_detail.html')}", context)
