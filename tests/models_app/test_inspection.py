"""What safetensors files are taken and refused."""

from __future__ import annotations

import json
import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models_app.inspection import (
    MAX_TENSORS,
    InspectionError,
    inspect_adapter,
    parse_json,
    read_header,
    sha256_of,
)
from tests.models_app.fixture_folders import write_raw, write_safetensors


def entry(
    start: int, end: int, shape: list[Any] | None = None, dtype: str = "U8"
) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [end - start] if shape is None else shape,
        "data_offsets": [start, end],
    }


def refused(path: Path) -> str:
    with pytest.raises(InspectionError) as caught:
        read_header(path)
    assert caught.value.detail.endswith(".")
    return caught.value.code


def test_reads_what_a_sound_file_says(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", {"b": (2, 3), "a": (4,)}, title="Fox")
    header = read_header(path)
    assert header.metadata == {"title": "Fox"}
    assert header.tensors["b"].shape == (2, 3)
    assert (header.tensors["a"].start, header.tensors["a"].end) == (12, 20)
    assert header.size_bytes == path.stat().st_size


def test_reads_a_scalar_and_an_empty_tensor(tmp_path: Path) -> None:
    header = {"s": entry(0, 1, []), "e": entry(1, 1, [0, 7])}
    assert (
        len(read_header(write_raw(tmp_path / "a", json.dumps(header).encode(), b"x")).tensors) == 2
    )


def test_agrees_with_the_library_on_its_own_files(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    from safetensors.numpy import save_file

    arrays = {f"t{i}": numpy.ones((i + 1, 3), dtype="float32") for i in range(5)}
    save_file(arrays, tmp_path / "a.safetensors", metadata={"k": "v"})
    found = read_header(tmp_path / "a.safetensors")
    assert {name: one.shape for name, one in found.tensors.items()} == {
        name: array.shape for name, array in arrays.items()
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_refuses_a_renamed_pickle(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps({"a": list(range(50))}, protocol=protocol))
    assert refused(path) == "pickle_weights"


def test_refuses_a_renamed_torch_archive(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    assert refused(path) == "pickle_weights"


def test_takes_a_header_whose_length_looks_like_a_pickle(tmp_path: Path) -> None:
    header = json.dumps({"a": entry(0, 1)}).encode().ljust(0x280)
    assert read_header(write_raw(tmp_path / "a", header, b"x")).tensors


def test_refuses_a_huge_header_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as handle:
        handle.write((64 * 1024**2).to_bytes(8, "little"))
        handle.truncate(128 * 1024**2)
    assert refused(path) == "weights_invalid"


def test_refuses_a_length_beyond_the_file(tmp_path: Path) -> None:
    assert refused(write_raw(tmp_path / "a", b"{}", length=2**63)) == "weights_invalid"


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_refuses_a_stump(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\x00" * size)
    assert refused(path) == "weights_invalid"


def test_refuses_too_many_tensors(tmp_path: Path) -> None:
    header = {f"t{i}": entry(0, 0) for i in range(MAX_TENSORS + 1)}
    assert refused(write_raw(tmp_path / "a", json.dumps(header).encode())) == "weights_invalid"


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 4), "b": entry(2, 6)},
        {"a": entry(0, 4), "b": entry(0, 4)},
        {"a": entry(0, 4), "b": entry(5, 8)},
        {"a": entry(1, 8)},
        {"a": entry(0, 9)},
        {"a": entry(0, 7)},
        {"a": entry(0, 8, [3])},
        {"a": entry(0, 8, [2, 4], "F4")},
        {"a": entry(0, 8, [8], "Q8")},
        {"a": {"dtype": ["U8"], "shape": [8], "data_offsets": [0, 8]}},
        {"a": entry(0, 8, [-8])},
        {"a": entry(0, 8, [8.0])},
        {"a": entry(0, 8, [True, 8])},
        {"a": entry(0, 8, [1] * 17 + [8])},
        {"a": {"dtype": "U8", "shape": [8], "data_offsets": [8, 0]}},
        {"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 4, 8]}},
        {"a": {"dtype": "U8", "shape": [8]}},
        {"a": {**entry(0, 8), "more": 1}},
        {"a": 7},
        {"__metadata__": {"a": 1}, "b": entry(0, 8)},
        {"__metadata__": []},
    ],
)
def test_refuses_impossible_layouts(tmp_path: Path, header: dict[str, Any]) -> None:
    path = write_raw(tmp_path / "a", json.dumps(header).encode(), b"x" * 8)
    assert refused(path) == "weights_invalid"


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "U8", "shape": [Infinity], "data_offsets": [0, 0]}}',
        b'{"a": 1, "a": 2}',
        b'{"a": ',
        b"[1, 2]",
        b' {"a": 1}',
        b'{"\xff": 1}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_refuses_what_is_not_strict_json(tmp_path: Path, text: bytes) -> None:
    assert refused(write_raw(tmp_path / "a", text)) == "weights_invalid"


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_end_in_a_header_or_a_refusal(content: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as handle:
        handle.write(content)
        handle.flush()
        try:
            read_header(Path(handle.name))
        except InspectionError as error:
            assert error.code in ("weights_invalid", "pickle_weights")


def test_a_missing_file_is_refused_with_a_sentence(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == "weights_invalid"


def test_configurations_are_strict_too() -> None:
    with pytest.raises(InspectionError, match="NaN"):
        parse_json(b'{"a": NaN}', "config.json")


def lora_file(path: Path, tensors: dict[str, tuple[int, ...]], **words: str) -> Path:
    """Write tensors of zeros under a header with words."""
    header: dict[str, Any] = {"__metadata__": {k.replace("__", "."): v for k, v in words.items()}}
    position = 0
    for name, shape in tensors.items():
        size = 4 * math.prod(shape)
        header[name] = entry(position, position + size, list(shape), "F32")
        position += size
    return write_raw(path, json.dumps(header).encode(), b"\0" * position)


def test_an_adapter_must_hold_lora_weights(tmp_path: Path) -> None:
    report = inspect_adapter(lora_file(tmp_path / "a", {"unet.x.lora_A.weight": (2, 8)}))
    assert (report.layout, report.rank, report.num_layers) == ("diffusers", 2, 1)
    assert (report.architecture, report.alpha, report.trigger_words) == (None, None, ())
    for name, shapes, sentence in (
        ("b", {"unet.x.weight": (2,)}, "no LoRA"),
        ("c", {"unet.x.lora_A.weight": (0, 8)}, "rank 0"),
        ("d", {"unet.x.lora_A.weight": ()}, "rank 0"),
        ("e", {"lora_unet_x.lora_down.weight": (2, 8), "lora_unet_x.hada_w1_a": (1,)}, "no part"),
        ("f", {"lora_unet_x.hada_w1_a": (2, 8)}, "no LoRA"),
    ):
        with pytest.raises(InspectionError, match=sentence):
            inspect_adapter(lora_file(tmp_path / name, shapes))


ATTENTION = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora.down.weight"


@pytest.mark.parametrize(
    "tensors, words, architecture",
    [
        ({ATTENTION: (4, 768)}, {}, "sd1"),
        ({ATTENTION: (4, 1024)}, {}, "sd2"),
        ({ATTENTION: (4, 2048)}, {}, "sdxl"),
        ({ATTENTION: (4, 32)}, {}, None),
        (
            {
                "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_v.lora_down.weight": (
                    4,
                    2048,
                )
            },
            {},
            "sdxl",
        ),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 8)}, {}, "sdxl"),
        ({ATTENTION: (4, 32)}, {"ss_base_model_version": "sd_v2_v"}, "sd2"),
        ({ATTENTION: (4, 32)}, {"ss_base_model_version": "sdxl_base_v0-9"}, "sdxl"),
        ({ATTENTION: (4, 32)}, {"modelspec__architecture": "stable-diffusion-v1/lora"}, "sd1"),
        (
            {ATTENTION: (4, 32)},
            {"modelspec__architecture": "stable-diffusion-xl-v1-base/lora"},
            "sdxl",
        ),
        ({ATTENTION: (4, 32)}, {"modelspec__architecture": "flux-1-dev/lora"}, None),
    ],
)
def test_the_family_of_an_adapter_is_told_by_words_or_shapes(
    tmp_path: Path,
    tensors: dict[str, tuple[int, ...]],
    words: dict[str, str],
    architecture: str | None,
) -> None:
    assert inspect_adapter(lora_file(tmp_path / "a", tensors, **words)).architecture == architecture


