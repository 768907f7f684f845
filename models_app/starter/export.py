"""Write the starter model as a diffusers folder of half precision, with its model card.

The folder is built aside and moved into place, so that a reader never meets half a
model. Facts about the training are kept in ``facts.json`` beside the card.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from models_app.starter.networks import make_noise_scheduler, write_tokenizer
from models_app.starter.training import Network

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
MAXIMUM_BYTES = 20_000_000
FACTS_FILE = "facts.json"


def half_precision(network: Network) -> Network:
    """A copy in fp16 on the CPU; the network itself stays as it is."""
    # diffusers' own `to` warns about layers to be kept in fp32 even where there are none.
    copied = copy.deepcopy(network)
    torch.nn.Module.to(copied, "cpu", torch.float16)
    return copied


def export_pipeline(
    folder: Path,
    *,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    tokenizer: CLIPTokenizer,
    facts: dict[str, Any],
) -> None:
    """Write all parts and the card, replacing what stood there in one move.

    Args:
        folder: The diffusers folder to make.
        vae: The autoencoder with its ``scaling_factor`` set.
        text_encoder: The caption reader.
        unet: The noise predictor.
        tokenizer: The language.
        facts: What the card tells; see ``write_card``.

    Raises:
        ValueError: If the folder would be larger than ``MAXIMUM_BYTES``.
    """
    # A mapping, because the signature does not admit to the None it accepts.
    parts: dict[str, Any] = dict(  # noqa: C408
        vae=half_precision(vae),
        text_encoder=half_precision(text_encoder),
        tokenizer=tokenizer,
        unet=half_precision(unet),
        scheduler=make_noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline = StableDiffusionPipeline(**parts)
    aside = folder.with_name(f".{folder.name}-{os.getpid()}")
    pipeline.save_pretrained(aside, safe_serialization=True)
    _finish_parts(aside)
    write_card(aside, facts)
    size = folder_bytes(aside)
    if size > MAXIMUM_BYTES:
        shutil.rmtree(aside)
        raise ValueError(f"the starter model has {size} bytes, more than {MAXIMUM_BYTES}")
    old = folder.with_name(f".{folder.name}-old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _finish_parts(folder: Path) -> None:
    """Make the parts behave as readers of Stable Diffusion folders expect."""
    # The vocabulary as the classic two files as well: other programs read only those.
    write_tokenizer(folder / "tokenizer")
    # transformers loads a network in the type its configuration names, diffusers in fp32:
    # without this, a plain from_pretrained would mix both and the UNet would refuse.
    config = folder / "text_encoder" / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    values["dtype"] = "float32"
    config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)


def folder_bytes(folder: Path) -> int:
    """The size of all files in a folder together."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts of an exported model."""
    facts: dict[str, Any] = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    return facts


def write_card(folder: Path, facts: dict[str, Any]) -> None:
    """Write ``README.md``, the model card, and ``facts.json``, on which it rests.

    Args:
        folder: The diffusers folder.
        facts: ``status`` (a sentence), ``seed``, ``vae`` and ``unet`` (``steps``, ``minutes``),
            ``psnr`` (decibels by kind of picture), once measured ``scores``, and
            ``note`` where this training differed from a plain run of the build.
    """
    (folder / FACTS_FILE).write_text(
        json.dumps(facts, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    lines = [_CARD_HEAD, f"**Status:** {facts['status']}\n", "## Measured\n"]
    lines += [f"* {line}" for line in _measured(facts)]
    note = f"\n{facts['note']}\n" if "note" in facts else ""
    lines += [_CARD_TAIL.replace("{note}", note)]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _measured(facts: dict[str, Any]) -> list[str]:
    """The card's measurements as sentences."""
    stages = [
        f"{name}: {facts[key]['steps']} steps in {facts[key]['minutes']} minutes"
        for name, key in (("Autoencoder", "vae"), ("UNet and text encoder", "unet"))
    ]
    sentences = [f"{stage} (seed {facts['seed']}, {facts['device']})." for stage in stages]
    psnr = ", ".join(f"{kind} {value} dB" for kind, value in facts["psnr"].items())
    sentences.append(f"Autoencoder on held-out pictures (mean PSNR): {psnr}.")
    scores = facts.get("scores")
    if scores is None:
        return [*sentences, "Held-out prompts: not measured yet."]
    return [
        *sentences,
        f"{scores['prompts']} held-out prompts ({scores['steps']} DDIM steps, guidance "
        f"{scores['guidance_scale']}): colour {scores['colour']} %, "
        f"background {scores['background']} %, shape {scores['shape']} % right.",
        f'Made-up words ("a zorp on a red background", {scores["prompts"]} prompts): '
        f"background {scores['unknown_noun_background']} % right.",
        f"One picture alone on one CPU core, warm: {scores['seconds_per_picture']} s.",
    ]


_CARD_HEAD = """---
license: mit
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, practice-model]
---

# Studio starter

A small practice model: a genuine Stable Diffusion pipeline (8x `AutoencoderKL` with 16
latent channels, CLIP text encoder and tokenizer, `UNet2DConditionModel` with
cross-attention, noise prediction) in under 20 MB. It is there so that training and
generating with Studio is real on a laptop without a GPU or a network. It paints 64x64
pictures of plain coloured shapes, and it can be taught new figures.

Licence: MIT, weights included. It was trained from scratch on pictures that this
repository draws; no outside data, model or person's work went into it.
"""

_CARD_TAIL = """
Judged by `models_app.starter.judge`, which looks at pixels and ideal masks and uses no
model. 120 of the 720 combinations of colour, shape and background were never shown in
training; the prompts above ask for those.

## Its language

`a [large|small] COLOUR SHAPE on a COLOUR background`

* colours: red, green, blue, yellow, purple, orange, white, black, pink, cyan
* shapes: circle, square, triangle, star, heart, diamond, ring, cross

Any other word becomes a name of its own made of smaller pieces. Names that a person
makes up ("a zorp on a red background") paint some figure on the right background until
an adapter teaches the model which.

## How it was made

`python -m models_app.starter.build` draws the world, trains the autoencoder on a wider
uncaptioned world (beings, strokes, polygons, gradients), and then trains the UNet and
the text encoder together, with 10 % empty captions and 18 % made-up words. The weights
are exponential averages, stored in fp16.
{note}
## Limits

It knows nothing but the above. It paints one figure on one plain background, 64 pixels
wide; other sizes work technically and look poor. Guidance of 4 to 6 and 20 steps suit it.
"""
