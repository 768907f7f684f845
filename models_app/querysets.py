"""Which models somebody may see, use and change, and how a model comes to be."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, cast

from django.contrib.auth.models import AnonymousUser
from django.db.models import F, Q
from django.utils import timezone

from models_app.layouts import SUFFIX, possible_paths
from studio_project.models import OwnedQuerySet, User

if TYPE_CHECKING:
    from models_app.models import DiffusionModel

KEEP_DELETED = timedelta(hours=24)
# What changes a base model and is nothing without it; the same as `DiffusionModel.is_adapter`.
ADAPTERS = Q(type="lora") | Q(type="dreambooth", path__endswith=SUFFIX)


class DiffusionModelQuerySet(OwnedQuerySet):
    """Models by who may see, use and change them."""

    def live(self) -> Self:
        """Keep what was not deleted."""
        return self.filter(deleted_at=None)

    def visible_to(self, user: User | AnonymousUser) -> Self:
        """Keep what this user may see: their own and what is shared."""
        return super().visible_to(user).live()

    def editable_by(self, user: User | AnonymousUser) -> Self:
        """Keep what this user may change."""
        return super().editable_by(user).live()

    def usable_by(self, user: User | AnonymousUser) -> Self:
        """Keep what this user may generate with or train on right now.

        An adapter needs its base, so the base must be usable too. A whole network that was
        trained on it holds all of it.
        """
        ready = {"is_active": True, "availability": "ready"}
        bases = type(self)(self.model).visible_to(user).filter(**ready)
        return self.visible_to(user).filter(
            ~ADAPTERS | Q(base_model__in=bases.values("pk")), **ready
        )

    def adapters(self) -> Self:
        """Keep what is painted with on top of a base model."""
        return self.filter(ADAPTERS)

    def building_on(self, base: DiffusionModel) -> Self:
        """Keep what cannot be used without this base: the adapters that were trained on it."""
        return self.live().adapters().filter(base_model=base)

    def families(self, owner: User | None, dataset_name: str, base_model: DiffusionModel) -> Self:
        """Keep one user's trainings of one dataset on one base, deleted ones too."""
        return self.filter(owner=owner, source_dataset_name=dataset_name, base_model=base_model)

    def needed_keys(self, keys: Collection[str]) -> set[str]:
        """Return which of these storage keys a model needs; the sweeper removes others.

        A deleted model keeps its files for a day, so that what is running with them can end.
        """
        rows: Any = self.filter(
            Q(path__in=possible_paths(keys)) | Q(thumbnail_key__in=keys),
            Q(deleted_at=None) | Q(deleted_at__gt=timezone.now() - KEEP_DELETED),
        )
        return {key for model in rows for key in model.storage_keys()}.intersection(keys)

    def register(self, **fields: Any) -> DiffusionModel:
        """Make a model whose files are in place, and tell everyone who may see it (on commit).

        Call it inside the transaction that finishes the work. What is left out comes from the base:
        architecture, category and default settings. Without a title, a training of a dataset is
        called after it and numbered (``Fox v2``), anything else after its name.

        Args:
            fields: Columns of `DiffusionModel`.

        Raises:
            ValueError: The name consists of digits only, which would read as an id.
        """
        if str(fields["name"]).isdigit():
            raise ValueError(f"a model cannot be called {fields['name']!r}: that reads as an id")
        base: DiffusionModel | None = fields.get("base_model")
        owner: User | None = fields.get("owner")
        if base is not None:
            fields.setdefault("architecture", base.architecture)
            fields.setdefault("category", base.category)
            fields.setdefault("default_settings", dict(base.default_settings))
        dataset_name = fields.get("source_dataset_name", "")
        if not fields.get("title"):
            fields["title"] = fields["name"]
            if base is not None and dataset_name:
                number = self.families(owner, dataset_name, base).count() + 1
                fields["title"] = f"{dataset_name[:180]} v{number}"
        model = cast("DiffusionModel", self.create(**fields))
        if owner is not None and model.size_bytes:
            User.objects.filter(pk=owner.pk).update(
                stored_bytes=F("stored_bytes") + model.size_bytes
            )
        model.publish("registered")
        return model
