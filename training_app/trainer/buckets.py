"""Which size a picture is trained at: aspect-ratio buckets, as plain arithmetic.

All pictures of one bucket share one size, so they share batches and their shapes stay
fixed. No picture is touched here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Sides of buckets are multiples of this; smaller resolutions know the square only.
BUCKET_STEP = 64
#: Longest side over shortest side; longer pictures are cropped to it.
MAXIMUM_RATIO = 2.0
#: From this resolution on there are buckets beside the square one.
MINIMUM_RESOLUTION = 256


@dataclass(frozen=True, order=True)
class Bucket:
    """A size that pictures are trained at, in pixels.

    Attributes:
        width: A multiple of the VAE's factor.
        height: A multiple of the VAE's factor.
    """

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def buckets_for(resolution: int) -> tuple[Bucket, ...]:
    """All buckets of about ``resolution``² pixels, the square one among them, sorted.

    Every bucket is the largest of its width that has no more pixels than the square.
    """
    square = Bucket(resolution, resolution)
    if resolution < MINIMUM_RESOLUTION:
        return (square,)
    area = resolution * resolution
    found = {square}
    longest = math.floor(math.sqrt(area * MAXIMUM_RATIO) / BUCKET_STEP) * BUCKET_STEP
    for long_side in range(BUCKET_STEP, longest + 1, BUCKET_STEP):
        short_side = area // long_side // BUCKET_STEP * BUCKET_STEP
        if 0 < short_side <= long_side <= short_side * MAXIMUM_RATIO and long_side > resolution:
            found |= {Bucket(long_side, short_side), Bucket(short_side, long_side)}
    return tuple(sorted(found))


def choose_bucket(width: int, height: int, buckets: tuple[Bucket, ...]) -> Bucket:
    """The bucket whose shape is nearest to a picture's; of two, the first.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        buckets: At least one.
    """
    shape = math.log(width / height)
    return min(buckets, key=lambda bucket: abs(shape - math.log(bucket.width / bucket.height)))


def cover_size(width: int, height: int, bucket: Bucket) -> tuple[int, int]:
    """Smallest size of the picture's own shape that covers the bucket."""
    scale = max(bucket.width / width, bucket.height / height)
    return max(bucket.width, round(width * scale)), max(bucket.height, round(height * scale))


def center_offset(width: int, height: int, bucket: Bucket) -> tuple[int, int]:
    """What is cut off at the left and top of a covering picture to keep its middle."""
    covered_width, covered_height = cover_size(width, height, bucket)
    return (covered_width - bucket.width) // 2, (covered_height - bucket.height) // 2


def cropped_share(width: int, height: int, bucket: Bucket) -> float:
    """Share of a picture's area that is cut off in a bucket, from 0 to 1."""
    covered_width, covered_height = cover_size(width, height, bucket)
    return 1 - bucket.width * bucket.height / (covered_width * covered_height)
