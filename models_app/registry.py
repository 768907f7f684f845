"""The base models that every site knows from its first start; data only.

Revisions are pinned: what was fetched today is what is fetched in a year. Titles and descriptions
are marked for translation here and translated where they are shown, as long as they stand as below.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.utils.translation import gettext_noop as _

STARTER_NAME = "starter-64"
STARTER_FOLDER = Path(__file__).resolve().parent / "starter" / "weights"


@dataclass(frozen=True)
class KnownModel:
    """A base model as it is registered.

    Attributes:
        source: Repository id on the model hub; empty for the starter, which is part of the site.
        revision: Commit of that repository.
        is_inpainting: Whether it paints parts of pictures only.
    """

    name: str
    title: str
    description: str
    category: str
    architecture: str
    licence: str
    source: str = ""
    revision: str = ""
    is_inpainting: bool = False
    default_settings: dict[str, Any] = field(default_factory=dict)

    def as_fields(self) -> dict[str, Any]:
        """Return the columns of the row."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


STARTER = KnownModel(
    name=STARTER_NAME,
    title=_("Starter 64 (practice model)"),
    description=_(
        "A tiny model that comes with Studio, for trying everything out without a graphics card or "
        "a download. It paints 64-pixel pictures of simple coloured shapes: “a large red star on a "
        "blue background”. Use a real base model for real work."
    ),
    category="image",
    architecture="sd1",
    licence="MIT",
    default_settings={
        "width": 64,
        "height": 64,
        "num_inference_steps": 20,
        "guidance_scale": 5.0,
        "scheduler": "ddim",
    },
)

REMOTE_MODELS = (
    KnownModel(
        name="stable-diffusion-v1-5",
        title=_("Stable Diffusion 1.5"),
        description=_(
            "The classic base for pictures of 512 pixels: light, quick to train, with the largest "
            "choice of LoRAs."
        ),
        category="image",
        architecture="sd1",
        licence="CreativeML Open RAIL-M",
        source="stable-diffusion-v1-5/stable-diffusion-v1-5",
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        default_settings={
            "width": 512,
            "height": 512,
            "num_inference_steps": 25,
            "guidance_scale": 7.5,
            "scheduler": "dpmpp_2m",
        },
    ),
    KnownModel(
        name="stable-diffusion-xl-base-1.0",
        title=_("Stable Diffusion XL 1.0"),
        description=_(
            "Pictures of 1024 pixels that follow longer prompts; needs a graphics card with at "
            "least 8 GB of memory."
        ),
        category="image",
        architecture="sdxl",
        licence="CreativeML Open RAIL++-M",
        source="stabilityai/stable-diffusion-xl-base-1.0",
        revision="462165984030d82259a11f4367a4eed129e94a7b",
        default_settings={
            "width": 1024,
            "height": 1024,
            "num_inference_steps": 30,
            "guidance_scale": 5.0,
            "scheduler": "euler",
        },
    ),
    KnownModel(
        name="stable-diffusion-xl-1.0-inpainting-0.1",
        title=_("Stable Diffusion XL Inpainting"),
        description=_(
            "Paints parts of pictures anew and nothing else: it sees what surrounds the part, so "
            "that the new fits the old. Needs a graphics card with at least 8 GB of memory."
        ),
        category="image",
        architecture="sdxl",
        is_inpainting=True,
        licence="CreativeML Open RAIL++-M",
        source="diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        revision="115134f363124c53c7d878647567d04daf26e41e",
        default_settings={
            "width": 1024,
            "height": 1024,
            "num_inference_steps": 30,
            "guidance_scale": 7.5,
            "scheduler": "euler",
        },
    ),
    KnownModel(
        name="stable-video-diffusion-img2vid-xt",
        title=_("Stable Video Diffusion XT"),
        description=_(
            "Turns one picture into a clip of 25 frames. Its licence must be accepted on the model "
            "hub before it can be downloaded."
        ),
        category="video",
        architecture="svd",
        licence="Stability AI Community License",
        source="stabilityai/stable-video-diffusion-img2vid-xt",
        revision="9e43909513c6714f1bc78bcb44d96e733cd242aa",
        default_settings={
            "width": 1024,
            "height": 576,
            "num_inference_steps": 25,
            "num_frames": 25,
            "max_guidance_scale": 3.0,
        },
    ),
)
