"""Words, times and measures of the pages."""

from __future__ import annotations

import gzip
import hashlib
import re
from datetime import timedelta
from pathlib import Path

from django.utils import timezone, translation

from studio_project.templatetags.studio import (
    PHASE_WORDS,
    STATUS_WORDS,
    WAITING_WORDS,
    bytesize,
    duration,
    icon,
    measure,
    percent,
    status_words,
    time_left,
    unlocalized,
    when,
)
from training_app.models import TrainingJob

STATIC = Path(__file__).resolve().parents[2] / "studio_project" / "static" / "studio"


def test_browser_and_server_use_the_same_words_for_states() -> None:
    script = (STATIC / "js" / "words.js").read_text()
    found = dict(re.findall(r'^  (\w+): gettext\("([^"]+)"\)', script, re.MULTILINE))
    with translation.override("en"):
        for table in (STATUS_WORDS, PHASE_WORDS, WAITING_WORDS):
            for name, words in table.items():
                assert found[name] == str(words)


def test_durations_name_the_two_units_that_matter() -> None:
    with translation.override("en"):
        assert duration(9) == "9 s"
        assert duration(200) == "3 min 20 s"
        assert duration(3 * 3600 + 65) == "3 h 01 min"
        assert duration(None) == ""
        assert duration(float("nan")) == ""


def test_percent_reaches_100_only_when_the_job_has_finished() -> None:
    with translation.override("en"):
        assert percent(TrainingJob(status="running", progress=0.257)) == "25%"
        assert percent(TrainingJob(status="running", progress=1.0)) == "99%"
        assert percent(TrainingJob(status="completed", progress=1.0)) == "100%"


def test_time_left_is_told_of_running_jobs_alone() -> None:
    with translation.override("en"):
        assert time_left(TrainingJob(status="running", eta_seconds=95)) == "1 min 35 s left"
        assert time_left(TrainingJob(status="running", eta_seconds=None)) == ""
        assert time_left(TrainingJob(status="paused", eta_seconds=95)) == ""


def test_small_measures_keep_their_digits() -> None:
    with translation.override("en"):
        assert measure(0.10341) == "0.1034"
        assert measure(0.00002) == "2.0e-05"
        assert measure(38.2) == "38.2"
        assert measure(None) == ""
        assert measure(float("inf")) == ""


def test_sizes_are_decimal_and_in_the_readers_units() -> None:
    with translation.override("en"):
        assert bytesize(999) == "999\u202fB"
        assert bytesize(5_020) == "5.0\u202fkB"
        assert bytesize(20 * 1024**3) == "21\u202fGB"
        assert bytesize(None) == "0\u202fB"
    with translation.override("fr"):
        assert bytesize(5_020) == "5,0\u202fko"


def test_attributes_keep_the_point_in_french() -> None:
    with translation.override("fr"):
        assert unlocalized(0.5) == "0.5"


def test_times_are_relative_under_a_day() -> None:
    with translation.override("en"):
        assert ">just now<" in when(timezone.now())
        assert "ago<" in when(timezone.now() - timedelta(hours=3))
        assert "ago<" not in when(timezone.now() - timedelta(days=3))
        assert when(None) == ""


def test_state_is_the_phase_or_the_reason_to_wait() -> None:
    job = TrainingJob(status="running", phase="caching")
    waiting = TrainingJob(status="queued", waiting_reason="no_worker")
    with translation.override("en"):
        assert status_words(job) == "Reading the pictures"
        assert status_words(waiting) == "Waiting: no worker is running"
        assert status_words(TrainingJob(status="completed")) == "Finished"


def test_every_icon_a_page_names_is_in_the_sprite() -> None:
    sprite = (STATIC / "vendor" / "lucide" / "icons.svg").read_text()
    there = set(re.findall(r'<symbol id="([^"]+)"', sprite))
    templates = STATIC.parents[2] / "templates"
    named = set()
    for page in templates.rglob("*.html"):
        named |= set(re.findall(r'{% icon "([^"]+)"', page.read_text()))
    for script in (STATIC / "js").glob("*.js"):
        named |= set(re.findall(r'\bicon\("([^"]+)"', script.read_text()))
    assert named <= there
    assert "#house" in icon("house")


def test_vendored_files_are_the_ones_that_were_checked() -> None:
    lines = (STATIC / "vendor" / "SHA256SUMS").read_text().splitlines()
    assert len(lines) >= 5
    for line in lines:
        digest, name = line.split("  ")
        content = (STATIC / "vendor" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, name


def test_style_sheets_stay_small() -> None:
    sheets = b"".join(
        (STATIC / "css" / name).read_bytes()
        for name in ("tokens.css", "layout.css", "components.css")
    )
    assert len(gzip.compress(sheets)) <= 12 * 1024
