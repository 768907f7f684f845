"""What lists of models can be narrowed to, in the API and on the page."""

from __future__ import annotations

import json

from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django_filters import rest_framework as filters

from models_app.models import DiffusionModel


class ModelFilter(filters.FilterSet):
    """Filters by what a model is, whose it is and what it is called."""

    request: HttpRequest

    type = filters.MultipleChoiceFilter(choices=DiffusionModel.Type.choices)
    category = filters.ChoiceFilter(choices=DiffusionModel.Category.choices)
    architecture = filters.ChoiceFilter(choices=DiffusionModel.Architecture.choices)
    availability = filters.ChoiceFilter(choices=DiffusionModel.Availability.choices)
    status = filters.ChoiceFilter(
        field_name="availability",
        choices=DiffusionModel.Availability.choices,
        label=_("The same as availability."),
    )
    is_active = filters.BooleanFilter()
    usable = filters.BooleanFilter(
        method="keep_usable", label=_("Ready, active and with a usable base.")
    )
    is_adapter = filters.BooleanFilter(
        method="keep_adapters", label=_("What is used on top of a base model, or what is not.")
    )
    is_inpainting = filters.BooleanFilter(
        label=_("What paints parts of pictures only, or what does not.")
    )
    base_model = filters.NumberFilter(
        field_name="base_model_id",
        label=_("Id of the base model."),
        min_value=1,
        max_value=2**63 - 1,
        decimal_places=0,
    )
    owner = filters.ChoiceFilter(
        choices=[("me", _("me")), ("site", _("the site"))], method="keep_owner"
    )
    visibility = filters.ChoiceFilter(choices=[("private", _("Private")), ("shared", _("Shared"))])
    search = filters.CharFilter(
        method="keep_matching", max_length=200, label=_("Words of title, name or trigger words.")
    )
    created_after = filters.IsoDateTimeFilter(field_name="created_at", lookup_expr="gt")

    class Meta:
        model = DiffusionModel
        fields: list[str] = []

    def keep_usable(self, rows: QuerySet, name: str, value: bool) -> QuerySet:
        """Keep what can be used right now, or what cannot."""
        usable = DiffusionModel.objects.usable_by(self.request.user).values("pk")
        return rows.filter(pk__in=usable) if value else rows.exclude(pk__in=usable)

    def keep_adapters(self, rows: QuerySet, name: str, value: bool) -> QuerySet:
        """Keep adapters, or what paints by itself."""
        adapters = DiffusionModel.objects.adapters().values("pk")
        return rows.filter(pk__in=adapters) if value else rows.exclude(pk__in=adapters)

    def keep_owner(self, rows: QuerySet, name: str, value: str) -> QuerySet:
        """Keep one's own models, or the site's."""
        return rows.filter(owner=self.request.user if value == "me" else None)

    def keep_matching(self, rows: QuerySet, name: str, value: str) -> QuerySet:
        """Keep models in which every word occurs."""
        for word in value.split()[:10]:
            places = Q(title__icontains=word) | Q(name__icontains=word)
            places |= Q(description__icontains=word) | Q(trigger_words__icontains=word)
            # SQLite keeps JSON as text in which letters beyond ASCII are escaped.
            places |= Q(trigger_words__icontains=json.dumps(word)[1:-1])
            rows = rows.filter(places)
        return rows
