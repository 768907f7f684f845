"""The picture that stands for the starter in lists: what it paints, twelve times."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from models_app.folders import THUMBNAIL_NAME
from models_app.starter.score import generate, load_pipeline

COLUMNS, ROWS = 4, 3  # as wide for their height as the covers of the pages
PROMPTS = (
    "a large red star on a blue background",
    "a large yellow circle on a black background",
    "a small white heart on a pink background",
    "a large purple diamond on a yellow background",
    "a small orange ring on a green background",
    "a large green triangle on a white background",
    "a large pink heart on a purple background",
    "a small blue square on an orange background",
    "a large cyan cross on a red background",
    "a large black star on a cyan background",
    "a large white ring on a blue background",
    "a large orange diamond on a purple background",
)


def write_thumbnail(folder: Path) -> None:
    """Paint the thumbnail with an exported model and write it beside its weights."""
    pictures = generate(load_pipeline(folder), list(PROMPTS), first_seed=1)
    side = pictures[0].width
    sheet = Image.new("RGB", (COLUMNS * side, ROWS * side))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % COLUMNS * side, index // COLUMNS * side))
    sheet.save(folder / THUMBNAIL_NAME, "WEBP", quality=90, method=6)
