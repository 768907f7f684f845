"""Pages about training: the list, the form for a new one, and one training.

They only show; every change goes through the REST API, which calls the same services.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from django.contrib.auth.decorators import login_required
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import render
from django.utils.translation import gettext as _

from datasets_app.models import Dataset
from models_app.models import DiffusionModel
from studio_project.api import get_visible, signed_in, whole_number
from studio_project.models import User
from studio_project.paging import page_by_key
from studio_project.waiting import Waiting
from training_app import estimates
from training_app.chosen import TRAINABLE_ARCHITECTURES
from training_app.forms import METHOD_CARDS, PRESETS, applies, expert_groups, parameter_field
from training_app.manifest import passes_range, repeats_of
from training_app.models import TrainingJob, TrainingSample
from training_app.texts import config_sentence, note_sentence
from training_app.trainer.config import FIELDS, ConfigError, resolve_config
from training_app.trainer.presets import TUNES

ROWS = 30
DATASET_CARDS = 8
DATASETS_LISTED = 500
FEW_PICTURES = 5
STATUS_FILTERS = {
    "running": ("running", "queued", "paused", "pending"),
    "completed": ("completed",),
    "failed": ("failed", "canceled"),
}


@login_required
def training_list(request: HttpRequest) -> HttpResponse:
    """Show the user's trainings, newest first.

    `?part=rows` is the rows alone; `?part=origin&model=…` says where a model came from.
    """
    rows = TrainingJob.objects.visible_to(signed_in(request)).select_related("output_model")
    rows = rows.defer("manifest", "log_tail")
    if request.GET.get("part") == "origin":
        return _origin(request, rows)
    status = request.GET.get("status", "")
    if status in STATUS_FILTERS:
        rows = rows.filter(status__in=STATUS_FILTERS[status])
    trainings, following = page_by_key(request, rows, ROWS, part="rows")
    waiting = Waiting()
    for job in trainings:
        job.place = waiting.position(job)  # type: ignore[attr-defined]
        job.waiting_reason = waiting.reason(job)
    context = {"trainings": trainings, "next": following, "status": status}
    part = request.GET.get("part") == "rows"
    name = "_training_rows.html" if part else "training_list.html"
    return render(request, f"training_app/{name}", context)


def _origin(request: HttpRequest, rows: QuerySet[TrainingJob]) -> HttpResponse:
    """Show which training made a model, also of a checkpoint, to the training's owner."""
    model = whole_number(request.GET.get("model", ""))
    made = Q(output_model_id=model) | Q(checkpoints__model_id=model)
    found = rows.none() if model is None else rows.filter(made)
    job = found.select_related("dataset").first()
    checkpoint = job.checkpoints.filter(model_id=model).first() if job else None
    painted = job.samples.order_by("-step") if job else TrainingSample.objects.none()
    last = (painted.filter(step__lte=checkpoint.step) if checkpoint else painted).first()
    samples = job.samples.filter(step=last.step) if job and last else []
    return render(request, "training_app/_origin.html", {"job": job, "samples": samples})


# --- a new one ----------------------------------------------------------------------------------
@login_required
def training_new(request: HttpRequest) -> HttpResponse:
    """Show the form; `?part=review` says what the choices in the address come to."""
    user: User = signed_in(request)  # type: ignore[assignment]
    if request.GET.get("part") == "review":
        return render(request, "training_app/_review.html", _review(user, request.GET))
    like = _like(user, request.GET.get("like", ""))
    datasets = list(_datasets(user)[:DATASETS_LISTED])
    datasets.sort(key=lambda row: not row.num_items)  # those without pictures cannot be chosen
    wanted = request.GET.get("dataset", "") or (str(like.dataset_id) if like else "")
    chosen = next((row for row in datasets if str(row.pk) == wanted), None)
    if chosen is None:
        chosen = next((row for row in datasets if row.num_items), None)
    cards = datasets[:DATASET_CARDS]
    if chosen is not None and chosen not in cards:
        cards = [chosen, *cards[:-1]]
    base = request.GET.get("base", "") or (str(like.base_model_id or "") if like else "")
    context = {
        "cards": cards,
        "others": [row for row in datasets if row not in cards],
        "chosen": chosen,
        "base": base if whole_number(base) is not None else _best_base(user),
        "like": like,
        "asked_json": json.dumps(like.config if like else {}),
        "methods": METHOD_CARDS,
        "presets": PRESETS,
        "groups": expert_groups(),
        "few": FEW_PICTURES,
        "architectures": " ".join(sorted(TRAINABLE_ARCHITECTURES)),
    }
    return render(request, "training_app/training_new.html", context)


def _datasets(user: User) -> QuerySet[Dataset]:
    """Return what the user may train on, with how many pictures have no caption."""
    silent = Q(images__deleted_at=None, images__caption="", images__isnull=False)
    return (
        Dataset.objects.visible_to(user)
        .with_cover()
        .select_related("owner")
        .annotate(uncaptioned=Count("images", filter=silent))
        .order_by("-created_at", "-pk")
    )


def _like(user: User, pk: str) -> TrainingJob | None:
    """Return the training whose choices the form starts from."""
    try:
        key = uuid.UUID(pk)
    except ValueError:
        return None
    return TrainingJob.objects.visible_to(user).filter(pk=key).first()


def _best_base(user: User) -> str:
    """Return the id of the base that is chosen beforehand: the largest that is ready here."""
    usable = DiffusionModel.objects.usable_by(user).filter(
        type=DiffusionModel.Type.BASE,
        architecture__in=TRAINABLE_ARCHITECTURES,
        is_inpainting=False,
    )
    best = usable.order_by("-size_bytes", "-created_at", "-pk").first()
    return str(best.pk) if best else ""


