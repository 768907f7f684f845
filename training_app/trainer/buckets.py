"""Which size a picture is trained at: aspect-ratio buckets, as plain arithmetic.

All pictures of one bucket share one size, so they share batches and their shapes stay
fixed. No picture is touched here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

#: Sides of buckets are multiples of this; smaller resolutions know the square only.
BUCKET_STEP = 64
#: Longest side over shortest side; longer pictures are cropped to it.
MAXIMUM_RATIO = 2.0
#: From this resolution on there are buckets beside the square one.
MINIMUM_RESOLUTION = 256
#: A picture is enlarged to at most this many times its sides, if a smaller bucket is left.
MAXIMUM_ENLARGEMENT = 2.0


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


@cache
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


def choose_bucket(width: int, height: int, resolution: int) -> Bucket:
    """The bucket that a picture is trained in: of its shape, and not far above its size.

    A picture that would be enlarged too much gets the bucket of a smaller resolution; if
    none is small enough, that of the smallest.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        resolution: Side of the square bucket, in pixels.
    """
    bucket = _nearest(width, height, resolution)
    # Sides of smaller buckets are multiples of the step, whatever the resolution is.
    resolution = (resolution - 1) // BUCKET_STEP * BUCKET_STEP
    while (
        enlargement(width, height, bucket) > MAXIMUM_ENLARGEMENT
        and resolution >= MINIMUM_RESOLUTION
    ):
        bucket = _nearest(width, height, resolution)
        resolution -= BUCKET_STEP
    return bucket


def _nearest(width: int, height: int, resolution: int) -> Bucket:
    """The bucket of a resolution whose shape is nearest to a picture's; of two, the first."""
    shape = math.log(width / height)
    return min(
        buckets_for(resolution),
        key=lambda bucket: abs(shape - math.log(bucket.width / bucket.height)),
    )


def enlargement(width: int, height: int, bucket: Bucket) -> float:
    """How many times larger the sides of a picture become when it covers a bucket."""
    return max(bucket.width / width, bucket.height / height)


def cover_size(width: int, height: int, bucket: Bucket) -> tuple[int, int]:
    """Smallest size of the picture's own shape that covers the bucket."""
    scale = enlargement(width, height, bucket)
    return max(bucket.width, round(width * scale)), max(bucket.height, round(height * scale))


def cropped_share(width: int, height: int, bucket: Bucket) -> float:
    """Share of a picture's area that is cut off in a bucket, from 0 to 1."""
    covered_width, covered_height = cover_size(width, height, bucket)
    return 1 - bucket.width * bucket.height / (covered_width * covered_height)
