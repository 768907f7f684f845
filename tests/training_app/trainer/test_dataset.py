"""Pictures, captions and the order of batches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from training_app.trainer.buckets import Bucket, cover_size
from training_app.trainer.config import TrainingConfig, resolve_config
from training_app.trainer.dataset import (
    Example,
    ImageSampler,
    Variant,
    make_examples,
    read_pixels,
)
from training_app.trainer.request import TrainingImage

SQUARE, WIDE = Bucket(64, 64), Bucket(128, 64)
PLAIN = Variant(mirrored=False, left=0, top=0)


def _config(**asked: Any) -> TrainingConfig:
    return resolve_config(
        {"resolution": 64} | asked, architecture="sd1", method="lora", num_images=10
    )


def _read(path: Path, **asked: Any) -> torch.Tensor:
    """A picture as it is trained on, in its last variant."""
    with Image.open(path) as picture:
        image = TrainingImage("1", path, "", "00", *picture.size)
    (example,) = make_examples([image], _config(**asked))
    return read_pixels(example, example.variants[-1])


def _examples(*buckets: Bucket, repeats: dict[int, int] | None = None) -> list[Example]:
    times = repeats or {}
    return [
        Example(
            TrainingImage(str(i), Path("x.png"), "", str(i), 64, 64, times.get(i, 1)),
            bucket,
            ("",),
            (PLAIN,),
        )
        for i, bucket in enumerate(buckets)
    ]


def _sampler(
    *buckets: Bucket, seed: int = 1, repeats: dict[int, int] | None = None
) -> ImageSampler:
    return ImageSampler(_examples(*buckets, repeats=repeats), range(len(buckets)), seed)


def test_pixels_come_whole_and_in_range(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = _read(tmp_path / "a.png")
    assert read.shape == (1, 3, 64, 64)
    back = ((read[0].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    assert (back == pixels).all()
    mirrored = _read(tmp_path / "a.png", flip=True)
    assert torch.equal(mirrored, read.flip(-1))


def test_the_middle_of_a_long_picture_is_cut_out(tmp_path: Path) -> None:
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert torch.equal(_read(tmp_path / "a.png"), torch.ones(1, 3, 64, 64))


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "1", "CMYK"])
def test_every_kind_of_picture_is_read(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (1, 2000), "white").convert(mode).save(path)
    assert _read(path).shape == (1, 3, 64, 64)


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "a.png")
    read = _read(tmp_path / "a.png")
    assert torch.equal(read, torch.ones_like(read))


def test_a_file_that_is_no_picture_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    image = TrainingImage("1", tmp_path / "a.png", "", "00", 64, 64)
    with pytest.raises(OSError):
        read_pixels(Example(image, SQUARE, ("",), (PLAIN,)), PLAIN)


def test_examples_know_bucket_prompts_and_variants() -> None:
    image = TrainingImage("1", Path("a.png"), "a dog", "00", 1000, 500)
    config = _config(resolution=512, trigger_word="zorp", flip=True)
    (example,) = make_examples([image], config)
    assert example.prompts == (example.prompt,) == ("zorp, a dog",)
    assert example.bucket == Bucket(704, 320) or example.bucket.width > example.bucket.height
    assert [variant.mirrored for variant in example.variants] == [False, True]
    left, top = example.variants[0].left, example.variants[0].top
    covered = cover_size(1000, 500, example.bucket)
    assert left == (covered[0] - example.bucket.width) // 2
    assert top == (covered[1] - example.bucket.height) // 2


def test_random_crops_are_those_parts_of_the_picture(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = TrainingImage("1", tmp_path / "a.png", "", "00", 200, 64)
    config = _config(crop="random", crop_variants=3, flip=True)
    (example,) = make_examples([image], config)
    assert make_examples([image], _config(crop="random", crop_variants=3, flip=True, seed=7)) == [
        example
    ]
    assert len(example.variants) == 6
    for plain, mirrored in zip(example.variants[:3], example.variants[3:], strict=True):
        part = pixels[:, plain.left : plain.left + 64]
        expected = torch.from_numpy(part.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        torch.testing.assert_close(read_pixels(example, plain), expected)
        torch.testing.assert_close(read_pixels(example, mirrored), expected.flip(-1))


def test_all_pictures_are_seen_equally_often() -> None:
    sampler = _sampler(*[SQUARE] * 5, *[WIDE] * 2)
    seen: Counter[int] = Counter()
    for _ in range(70):
        bucket, members = sampler.deal(4)
        assert len(members) == 4
        assert {member >= 5 for member in members} == {bucket == WIDE}
        seen.update(members)
    assert max(seen.values()) - min(seen.values()) <= 2
    assert set(seen) == set(range(7))


def test_a_picture_with_repeats_is_seen_as_much_more_often() -> None:
    sampler = _sampler(SQUARE, SQUARE, WIDE, repeats={1: 3, 2: 2})
    seen = Counter(member for _ in range(60) for member in sampler.deal(2)[1])
    assert seen == {0: 20, 1: 60, 2: 40}


def test_only_members_are_dealt() -> None:
    sampler = ImageSampler(_examples(SQUARE, SQUARE, WIDE), [1], seed=0)
    assert sampler.position == {"64x64": 0}
    assert sampler.deal(3) == (SQUARE, [1, 1, 1])


def test_every_round_is_shuffled_anew() -> None:
    sampler = _sampler(*[SQUARE] * 8)
    orders = {tuple(sampler.deal(8)[1]) for _ in range(6)}
    assert len(orders) == 6
    assert all(sorted(order) == list(range(8)) for order in orders)


def test_smaller_batches_deal_the_same_pictures() -> None:
    whole, halves = _sampler(*[SQUARE] * 5), _sampler(*[SQUARE] * 5)
    for _ in range(9):
        assert whole.deal(4)[1] == halves.deal(2)[1] + halves.deal(2)[1]
    assert whole.position == halves.position == {"64x64": 36}


def test_a_batch_may_be_larger_than_the_dataset() -> None:
    assert _sampler(SQUARE).deal(4) == (SQUARE, [0, 0, 0, 0])


@pytest.mark.parametrize("broken_off_at", [0, 1, 7, 23])
def test_a_sampler_goes_on_where_another_stood(broken_off_at: int) -> None:
    def make() -> ImageSampler:
        return _sampler(SQUARE, WIDE, SQUARE, SQUARE, WIDE, seed=9)

    unbroken, first, second = make(), make(), make()
    dealt = [unbroken.deal(3) for _ in range(40)]
    assert [first.deal(3) for _ in range(broken_off_at)] == dealt[:broken_off_at]
    second.restore(first.position)
    assert [second.deal(3) for _ in range(40 - broken_off_at)] == dealt[broken_off_at:]


def test_a_position_of_other_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="other pictures"):
        _sampler(SQUARE).restore({"128x64": 3})
