"""What is kept of a picture, and what is refused before and while it is decoded."""

from __future__ import annotations

import hashlib
import struct
import threading
import tracemalloc
from io import BytesIO

import pytest
from PIL import Image, ImageCms, ImageDraw
from PIL.PngImagePlugin import PngInfo

from datasets_app.images import KeptPicture, keep_picture, pixel_sha256
from datasets_app.refusals import Refused
from datasets_app.sentences import SENTENCES
from tests.datasets_app import makers

MAX_PIXELS = 50_000_000


def keep(content: bytes, max_pixels: int = MAX_PIXELS) -> tuple[KeptPicture, Image.Image]:
    kept = BytesIO()
    picture = keep_picture(BytesIO(content), kept, max_pixels=max_pixels)
    assert kept.tell() == 0
    assert picture.size_bytes == len(kept.getvalue())
    return picture, Image.open(kept)


def refusal(content: bytes, **options: int) -> str:
    kept = BytesIO()
    with pytest.raises(Refused) as caught:
        keep_picture(BytesIO(content), kept, max_pixels=options.get("max_pixels", MAX_PIXELS))
    assert caught.value.code in SENTENCES
    assert not kept.getvalue(), "nothing may be written of what is refused"
    return caught.value.code


def psnr(first: Image.Image, second: Image.Image) -> float:
    from math import log10

    pairs = zip(first.convert("RGB").tobytes(), second.convert("RGB").tobytes(), strict=True)
    errors = [(a - b) ** 2 for a, b in pairs]
    mean = sum(errors) / len(errors)
    return 99.0 if mean == 0 else 10 * log10(255**2 / mean)


# --- kept ---------------------------------------------------------------------------------------
def test_png_keeps_its_pixels_exactly() -> None:
    source = makers.gradient(3)
    picture, kept = keep(makers.encoded(source))
    assert (picture.format, kept.format, kept.mode) == ("png", "PNG", "RGB")
    assert kept.tobytes() == source.tobytes()
    assert (picture.width, picture.height) == source.size


def test_lossless_webp_keeps_its_pixels_exactly() -> None:
    source = makers.gradient(4)
    picture, kept = keep(makers.encoded(source, "WEBP", lossless=True))
    assert (picture.format, kept.format) == ("webp", "WEBP")
    assert kept.convert("RGB").tobytes() == source.tobytes()


def test_extended_lossless_webp_is_recognised_behind_its_other_chunks() -> None:
    source = makers.gradient(4).convert("RGBA")
    source.putpixel((0, 0), (10, 20, 30, 0))
    content = makers.encoded(source, "WEBP", lossless=True, exact=True, exif=b"Exif\0\0MM\0*")
    assert content[12:16] == b"VP8X"
    picture, kept = keep(content)
    assert picture.format == "webp"
    assert kept.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_pictures_are_kept_as_fine_jpeg(kind: str) -> None:
    source = makers.gradient(5, (64, 48)).resize((256, 192), Image.Resampling.BICUBIC)
    content = makers.encoded(source, kind, quality=80)
    picture, kept = keep(content)
    assert picture.format == "jpeg"
    assert kept.format == "JPEG"
    assert kept.layer[0][1:3] == (1, 1)  # type: ignore[attr-defined]  # 4:4:4
    best = Image.open(BytesIO(makers.encoded(source, "JPEG", quality=95)))
    assert kept.quantization == best.quantization  # type: ignore[attr-defined]
    assert psnr(Image.open(BytesIO(content)), kept) > 40


def test_the_hash_is_of_the_size_and_the_pixels_of_the_kept_file() -> None:
    for content in (makers.png(1), makers.encoded(makers.gradient(1), "JPEG")):
        picture, kept = keep(content)
        pixels = f"{kept.width}x{kept.height}:".encode() + kept.convert("RGB").tobytes()
        assert picture.pixel_sha256 == hashlib.sha256(pixels).hexdigest()


def test_hash_tells_shapes_of_the_same_bytes_apart_and_crosses_strips() -> None:
    assert pixel_sha256(Image.new("RGB", (2, 8))) != pixel_sha256(Image.new("RGB", (8, 2)))
    tall = makers.gradient(2, (3, 700))
    whole = hashlib.sha256(b"3x700:" + tall.tobytes()).hexdigest()
    assert pixel_sha256(tall) == whole


