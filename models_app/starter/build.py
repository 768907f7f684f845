"""Build the starter model from nothing: ``python -m models_app.starter.build``.

Draws the world, trains the autoencoder, stops if the autoencoder is too poor,
trains the UNet and the text encoder, exports the diffusers folder and measures it.
A build that is stopped goes on where it was when it is started again with the same
work folder. Uses a GPU if there is one; on two CPU cores with bf16 it takes about an
hour and a half.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from models_app.starter.export import WEIGHTS_FOLDER, export_pipeline, read_facts, write_card
from models_app.starter.networks import write_tokenizer
from models_app.starter.score import reaches_lines, score_folder
from models_app.starter.thumbnail import write_thumbnail
from models_app.starter.training import TrainingRun
from models_app.starter.unet_training import train_unet
from models_app.starter.vae_training import GATE, measure_psnr, passes_gate, train_vae

logger = logging.getLogger(__name__)

STAGES = ("all", "vae", "unet", "score")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; the defaults are as long as the committed weights' training."""
    parser = argparse.ArgumentParser(prog="python -m models_app.starter.build", description=__doc__)
    parser.add_argument(
        "--work-dir", type=Path, default=Path("data/starter-build"), help="checkpoints and pictures"
    )
    parser.add_argument(
        "--output", type=Path, default=WEIGHTS_FOLDER, help="the diffusers folder to write"
    )
    parser.add_argument("--stage", choices=STAGES, default="all", help="do only this stage")
    parser.add_argument("--steps-vae", type=int, default=7_500)
    parser.add_argument("--steps-unet", type=int, default=3_400)
    parser.add_argument(
        "--pool-size", type=int, default=16_000, help="pictures for the autoencoder"
    )
    parser.add_argument(
        "--world-size", type=int, default=24_000, help="captioned pictures for the UNet"
    )
    parser.add_argument("--prompts", type=int, default=100, help="held-out prompts of the score")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument(
        "--no-gate", action="store_true", help="go on with a poor autoencoder (for tests)"
    )
    return parser.parse_args(arguments)


def stage_facts(run: TrainingRun) -> dict[str, Any]:
    """Steps and minutes of a stage for the model card."""
    return {"steps": run.step, "minutes": round(run.seconds / 60, 1)}


def build_unet(options: argparse.Namespace, vae: AutoencoderKL, facts: dict[str, Any]) -> None:
    """Train the second stage and export; a first usable model is exported on the way."""
    tokenizer = write_tokenizer(options.work_dir / "tokenizer")

    def export(
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        run: TrainingRun,
        status: str,
        tokens: CLIPTokenizer,
    ) -> None:
        facts.update(status=status, unet=stage_facts(run))
        export_pipeline(
            options.output,
            vae=vae,
            text_encoder=text_encoder,
            unet=unet,
            tokenizer=tokens,
            facts=facts,
        )

    def on_checkpoint(
        unet: UNet2DConditionModel, text_encoder: CLIPTextModel, run: TrainingRun
    ) -> None:
        export(unet, text_encoder, run, "unfinished: still in training.", tokenizer)

    unet, text_encoder, run = train_unet(
        options.work_dir,
        vae,
        tokenizer,
        max_steps=options.steps_unet,
        world_size=options.world_size,
        seed=options.seed,
        on_checkpoint=on_checkpoint,
    )
    export(unet, text_encoder, run, "finished.", tokenizer)


def measure(options: argparse.Namespace) -> bool:
    """Score the exported model, write its card and picture, and say whether it is good enough."""
    facts = read_facts(options.output)
    facts["scores"] = score_folder(options.output, options.prompts)
    write_card(options.output, facts)
    write_thumbnail(options.output)
    logger.info("scores: %s", facts["scores"])
    return reaches_lines(facts["scores"])


def main(arguments: list[str] | None = None) -> int:
    """Run the build.

    Returns:
        0 when done, 1 when the autoencoder or the finished model misses its lines.
    """
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if options.stage != "score":
        vae, run = train_vae(options.work_dir, options.steps_vae, options.pool_size, options.seed)
        psnr = measure_psnr(vae)
        logger.info("autoencoder on held-out pictures: %s", psnr)
        if not options.no_gate and not passes_gate(psnr):
            logger.error("the autoencoder misses its gate of %s: give it more --steps-vae", GATE)
            return 1
        if options.stage == "vae":
            return 0
        facts = {
            "seed": options.seed,
            "device": run.device.type,
            "vae": stage_facts(run),
            "psnr": psnr,
        }
        build_unet(options, vae, facts)
        if options.stage == "unet":
            return 0
    return 0 if measure(options) or options.no_gate else 1


if __name__ == "__main__":
    sys.exit(main())
