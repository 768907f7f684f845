"""Template tags every page shares: icons, times, measures and the words for a job's state.

The words for states stand here for the server and in `static/studio/js/words.js` for the browser;
a test keeps the two lists equal.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django import template
from django.templatetags.static import static
from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from studio_project.jobs import job_classes

if TYPE_CHECKING:
    from studio_project.jobs import Job

register = template.Library()

STATUS_WORDS = {
    "pending": gettext_lazy("Not started"),
    "queued": gettext_lazy("Waiting"),
    "running": gettext_lazy("Running"),
    "paused": gettext_lazy("Paused"),
    "completed": gettext_lazy("Finished"),
    "failed": gettext_lazy("Failed"),
    "canceled": gettext_lazy("Canceled"),
}
PHASE_WORDS = {
    "preparing": gettext_lazy("Preparing"),
    "caching": gettext_lazy("Reading the pictures"),
    "compiling": gettext_lazy("Compiling the network"),
    "training": gettext_lazy("Training"),
    "sampling": gettext_lazy("Painting samples"),
    "aside": gettext_lazy("Waiting while pictures are made"),
    "saving": gettext_lazy("Saving"),
    "registering": gettext_lazy("Registering the model"),
    "loading_model": gettext_lazy("Loading the model"),
    "encoding": gettext_lazy("Reading the prompt"),
    "denoising": gettext_lazy("Painting"),
    "decoding": gettext_lazy("Finishing the picture"),
}
WAITING_WORDS = {
    "behind_jobs": gettext_lazy("Waiting for its turn"),
    "device_busy": gettext_lazy("Waiting for the device to be free"),
    "no_worker": gettext_lazy("Waiting: no worker is running"),
    "queue_paused": gettext_lazy("Waiting: the queue is paused"),
}
HINTS_COOKIE = "studio_hints"
MINUTE, HOUR, DAY = 60, 3600, 86400
SMALL = 0.001
TEN, THOUSAND = 10, 1000


@register.simple_tag
def icon(name: str, extra_class: str = "") -> SafeString:
    """Return one icon of the sprite; it is decoration, so label its button or link."""
    return format_html(
        '<svg class="icon {}" aria-hidden="true" focusable="false"><use href="{}#{}"></use></svg>',
        extra_class,
        static("studio/vendor/lucide/icons.svg"),
        name,
    )


@register.simple_tag
def when(moment: datetime | None) -> SafeString:
    """Return a time: relative under a day, else the date; the exact one on hover."""
    if moment is None:
        return SafeString("")
    local = timezone.localtime(moment)
    age = (timezone.now() - moment).total_seconds()
    if age < MINUTE:
        text = _("just now")
    elif age < DAY:
        text = _("%(span)s ago") % {"span": timesince(moment, depth=1)}
    else:
        text = date_format(local, "DATE_FORMAT")
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        moment.isoformat(),
        date_format(local, "DATETIME_FORMAT"),
        text,
    )


@register.filter
def duration(seconds: float | None) -> str:
    """Return a span of time in the two largest units that matter, such as `3 min 20 s`."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    whole = max(0, round(seconds))
    if whole < MINUTE:
        return _("%(seconds)d s") % {"seconds": whole}
    if whole < HOUR:
        return _("%(minutes)d min %(seconds)02d s") % {
            "minutes": whole // MINUTE,
            "seconds": whole % MINUTE,
        }
    return _("%(hours)d h %(minutes)02d min") % {
        "hours": whole // HOUR,
        "minutes": whole % HOUR // MINUTE,
    }


@register.filter
def bytesize(count: float | None) -> str:
    """Return a size in the largest decimal unit that keeps it at least one."""
    units = (_("B"), _("kB"), _("MB"), _("GB"))
    value, unit = float(count or 0), 0
    while value >= THOUSAND and unit < len(units) - 1:
        value, unit = value / THOUSAND, unit + 1
    digits = 1 if unit and value < TEN else 0
    return f"{number_format(round(value, digits), decimal_pos=digits)}\u202f{units[unit]}"


@register.filter
def percent(job: Job) -> str:
    """Return how far a job is; 100 % means that it has finished, not that the last step is done."""
    most = 100 if job.status == "completed" else 99
    return _("%(number)d%%") % {"number": min(most, math.floor((job.progress or 0) * 100))}


@register.filter
def time_left(job: Job) -> str:
    """Return how long a running job still takes, as far as that is known."""
    if job.status != "running" or not job.eta_seconds:
        return ""
    return _("%(time)s left") % {"time": duration(job.eta_seconds)}


@register.filter
def unlocalized(value: float | None) -> str:
    """Return a number as attributes want it, with a point whatever the language."""
    return repr(float(value or 0))


@register.filter
def number(value: float | None, digits: int = 0) -> str:
    """Return a number in the language's notation."""
    if value is None:
        return ""
    return number_format(value, decimal_pos=int(digits), force_grouping=True)


@register.filter
def measure(value: float | None) -> str:
    """Return a small number such as a loss with four significant digits."""
    if value is None or not math.isfinite(value):
        return ""
    if value and abs(value) < SMALL:
        return f"{value:.1e}"
    digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
    return number_format(round(value, digits))


@register.filter
def status_words(job: Job) -> str:
    """Return what the job is doing now, or why it waits, in a few words."""
    if job.status == "running" and job.phase:
        return str(PHASE_WORDS.get(job.phase, STATUS_WORDS["running"]))
    if job.status == "queued" and job.waiting_reason:
        return str(WAITING_WORDS.get(job.waiting_reason, STATUS_WORDS["queued"]))
    return str(STATUS_WORDS.get(job.status, job.status))


@register.simple_tag(takes_context=True)
def my_live_jobs(context: dict[str, Any]) -> list[Job]:
    """Return the user's waiting and running jobs, the one that is farthest along first."""
    user = context["request"].user
    if not user.is_authenticated:
        return []
    rows = [
        job
        for job_class in job_classes()
        for job in job_class.objects.filter(owner=user, status__in=("queued", "running"))[:50]
    ]
    return sorted(rows, key=lambda job: (job.status != "running", -job.progress, job.created_at))


@register.simple_block_tag(takes_context=True)
def hint(context: dict[str, Any], content: str, key: str) -> str:
    """Return the sentence that says what a page is for, unless the reader closed it before."""
    if key in context["request"].COOKIES.get(HINTS_COOKIE, "").split("."):
        return ""
    return format_html(
        '<p class="hint" data-hint="{}">{}<button type="button" class="quiet small" '
        'aria-label="{}">{}</button></p>',
        key,
        content,
        _("Do not show this sentence again"),
        icon("x"),
    )