def test_the_same_pixels_in_another_file_have_the_same_hash() -> None:
    source = makers.gradient(6)
    info = PngInfo()
    info.add_text("parameters", "a fox")
    with_text = makers.encoded(source, "PNG", pnginfo=info, compress_level=1)
    as_webp = makers.encoded(source, "WEBP", lossless=True)
    hashes = {keep(content)[0].pixel_sha256 for content in (makers.png(6), with_text, as_webp)}
    assert len(hashes) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_are_turned_the_right_way_up(orientation: int, kind: str) -> None:
    upright = Image.new("RGB", (48, 32), "white")
    ImageDraw.Draw(upright).rectangle((0, 0, 15, 15), fill="red")
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture, kept = keep(makers.encoded(stored, kind, exif=exif, quality=95))
    assert (picture.width, picture.height) == (48, 32)
    red, green, blue = kept.convert("RGB").getpixel((6, 6))  # type: ignore[misc]
    assert red > 240 and green < 20 and blue < 20


def test_location_comments_and_texts_are_gone() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825)[1] = "N"
    exif[0x010E] = "secret place"
    info = PngInfo()
    info.add_text("Comment", "secret place")
    contents = [
        makers.encoded(makers.gradient(), "PNG", exif=exif, pnginfo=info),
        makers.encoded(makers.gradient(), "JPEG", exif=exif, comment=b"secret place"),
        makers.encoded(makers.gradient(), "WEBP", lossless=True, exif=exif, xmp=b"secret place"),
        makers.encoded(makers.gradient(), "JPEG", exif=exif) + b"secret place",
    ]
    for content in contents:
        assert b"secret" in content
        kept = BytesIO()
        picture = keep_picture(BytesIO(content), kept, max_pixels=MAX_PIXELS)
        for stored in (kept.getvalue(), picture.thumbnail):
            assert b"secret" not in stored
            assert not Image.open(BytesIO(stored)).getexif()


def test_damaged_exif_does_not_matter() -> None:
    content = makers.encoded(
        makers.gradient(), "WEBP", lossless=True, exif=b"Exif\0\0MM\0*\xff\xff\xff"
    )
    assert keep(content)[0].width == 24


def test_alpha_is_flattened_on_white() -> None:
    source = makers.gradient().convert("RGBA")
    source.putpixel((0, 0), (9, 9, 9, 0))
    source.putpixel((1, 0), (0, 0, 0, 128))
    _picture, kept = keep(makers.encoded(source))
    assert kept.getpixel((0, 0)) == (255, 255, 255)
    assert kept.getpixel((1, 0)) == (127, 127, 127)
    assert kept.getpixel((5, 5)) == source.getpixel((5, 5))[:3]  # type: ignore[index]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA"])
def test_other_modes_become_rgb(mode: str) -> None:
    source = makers.gradient().convert("L").convert(mode) if mode != "PA" else None
    if source is None:
        source = makers.gradient().convert("P")
        content = makers.encoded(source, transparency=source.getpixel((0, 0)))
        _picture, kept = keep(content)
        assert kept.getpixel((0, 0)) == (255, 255, 255)
        return
    _picture, kept = keep(makers.encoded(source))
    assert kept.mode == "RGB"
    assert kept.tobytes() == source.convert("RGB").tobytes()


def test_transparent_colour_of_grey_and_rgb_png_becomes_white() -> None:
    for source in (makers.gradient(), makers.gradient().convert("L")):
        clear = source.getpixel((3, 3))
        _picture, kept = keep(makers.encoded(source, transparency=clear))
        assert kept.getpixel((3, 3)) == (255, 255, 255)
        assert kept.getpixel((4, 9)) == source.convert("RGB").getpixel((4, 9))


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    levels = (0, 257, 32_896, 40_000, 65_535)
    content = makers.raw_png(5, 1, bits=16, colour=0, rows=b"\0" + struct.pack(">5H", *levels))
    _picture, kept = keep(content)
    greys = [kept.getpixel((x, 0))[0] for x in range(5)]  # type: ignore[index]
    assert greys == [0, 1, 128, 156, 255]


def test_16_bit_colour_and_alpha_are_scaled() -> None:
    rgb = struct.pack(">6H", 0, 257, 32_896, 65_535, 40_000, 65_535)
    _picture, kept = keep(makers.raw_png(2, 1, bits=16, colour=2, rows=b"\0" + rgb))
    assert [kept.getpixel((x, 0)) for x in (0, 1)] == [(0, 1, 128), (255, 156, 255)]
    grey_alpha = struct.pack(">4H", 40_000, 65_535, 0, 0)
    _picture, kept = keep(makers.raw_png(2, 1, bits=16, colour=4, rows=b"\0" + grey_alpha))
    assert [kept.getpixel((x, 0)) for x in (0, 1)] == [(156,) * 3, (255,) * 3]