def _review(user: User, chosen: QueryDict) -> dict[str, Any]:
    """Resolve what the form holds: the settings, what they mean, and what is in the way."""
    dataset = _visible(_datasets(user), chosen.get("dataset_id", ""))
    usable = DiffusionModel.objects.usable_by(user).filter(
        type=DiffusionModel.Type.BASE, is_inpainting=False
    )
    base = _visible(usable, chosen.get("base_model_id", ""))
    context: dict[str, Any] = {"dataset": dataset, "base": base, "problems": []}
    if dataset is None or base is None:
        return context
    method = chosen.get("type", TrainingJob.Type.LORA)
    try:
        config = resolve_config(
            asked_config(chosen, method),
            architecture=base.architecture,
            method=method,
            base_defaults=base.default_settings,
            num_images=dataset.num_items,
        )
    except ConfigError as error:
        label = parameter_field(error.field).label if error.field in FIELDS else ""
        return {**context, "error": error, "label": label, "sentence": config_sentence(error)}
    if dataset.uncaptioned and not config.trigger_word:
        context["problems"].append(
            _("Some pictures have no caption. Write captions, or give a trigger word.")
        )
    cost = estimates.cost_of(base, config.as_dict(), method)
    return {
        **context,
        "config": config,
        "method": TrainingJob.Type(method).label,
        "resolved_json": json.dumps(config.as_dict()),
        "passes": passes_range(config, repeats_of(None, dataset)),
        "cost": cost,
        "seconds": cost.seconds(config.max_train_steps),
    }


def _visible(rows: QuerySet[Any], pk: str) -> Any:
    return rows.filter(pk=whole_number(pk)).first()


def asked_config(values: Mapping[str, str], method: str) -> dict[str, Any]:
    """Turn the form's texts into settings.

    Empty ones are left to the defaults, and those that the method does not know are left out.
    """
    asked: dict[str, Any] = {}
    tune = values.get("tune") or TUNES.get(method, ("adapters",))[0]
    for name, field in FIELDS.items():
        text = values.get(name, "").strip()
        if not text or not applies(name, method, tune):
            continue
        if field.type in ("int", "float"):
            asked[name] = _number(text)
        elif field.type == "bool":
            asked[name] = text == "true"
        elif "maximum_count" in field.metadata:
            asked[name] = [line for line in text.splitlines() if line.strip()]
        else:
            asked[name] = text
    return asked


def _number(text: str) -> Any:
    """Return a number, or the text itself, which the configuration then refuses by name."""
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else value


# --- one ----------------------------------------------------------------------------------------
@login_required
def training_detail(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """Show one training; `?part=head`, `timeline` and `checkpoints` are those alone."""
    rows = TrainingJob.objects.select_related("output_model", "dataset", "base_model", "worker")
    job = get_visible(rows.defer("manifest"), signed_in(request), pk)
    waiting = Waiting()
    notes = [(note, note_sentence(note.code, note.params)) for note in job.notes.all()]
    context = {
        "job": job,
        "place": waiting.position(job),
        "waiting_reason": waiting.reason(job),
        "error": job.error(),
        "model": _product(job, request),
        "notes": notes,
        "parameters": _parameters(job),
        "checkpoints": _checkpoints(job),
        "more_steps": max(1, job.total_steps // 2) if _can_be_extended(job) else 0,
    }
    names = {
        "head": "_head.html",
        "timeline": "_timeline.html",
        "checkpoints": "_checkpoints.html",
    }
    part = request.GET.get("part", "")
    return render(request, f"training_app/{names.get(part, 'training_detail.html')}", context)


def _checkpoints(job: TrainingJob) -> list[dict[str, Any]]:
    """Return the checkpoints, newest first, each with the newest samples painted up to it."""
    samples: dict[int, list[TrainingSample]] = {}
    for sample in job.samples.all():
        samples.setdefault(sample.step, []).append(sample)
    rows = []
    for checkpoint in job.checkpoints.select_related("model"):
        checkpoint.job = job  # what it asks of its training is here
        painted_at = max((step for step in samples if step <= checkpoint.step), default=None)
        rows.append(
            {
                "checkpoint": checkpoint,
                "painted_at": painted_at,
                "samples": samples.get(painted_at or 0, []),
                "model": checkpoint.model,
                "is_result": checkpoint.model_id is not None
                and checkpoint.model_id == job.output_model_id,
            }
        )
    return rows


def _can_be_extended(job: TrainingJob) -> bool:
    return job.status == TrainingJob.Status.COMPLETED and job.checkpoints_for_resume().exists()


def _product(job: TrainingJob, request: HttpRequest) -> DiffusionModel | None:
    """Return the model that came out, while it exists and may be seen."""
    if job.output_model_id is None:
        return None
    seen = DiffusionModel.objects.visible_to(signed_in(request)).select_related("base_model")
    return seen.filter(pk=job.output_model_id).first()


def _parameters(job: TrainingJob) -> list[tuple[Any, list[tuple[Any, Any]]]]:
    """Return the resolved settings by group, under the words of the form."""
    resolved = job.resolved_config
    tune = str(resolved.get("tune", ""))
    groups: list[tuple[Any, list[tuple[Any, Any]]]] = []
    for title, fields in expert_groups():
        rows = []
        for field in fields:
            value = resolved.get(field.name)
            if not applies(field.name, job.type, tune):
                continue
            if field.kind == "choice":
                value = dict(field.choices).get(str(value), value)
            elif field.kind == "flag":
                value = _("yes") if value else _("no")
            elif field.kind == "texts":
                value = ", ".join(value or []) or _("from the captions")
            elif isinstance(value, float) and value.is_integer():
                value = int(value)
            rows.append((field, value))
        if rows:
            groups.append((title, rows))
    return groups
