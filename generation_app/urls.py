"""Where requests and pictures are found: under /api/, in the dialects and on their pages."""

from __future__ import annotations

from django.urls import re_path

from generation_app import api, image_api, views
from generation_app.dialects import a1111, a1111_shapes, openai

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
# Clients ask for these before they paint; this site has none of them.
A1111_FIXED = {
    "schedulers": a1111_shapes.SPACINGS,
    "scripts": {"txt2img": [], "img2img": []},
    "upscalers": [],
    "latent-upscale-modes": [],
    "sd-vae": [],
    "embeddings": {"loaded": {}, "skipped": {}},
}
a1111_urls = [
    re_path(r"^txt2img/?$", a1111.TextToImage.as_view(), name="a1111-txt2img"),
    re_path(r"^img2img/?$", a1111.ImageToImage.as_view(), name="a1111-img2img"),
    re_path(r"^progress/?$", a1111.Progress.as_view(), name="a1111-progress"),
    re_path(r"^interrupt/?$", a1111.Interrupt.as_view(), name="a1111-interrupt"),
    re_path(r"^sd-models/?$", a1111.Checkpoints.as_view(), name="a1111-sd-models"),
    re_path(r"^loras/?$", a1111.Loras.as_view(), name="a1111-loras"),
    re_path(r"^samplers/?$", a1111.Samplers.as_view(), name="a1111-samplers"),
    re_path(r"^options/?$", a1111.Options.as_view(), name="a1111-options"),
    *(
        re_path(rf"^{name}/?$", a1111.Fixed.as_view(answer=answer), name=f"a1111-{name}")
        for name, answer in A1111_FIXED.items()
    ),
    re_path(r"^refresh-checkpoints/?$", a1111.Refresh.as_view(), name="a1111-refresh-checkpoints"),
    re_path(r"^refresh-loras/?$", a1111.Refresh.as_view(), name="a1111-refresh-loras"),
    re_path(r"", a1111.A1111Unknown.as_view(), name="a1111-unknown"),
]
openai_urls = [
    re_path(
        r"^images/generations/?$",
        openai.ImageGenerations.as_view(),
        name="openai-images-generations",
    ),
    re_path(r"^models/?$", openai.ModelList.as_view(), name="openai-models"),
    re_path(
        r"^models/(?P<reference>[^/]{1,200})/?$", openai.ModelDetail.as_view(), name="openai-model"
    ),
    re_path(r"", openai.OpenAIUnknown.as_view(), name="openai-unknown"),
]
page_urls = [
    re_path(r"^text-to-image/?$", views.text_to_image, name="text_to_image"),
    re_path(r"^images/?$", views.image_list, name="image_list"),
    re_path(rf"^images/{IMAGE}/?$", views.image_detail, name="image_detail"),
]
