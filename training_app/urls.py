"""Where trainings are found: under /api/training/ and on their pages."""

from __future__ import annotations

from django.urls import re_path

from training_app import api, views

JOB = r"(?P<pk>[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
SAMPLE = rf"^training/{JOB}/samples/(?P<sample_id>\d{{1,18}})"

api_urls = [
    re_path(r"^training/?$", api.TrainingList.as_view(), name="training-list"),
    re_path(r"^training/estimate/?$", api.TrainingEstimate.as_view(), name="training-estimate"),
    re_path(rf"^training/{JOB}/?$", api.TrainingDetail.as_view(), name="training-detail"),
    re_path(rf"^training/{JOB}/start/?$", api.TrainingStart.as_view(), name="training-start"),
    re_path(rf"^training/{JOB}/cancel/?$", api.TrainingCancel.as_view(), name="training-cancel"),
    re_path(rf"^training/{JOB}/pause/?$", api.TrainingPause.as_view(), name="training-pause"),
    re_path(rf"^training/{JOB}/resume/?$", api.TrainingResume.as_view(), name="training-resume"),
    re_path(rf"^training/{JOB}/stop/?$", api.TrainingStop.as_view(), name="training-stop"),
    re_path(
        rf"^training/{JOB}/progress/?$", api.TrainingProgress.as_view(), name="training-progress"
    ),
    re_path(rf"^training/{JOB}/metrics/?$", api.TrainingMetrics.as_view(), name="training-metrics"),
    re_path(rf"^training/{JOB}/samples/?$", api.TrainingSamples.as_view(), name="training-samples"),
    re_path(rf"{SAMPLE}/file/?$", api.TrainingSampleFile.as_view(), name="training-sample-file"),
    re_path(
        rf"{SAMPLE}/thumbnail/?$",
        api.TrainingSampleFile.as_view(thumbnail=True),
        name="training-sample-thumbnail",
    ),
    re_path(rf"^training/{JOB}/extend/?$", api.TrainingExtend.as_view(), name="training-extend"),
    re_path(
        rf"^training/{JOB}/checkpoints/?$",
        api.TrainingCheckpoints.as_view(),
        name="training-checkpoints",
    ),
    re_path(
        rf"^training/{JOB}/checkpoints/(?P<checkpoint_id>\d{{1,18}})/register/?$",
        api.TrainingCheckpointRegister.as_view(),
        name="training-checkpoint-register",
    ),
    re_path(rf"^training/{JOB}/log/?$", api.TrainingLog.as_view(), name="training-log"),
]
page_urls = [
    re_path(r"^training/?$", views.training_list, name="training_list"),
    re_path(r"^training/new/?$", views.training_new, name="training_new"),
    re_path(rf"^training/{JOB}/?$", views.training_detail, name="training_detail"),
]
