"""What lists of datasets and pictures can be narrowed to."""

from __future__ import annotations

from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django_filters import rest_framework as filters

from datasets_app.models import Dataset, DatasetImage
from studio_project.models import Visibility

MAX_WORDS = 10


class DatasetFilter(filters.FilterSet):
    """Filters by whose a dataset is, what it holds and what it is called."""

    request: HttpRequest

    search = filters.CharFilter(
        method="keep_matching", max_length=200, label=_("Words of the name.")
    )
    owner = filters.ChoiceFilter(choices=[("me", _("me"))], method="keep_mine")
    type = filters.ChoiceFilter(choices=Dataset.Type.choices)
    visibility = filters.ChoiceFilter(choices=Visibility.choices)
    created_after = filters.IsoDateTimeFilter(field_name="created_at", lookup_expr="gt")

    class Meta:
        model = Dataset
        fields: list[str] = []

    def keep_matching(self, rows: QuerySet, name: str, value: str) -> QuerySet:
        """Keep datasets in whose name every word occurs."""
        for word in value.split()[:MAX_WORDS]:
            rows = rows.filter(name__icontains=word)
        return rows

    def keep_mine(self, rows: QuerySet, name: str, value: str) -> QuerySet:
        """Keep one's own datasets."""
        return rows.filter(owner=self.request.user)


class DatasetImageFilter(filters.FilterSet):
    """Filters by what is said of a picture."""

    search = filters.CharFilter(
        method="keep_matching", max_length=200, label=_("Words of the caption or the name.")
    )
    captioned = filters.BooleanFilter(method="keep_captioned", label=_("With or without caption."))
    created_after = filters.IsoDateTimeFilter(field_name="created_at", lookup_expr="gt")

    class Meta:
        model = DatasetImage
        fields: list[str] = []

    def keep_matching(self, rows: QuerySet, name: str, value: str) -> QuerySet:
        """Keep pictures in whose caption or name every word occurs."""
        for word in value.split()[:MAX_WORDS]:
            rows = rows.filter(Q(caption__icontains=word) | Q(original_name__icontains=word))
        return rows

    def keep_captioned(self, rows: QuerySet, name: str, value: bool) -> QuerySet:
        """Keep pictures that have a caption, or those that have none."""
        return rows.exclude(caption="") if value else rows.filter(caption="")
