"""Addresses of models: pages and API, each with and without a trailing slash."""

from __future__ import annotations

from django.urls import re_path

from models_app import api, views

PK = r"(?P<pk>[0-9]{1,18})"

api_urls = [
    re_path(r"^models/?$", api.ModelList.as_view(), name="model-list"),
    re_path(rf"^models/{PK}/?$", api.ModelDetail.as_view(), name="model-detail"),
    re_path(rf"^models/{PK}/download/?$", api.ModelDownload.as_view(), name="model-download"),
    re_path(rf"^models/{PK}/thumbnail/?$", api.ModelThumbnail.as_view(), name="model-thumbnail"),
]
page_urls = [
    re_path(r"^models/?$", views.model_list, name="model_list"),
    re_path(rf"^models/{PK}/?$", views.model_detail, name="model_detail"),
]
