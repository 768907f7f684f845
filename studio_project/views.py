"""Pages that belong to the whole site: home, queue, account, and the two switches of its frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST

from datasets_app.models import Dataset
from generation_app.models import GeneratedImage
from models_app.models import DiffusionModel
from studio_project.api import signed_in
from studio_project.jobs import Job, job_classes
from studio_project.models import ApiToken, User, Worker
from studio_project.waiting import Waiting, seen_workers
from training_app.models import TrainingJob

LIVE = (Job.Status.PENDING, Job.Status.QUEUED, Job.Status.RUNNING, Job.Status.PAUSED)
SHOWN_OTHERS = 50
FINISHED_PICTURES = 12
RECENT_TRAININGS = 3


@dataclass(frozen=True)
class Steps:
    """How far someone has come on the way from pictures to a picture of their own.

    Attributes:
        dataset: Their newest dataset.
        training: Their newest training.
        model: Their newest trained model.
        has_image: Whether they painted anything yet.
    """

    dataset: Dataset | None
    training: TrainingJob | None
    model: DiffusionModel | None
    has_image: bool

    @property
    def now(self) -> str:
        """The step that is next: `data`, `train`, `generate`, or `done`."""
        if self.model is None and self.training is None:
            return "data" if self.dataset is None or not self.dataset.num_items else "train"
        if self.model is None:
            return "train"
        return "done" if self.has_image else "generate"


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Say what is wrong with a request; a wrong host is named with the setting that allows it."""
    context = {"host": request.META.get("HTTP_HOST", "")}
    if not isinstance(exception, DisallowedHost):
        context = {}
    return HttpResponseBadRequest(render_to_string("400.html", context))


@login_required
def home(request: HttpRequest) -> HttpResponse:
    """Show the next sensible step, and what runs and what has just finished."""
    user = signed_in(request)
    trained = (
        DiffusionModel.objects.usable_by(user)
        .filter(owner=user)
        .select_related("owner", "base_model")
    )
    images = list(GeneratedImage.objects.visible_to(user)[:FINISHED_PICTURES])
    trainings = list(TrainingJob.objects.visible_to(user)[:RECENT_TRAININGS])
    datasets = list(
        Dataset.objects.visible_to(user).filter(owner=user).with_cover()[:RECENT_TRAININGS]
    )
    filled = [dataset for dataset in datasets if dataset.num_items]
    steps = Steps(
        dataset=next(iter(filled or datasets), None),
        training=next(iter(trainings), None),
        model=trained.order_by("-created_at", "-id").first(),
        has_image=bool(images),
    )
    context = {
        "steps": steps,
        "images": images,
        "datasets": datasets,
        "models": list(trained.order_by("-created_at", "-id")[:RECENT_TRAININGS]),
        "live": _my_jobs(user),
    }
    return render(request, "studio/home.html", context)


def _my_jobs(user: User) -> list[Job]:
    """Return what the user has on the way, running first, with places in the queue."""
    waiting = Waiting()
    rows: list[Any] = []
    for job_class in job_classes():
        live: list[Any] = list(job_class.objects.visible_to(user).filter(status__in=LIVE))
        for job in live:
            job.place = waiting.position(job)
            job.waiting_reason = waiting.reason(job)
            job.cancel_url = _cancel_url(job)
            rows.append(job)
    order = {status: index for index, status in enumerate(("running", "queued", "paused"))}
    return sorted(rows, key=lambda job: (order.get(job.status, 9), job.place or 0, job.created_at))


def _cancel_url(job: Job) -> str:
    name = "training-cancel" if job.noun == "training_job" else "generation-cancel"
    return reverse(name, args=[job.pk])


@login_required
def queue(request: HttpRequest) -> HttpResponse:
    """Show my jobs in order, others' without their contents, and the workers.

    `?part=strip` is the live strip alone, `?part=lists` the lists alone.
    """
    if request.GET.get("part") == "strip":
        return render(request, "studio/_strip.html")
    user = signed_in(request)
    context = {
        "mine": _my_jobs(user),
        "others": _others(user),
        "workers": _workers(user),
    }
    part = request.GET.get("part") == "lists"
    return render(request, "studio/_queue_lists.html" if part else "studio/queue.html", context)


def _others(user: User) -> list[dict[str, Any]]:
    """Return other people's live jobs as bars: kind, state and progress, and nothing else."""
    rows: list[dict[str, Any]] = []
    for job_class in job_classes():
        live = job_class.objects.filter(status__in=("queued", "running")).exclude(owner=user)
        fields = live.order_by("-status", "queued_at").values("status", "progress")[:SHOWN_OTHERS]
        rows += [{**row, "noun": job_class.noun} for row in fields]
    return sorted(rows, key=lambda row: row["status"] != "running")[:SHOWN_OTHERS]


def _workers(user: User) -> list[Worker]:
    """Return the living workers; of what is warm only the models this user may see."""
    workers = seen_workers()
    names = {name for worker in workers for name in worker.warm}
    seen = DiffusionModel.objects.visible_to(user).filter(name__in=names)
    titles = {model.name: model.shown_title for model in seen}
    for worker in workers:
        worker.warm = [titles[name] for name in worker.warm if name in titles]
    return workers


@login_required
def account_settings(request: HttpRequest) -> HttpResponse:
    """Show language, theme, storage and the API tokens of the signed-in user."""
    user = signed_in(request)
    tokens = ApiToken.objects.filter(
        owner=user, revoked_at=None, expires_at__gt=timezone.now()
    ).order_by("-created_at", "-id")
    context = {"tokens": tokens, "themes": User.Theme.choices, "languages": settings.LANGUAGES}
    return render(request, "studio/account.html", context)


@require_POST
def set_language(request: HttpRequest) -> HttpResponse:
    """Keep the language: with the account when signed in, and in a cookie for the next visit."""
    language = request.POST.get("language", "")
    response = redirect(_next(request))
    if language not in dict(settings.LANGUAGES):
        return response
    if request.user.is_authenticated:
        User.objects.filter(pk=signed_in(request).pk).update(language=language)
    translation.activate(language)
    response.set_cookie(
        settings.LANGUAGE_COOKIE_NAME,
        language,
        max_age=365 * 24 * 3600,
        samesite=settings.LANGUAGE_COOKIE_SAMESITE,
        secure=settings.SESSION_COOKIE_SECURE,
    )
    return response


@require_POST
@login_required
def set_theme(request: HttpRequest) -> HttpResponse:
    """Keep the theme with the account."""
    theme = request.POST.get("theme", "")
    if theme in User.Theme.values:
        User.objects.filter(pk=signed_in(request).pk).update(theme=theme)
    return redirect(_next(request))


def _next(request: HttpRequest) -> str:
    """Return where to go afterwards: a page of this site, else home."""
    target = request.POST.get("next", "")
    if url_has_allowed_host_and_scheme(
        target, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    ):
        return target
    return reverse("home")
