"""Pictures, captions and the order of batches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training_app.trainer.buckets import Bucket
from training_app.trainer.dataset import ImageSampler, make_examples, read_pixels, training_prompt
from training_app.trainer.request import TrainingImage

SQUARE, WIDE = Bucket(64, 64), Bucket(128, 64)


@pytest.mark.parametrize(
    ("caption", "word", "prompt"),
    [
        ("a zorp on grass", "zorp", "a zorp on grass"),
        ("A ZORP on grass", "zorp", "A ZORP on grass"),
        ("a dog  on\ngrass", "zorp", "zorp, a dog on grass"),
        ("zorpling", "zorp", "zorp, zorpling"),
        ("", "zorp", "zorp"),
        ("  ", "", ""),
        ("a dog", "", "a dog"),
        ("c++ logo", "c++", "c++ logo"),
        ("一只 ゾープ", "ゾープ", "一只 ゾープ"),
    ],
)
def test_the_trigger_word_is_in_every_prompt_once(caption: str, word: str, prompt: str) -> None:
    assert training_prompt(caption, word) == prompt


def test_pixels_come_whole_and_in_range(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = read_pixels(tmp_path / "a.png", SQUARE, mirrored=False)
    assert read.shape == (1, 3, 64, 64)
    back = ((read[0].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    assert (back == pixels).all()
    mirrored = read_pixels(tmp_path / "a.png", SQUARE, mirrored=True)
    assert torch.equal(mirrored, read.flip(-1))


def test_the_middle_of_a_long_picture_is_cut_out(tmp_path: Path) -> None:
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert torch.equal(
        read_pixels(tmp_path / "a.png", SQUARE, mirrored=False), torch.ones(1, 3, 64, 64)
    )


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "1", "CMYK"])
def test_every_kind_of_picture_is_read(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (1, 2000), "white").convert(mode).save(path)
    assert read_pixels(path, SQUARE, mirrored=False).shape == (1, 3, 64, 64)


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "a.png")
    read = read_pixels(tmp_path / "a.png", SQUARE, mirrored=False)
    assert torch.equal(read, torch.ones_like(read))


def test_a_file_that_is_no_picture_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(OSError):
        read_pixels(tmp_path / "a.png", SQUARE, mirrored=False)


def test_examples_know_bucket_and_prompt() -> None:
    image = TrainingImage("1", Path("a.png"), "a dog", "00", 1000, 500)
    (example,) = make_examples([image], resolution=512, trigger_word="zorp")
    assert example.prompt == "zorp, a dog"
    assert example.bucket == Bucket(704, 320) or example.bucket.width > example.bucket.height


def test_all_pictures_are_seen_equally_often() -> None:
    sampler = ImageSampler([SQUARE] * 5 + [WIDE] * 2, batch_size=4, seed=1)
    seen: Counter[int] = Counter()
    for _ in range(70):
        bucket, members = sampler.deal()
        assert len(members) == 4
        assert {member >= 5 for member in members} == {bucket == WIDE}
        seen.update(members)
    assert max(seen.values()) - min(seen.values()) <= 2
    assert set(seen) == set(range(7))


def test_every_round_is_shuffled_anew() -> None:
    sampler = ImageSampler([SQUARE] * 8, batch_size=8, seed=1)
    orders = {tuple(sampler.deal()[1]) for _ in range(6)}
    assert len(orders) == 6
    assert all(sorted(order) == list(range(8)) for order in orders)


def test_a_batch_may_be_larger_than_the_dataset() -> None:
    assert ImageSampler([SQUARE], batch_size=4, seed=0).deal() == (SQUARE, [0, 0, 0, 0])


@pytest.mark.parametrize("broken_off_at", [0, 1, 7, 23])
def test_a_sampler_goes_on_where_another_stood(broken_off_at: int) -> None:
    def make() -> ImageSampler:
        return ImageSampler([SQUARE, WIDE, SQUARE, SQUARE, WIDE], batch_size=3, seed=9)

    unbroken, first, second = make(), make(), make()
    dealt = [unbroken.deal() for _ in range(40)]
    assert [first.deal() for _ in range(broken_off_at)] == dealt[:broken_off_at]
    second.restore(first.position)
    assert [second.deal() for _ in range(40 - broken_off_at)] == dealt[broken_off_at:]


def test_a_position_of_other_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="other pictures"):
        ImageSampler([SQUARE], 1, 0).restore({"128x64": 3})