@pytest.mark.parametrize("colour", [0, 2])
def test_16_bit_transparent_colour_becomes_white(colour: int) -> None:
    samples = 1 if colour == 0 else 3
    row = struct.pack(f">{2 * samples}H", *[10_000] * samples, *[50_000] * samples)
    clear = makers.chunk(b"tRNS", struct.pack(f">{samples}H", *[10_000] * samples))
    content = makers.raw_png(2, 1, bits=16, colour=colour, rows=b"\0" + row, extra=clear)
    _picture, kept = keep(content)
    assert kept.getpixel((0, 0)) == (255, 255, 255)
    assert kept.getpixel((1, 0)) == (195, 195, 195)


def swapped_profile() -> bytes:
    """A profile of other primaries: what is red in it is far from red in sRGB."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = struct.unpack(">I", profile[128:132])[0]
    places = {}
    for index in range(tags):
        at = 132 + 12 * index
        places[bytes(profile[at : at + 4])] = at
    red, blue = places[b"rXYZ"], places[b"bXYZ"]
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_embedded_profile_is_converted_to_srgb_and_dropped(kind: str) -> None:
    source = Image.new("RGB", (16, 16), (250, 20, 20))
    _picture, kept = keep(makers.encoded(source, kind, icc_profile=swapped_profile(), quality=95))
    red, _green, blue = kept.getpixel((8, 8))  # type: ignore[misc]
    assert blue > 200 > 60 > red
    assert "icc_profile" not in kept.info


def test_an_srgb_profile_changes_no_pixel() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = makers.gradient(7, (60, 60))
    _picture, kept = keep(makers.encoded(source, icc_profile=srgb))
    assert kept.tobytes() == source.tobytes()


@pytest.mark.parametrize("profile", [b"not a profile", b"\0" * 200])
def test_a_damaged_profile_is_ignored(profile: bytes) -> None:
    source = makers.gradient(8)
    _picture, kept = keep(makers.encoded(source, icc_profile=profile))
    assert kept.tobytes() == source.tobytes()


def test_a_profile_of_other_channels_is_ignored() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = makers.gradient(8).convert("L")
    _picture, kept = keep(makers.encoded(source, icc_profile=srgb))
    assert kept.tobytes() == source.convert("RGB").tobytes()


def test_cmyk_jpeg_becomes_rgb() -> None:
    content = makers.encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    picture, kept = keep(content)
    assert picture.format == "jpeg"
    red, green, blue = kept.getpixel((8, 8))  # type: ignore[misc]
    assert red > 230 and green < 40 and blue < 40


def test_camera_jpeg_with_a_second_picture_keeps_the_first() -> None:
    out = BytesIO()
    makers.gradient(1).save(out, "MPO", save_all=True, append_images=[makers.gradient(2)])
    picture, kept = keep(out.getvalue())
    assert picture.format == "jpeg"
    assert psnr(kept, Image.open(BytesIO(makers.encoded(makers.gradient(1), "JPEG")))) > 30


def test_thumbnail_is_a_webp_of_at_most_384_pixels_a_side() -> None:
    picture, _kept = keep(makers.encoded(Image.new("RGB", (1000, 500), "teal")))
    small = Image.open(BytesIO(picture.thumbnail))
    assert (small.format, small.size) == ("WEBP", (384, 192))
    picture, _kept = keep(makers.png())
    assert Image.open(BytesIO(picture.thumbnail)).size == (24, 16)


def test_very_long_pictures_have_a_thumbnail_as_well() -> None:
    picture, _kept = keep(makers.encoded(Image.new("L", (20_000, 1), 7)))
    assert Image.open(BytesIO(picture.thumbnail)).size == (384, 1)


def test_the_name_of_a_file_says_nothing() -> None:
    # `keep_picture` never sees it: a JPEG called .png is a JPEG.
    assert keep(makers.encoded(makers.gradient(), "JPEG"))[0].format == "jpeg"


# --- refused ------------------------------------------------------------------------------------
def animated(kind: str) -> bytes:
    frames = [makers.gradient(seed) for seed in (1, 2)]
    return makers.encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"just a text that was called fox.png", "not_a_picture"),
        (b"\0" * 5000, "not_a_picture"),
        (b"PK\x03\x04 a document", "not_a_picture"),
        (makers.SVG, "unsupported_svg"),
        (b"<svg viewBox='0 0 1 1'/>", "unsupported_svg"),
        (b"\xef\xbb\xbf  <!-- drawn --><svg/>", "unsupported_svg"),
        (b"<?xml version='1.0'?><html/>", "not_a_picture"),
        (makers.HEIC, "unsupported_heic"),
        (makers.AVIF, "unsupported_avif"),
        (makers.GIF, "unsupported_gif"),
        (b"BM" + b"\0" * 100, "unsupported_format"),
        (b"II*\x00" + b"\0" * 100, "unsupported_format"),
        (b"%PDF-1.7", "unsupported_format"),
        (b"\x00\x00\x00\x18ftypisom\x00\x00\x00\x00", "unsupported_format"),
        (animated("PNG"), "animated_picture"),
        (animated("WEBP"), "animated_picture"),
        (animated("GIF"), "unsupported_gif"),
        (makers.huge_png(), "too_many_pixels"),
        (makers.raw_png(2**31 - 1, 2**31 - 1), "too_many_pixels"),
        (makers.raw_png(66_000, 1, rows=b"\0" * 198_001), "too_long"),
        (makers.raw_png(0, 10), "damaged_picture"),
        (b"\xff\xd8\xff\xe0", "truncated_picture"),
        (b"\x89PNG\r\n\x1a\n", "truncated_picture"),
        (b"RIFF\xff\xff\x00\x00WEBPVP8 ", "truncated_picture"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(content: bytes, code: str) -> None:
    assert refusal(content) == code


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_pictures_are_refused_as_such(kind: str, share: float) -> None:
    content = makers.encoded(makers.gradient(9, (120, 90)), kind)
    assert refusal(content[: int(len(content) * share)]) == "truncated_picture"


def test_damaged_png_is_refused_as_such() -> None:
    content = bytearray(makers.png(9, (60, 60)))
    content[60] ^= 0xFF
    assert refusal(bytes(content)) == "damaged_picture"


def test_pixels_are_counted_before_they_are_decoded() -> None:
    header_only = makers.huge_png()
    tracemalloc.start()
    refusal(header_only)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_webp_canvas_is_checked_before_the_decoder_sees_it() -> None:
    body = b"\0\0\0\0" + (16_382).to_bytes(3, "little") * 2
    content = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + body
    assert refusal(content) == "too_many_pixels"


def test_a_jpeg_of_many_pixels_is_refused_by_its_header() -> None:
    content = bytearray(makers.encoded(makers.gradient(), "JPEG"))
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    assert refusal(bytes(content)) == "too_many_pixels"


def test_the_pixel_cap_is_the_callers() -> None:
    assert refusal(makers.png(), max_pixels=383) == "too_many_pixels"
    assert keep(makers.png(), max_pixels=384)[0].width == 24


def test_a_text_chunk_that_unpacks_to_too_much_is_refused() -> None:
    import zlib

    bomb = makers.chunk(b"zTXt", b"x\0\0" + zlib.compress(b"\0" * 5_000_000, 9))
    content = makers.raw_png(1, 1, rows=b"\0\0\0\0", extra=bomb)
    assert refusal(content) == "damaged_picture"


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    content = makers.encoded(makers.gradient(), "JPEG", progressive=True)
    at = content.index(b"\xff\xda")
    end = content.index(b"\xff", at + 2)
    while content[end + 1] == 0:
        end = content.index(b"\xff", end + 2)
    scan = content[at:end]
    assert refusal(content[:at] + scan * 200 + content[at:]) == "damaged_picture"


def test_a_jpeg_of_endless_segments_is_refused_quickly() -> None:
    content = b"\xff\xd8\xff" + b"\xe1\x00\x02\xff" * 200_000
    assert refusal(content) == "not_a_picture"


def test_random_damage_never_raises_anything_else() -> None:
    import random

    chance = random.Random(5)
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = makers.encoded(makers.gradient(1, (40, 30)), kind)
        for _round in range(150):
            content = bytearray(whole)
            for _change in range(chance.randint(1, 6)):
                content[chance.randrange(len(content))] = chance.randrange(256)
            del content[chance.randint(len(content) // 2, len(content)) :]
            try:
                keep_picture(BytesIO(bytes(content)), BytesIO(), max_pixels=1_000_000)
            except Refused:
                continue


def test_it_works_in_threads() -> None:
    hashes: list[str] = []
    workers = [
        threading.Thread(target=lambda: hashes.append(keep(makers.png(3))[0].pixel_sha256))
        for _index in range(6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(hashes) == 6 and len(set(hashes)) == 1
