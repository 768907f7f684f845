"""Where requests and pictures are found: under /api/ and on their pages."""

from __future__ import annotations

from django.urls import re_path

from generation_app import api, image_api, views

JOB = r"(?P<pk>[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
IMAGE = r"(?P<pk>\d{1,18})"

api_urls = [
    re_path(r"^generate/?$", api.GenerationList.as_view(), name="generation-list"),
    re_path(
        r"^generate/text-to-image/?$", api.TextToImage.as_view(), name="generate-text-to-image"
    ),
    re_path(
        r"^generate/image-to-image/?$", api.ImageToImage.as_view(), name="generate-image-to-image"
    ),
    re_path(r"^generate/inpaint/?$", api.Inpaint.as_view(), name="generate-inpaint"),
    re_path(
        r"^generate/image-to-video/?$", api.ImageToVideo.as_view(), name="generate-image-to-video"
    ),
    re_path(r"^generate/recall/?$", api.Recall.as_view(), name="generate-recall"),
    re_path(r"^generate/uploads/?$", api.UploadList.as_view(), name="generate-upload-list"),
    re_path(
        rf"^generate/uploads/{IMAGE}/?$", api.UploadDetail.as_view(), name="generate-upload-detail"
    ),
    re_path(
        rf"^generate/uploads/{IMAGE}/file/?$", api.UploadFile.as_view(), name="generate-upload-file"
    ),
    re_path(r"^generate/estimate/?$", api.GenerationEstimate.as_view(), name="generate-estimate"),
    re_path(rf"^generate/{JOB}/?$", api.GenerationDetail.as_view(), name="generation-detail"),
    re_path(
        rf"^generate/{JOB}/cancel/?$", api.GenerationCancel.as_view(), name="generation-cancel"
    ),
    re_path(
        rf"^generate/{JOB}/preview/?$", api.GenerationPreview.as_view(), name="generation-preview"
    ),
    re_path(r"^images/?$", image_api.ImageList.as_view(), name="image-list"),
    re_path(rf"^images/{IMAGE}/?$", image_api.ImageDetail.as_view(), name="image-detail"),
    re_path(rf"^images/{IMAGE}/file/?$", image_api.ImageFile.as_view(), name="image-file"),
    re_path(
        rf"^images/{IMAGE}/thumbnail/?$",
        image_api.ImageFile.as_view(part="thumbnail"),
        name="image-thumbnail",
    ),
    re_path(
        rf"^images/{IMAGE}/animation/?$",
        image_api.ImageFile.as_view(part="animation"),
        name="image-animation",
    ),
    re_path(
        rf"^images/{IMAGE}/make-again/?$", image_api.MakeAgain.as_view(), name="image-make-again"
    ),
]
page_urls = [
    re_path(r"^text-to-image/?$", views.text_to_image, name="text_to_image"),
    re_path(r"^images/?$", views.image_list, name="image_list"),
    re_path(rf"^images/{IMAGE}/?$", views.image_detail, name="image_detail"),
]