@pytest.mark.parametrize(
    "dtype, raw, alpha",
    [
        ("F32", struct.pack("<f", 7.5), 7.5),
        ("F16", struct.pack("<e", 7.5), 7.5),
        ("BF16", struct.pack("<f", 7.5)[2:], 7.5),
        ("F32", struct.pack("<f", math.nan), None),
        ("I64", struct.pack("<q", 7), None),
    ],
)
def test_the_alpha_of_an_adapter_is_read_from_its_tensor(
    tmp_path: Path, dtype: str, raw: bytes, alpha: float | None
) -> None:
    header = {
        "lora_unet_x.lora_down.weight": entry(0, 32, [4, 2], "F32"),
        "lora_unet_x.alpha": entry(32, 32 + len(raw), [], dtype),
    }
    path = write_raw(tmp_path / "a", json.dumps(header).encode(), b"\0" * 32 + raw)
    report = inspect_adapter(path)
    assert (report.layout, report.rank, report.alpha) == ("kohya", 4, alpha)


@pytest.mark.parametrize(
    "told, alpha",
    [
        ('{"unet.lora_alpha": 9}', 9.0),
        ('{"unet.lora_alpha": "9"}', None),
        ("[]", None),
        ("not json", None),
        ("", None),
    ],
)
def test_the_alpha_of_an_adapter_is_read_from_its_settings(
    tmp_path: Path, told: str, alpha: float | None
) -> None:
    path = lora_file(tmp_path / "a", {ATTENTION: (4, 8)}, lora_adapter_metadata=told)
    assert inspect_adapter(path).alpha == alpha


def test_trigger_words_are_bounded(tmp_path: Path) -> None:
    words = {"modelspec__trigger_phrase": "zuri,  fox  coat , ," + "x" * 500 + ",y" * 100}
    found = inspect_adapter(lora_file(tmp_path / "a", {ATTENTION: (4, 8)}, **words)).trigger_words
    assert found[:2] == ("zuri", "fox coat")
    assert (len(found), len(found[2])) == (20, 100)


def test_hashes_a_file_and_tells_how_far(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    told: list[int] = []
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "a", told.append) == digest
    assert sum(told) == 3
