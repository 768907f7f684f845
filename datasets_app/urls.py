"""Addresses of datasets: pages and API, each with and without a trailing slash."""

from __future__ import annotations

from django.urls import re_path

from datasets_app import api, views

PK = r"(?P<pk>[0-9]{1,18})"
IMAGE = rf"datasets/{PK}/images/(?P<image_id>[0-9]{{1,18}})"

api_urls = [
    re_path(r"^datasets/?$", api.DatasetList.as_view(), name="dataset-list"),
    re_path(rf"^datasets/{PK}/?$", api.DatasetDetail.as_view(), name="dataset-detail"),
    re_path(rf"^datasets/{PK}/images/?$", api.DatasetImages.as_view(), name="dataset-images"),
    re_path(rf"^{IMAGE}/?$", api.DatasetImageDetail.as_view(), name="dataset-image-detail"),
    re_path(rf"^{IMAGE}/file/?$", api.DatasetImageFile.as_view(), name="dataset-image-file"),
    re_path(
        rf"^{IMAGE}/thumbnail/?$",
        api.DatasetImageThumbnail.as_view(),
        name="dataset-image-thumbnail",
    ),
]
page_urls = [
    re_path(r"^datasets/?$", views.dataset_list, name="dataset_list"),
    re_path(rf"^datasets/{PK}/?$", views.dataset_detail, name="dataset_detail"),
]
