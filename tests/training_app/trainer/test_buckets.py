"""The arithmetic of aspect-ratio buckets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_app.trainer.buckets import (
    Bucket,
    buckets_for,
    choose_bucket,
    cover_size,
    cropped_share,
    enlargement,
)


def test_small_resolutions_know_the_square_only() -> None:
    assert buckets_for(64) == (Bucket(64, 64),)
    assert buckets_for(128) == (Bucket(128, 128),)


@pytest.mark.parametrize("resolution", [256, 512, 768, 1024])
def test_buckets_have_about_the_pixels_of_the_square(resolution: int) -> None:
    buckets = buckets_for(resolution)
    assert Bucket(resolution, resolution) in buckets
    assert len(set(buckets)) == len(buckets) > 1
    for bucket in buckets:
        assert bucket.width % 64 == bucket.height % 64 == 0
        assert 0.7 * resolution**2 <= bucket.width * bucket.height <= resolution**2
        assert 0.5 <= bucket.width / bucket.height <= 2
        assert Bucket(bucket.height, bucket.width) in buckets


def test_a_picture_goes_where_its_shape_is() -> None:
    assert choose_bucket(3000, 3000, 512) == Bucket(512, 512)
    wide = choose_bucket(1920, 1080, 512)
    tall = choose_bucket(1080, 1920, 512)
    assert (wide.width, wide.height) == (tall.height, tall.width)
    assert wide.width > wide.height


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_every_picture_covers_its_bucket_and_no_more_is_cropped_than_said(
    width: int, height: int
) -> None:
    bucket = choose_bucket(width, height, 512)
    covered = cover_size(width, height, bucket)
    assert covered[0] >= bucket.width and covered[1] >= bucket.height
    assert bucket.width in covered[:1] or bucket.height in covered[1:]
    assert 0 <= cropped_share(width, height, bucket) < 1


def test_what_is_cropped_is_counted() -> None:
    square = Bucket(64, 64)
    assert cropped_share(64, 64, square) == 0
    assert cropped_share(128, 64, square) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("size", "resolution", "bucket"),
    [
        ((600, 600), 1024, Bucket(1024, 1024)),
        ((400, 400), 1024, Bucket(768, 768)),
        ((200, 200), 1024, Bucket(384, 384)),
        ((200, 200), 520, Bucket(384, 384)),
        # Nothing is trained below 256, whatever has to be enlarged for it.
        ((20, 20), 1024, Bucket(256, 256)),
        # A base that is made for small pictures has one size.
        ((8, 8), 64, Bucket(64, 64)),
        ((1, 2000), 512, Bucket(192, 320)),
    ],
)
def test_a_small_picture_gets_a_smaller_bucket_not_a_larger_picture(
    size: tuple[int, int], resolution: int, bucket: Bucket
) -> None:
    assert choose_bucket(*size, resolution) == bucket
    if size == (1, 2000):
        assert enlargement(*size, bucket) == 192
    elif min(size) >= 128:
        assert enlargement(*size, bucket) <= 2
