"""Both layouts of a weights file, for every family: what other programs make of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models_app.adapter_loading import layer_names, put_on, read_adapter
from models_app.adapter_names import flat_layer, kohya_layer, parse_tensor_name
from models_app.inspection import InspectionError, inspect_adapter, read_json
from models_app.kohya_file import to_kohya
from models_app.loading import load_pipeline
from tests.tiny import make_tiny_sd, make_tiny_sdxl
from training_app.trainer.adapters import TARGETS, TEXT_ENCODER_TARGETS
from training_app.trainer.export import export_lora, read_lora
from training_app.trainer.request import TrainingRequest

RANK, ALPHA = 4, 10.0
MakeRequest = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {
        "sd1": make_tiny_sd(folder / "sd1"),
        "sd2": make_tiny_sd(folder / "sd2", prediction_type="v_prediction", seed=1),
        "sdxl": make_tiny_sdxl(folder / "sdxl"),
    }


@dataclasses.dataclass
class Trained:
    """Networks whose adapters do something, and the files that tell of them."""

    base: Path
    architecture: str
    picture: np.ndarray
    parameters: dict[str, torch.Tensor]
    diffusers: Path
    kohya: Path

    def plain(self) -> Any:
        return load_pipeline(self.base, self.architecture)


def paint(pipeline: Any) -> np.ndarray:
    pixels: np.ndarray = pipeline(
        "a zorp",
        num_inference_steps=2,
        width=64,
        height=64,
        output_type="np",
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    return pixels


def train(
    base: Path,
    architecture: str,
    request: TrainingRequest,
    folder: Path,
    *,
    dora: bool,
    size: float = 0.1,
) -> Trained:
    config = dataclasses.replace(request.config, use_dora=dora)
    request = dataclasses.replace(request, config=config)
    pipeline = load_pipeline(base, architecture)
    generator = torch.Generator().manual_seed(1)
    parameters: dict[str, torch.Tensor] = {}
    for component in ("unet", "text_encoder", "text_encoder_2"):
        network = getattr(pipeline, component, None)
        if network is None:
            continue
        targets = (TARGETS if component == "unet" else TEXT_ENCODER_TARGETS)["all"]
        network.add_adapter(
            LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(targets), use_dora=dora)
        )
        for name, parameter in network.named_parameters():
            if "magnitude" in name:
                noise = torch.rand(parameter.shape, generator=generator)
                parameter.data = parameter.data * (0.8 + 0.4 * noise)
            elif "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * size
            else:
                continue
            parameters[f"{component}.{name.replace('.default.', '.')}"] = parameter.detach()
    made = Trained(
        base,
        architecture,
        paint(pipeline),
        parameters,
        *(folder / f"{name}.safetensors" for name in ("diffusers", "kohya")),
    )
    export_lora(made.diffusers, parameters, request, 12)
    unet_config = read_json(base / "unet" / "config.json")
    to_kohya(made.diffusers, made.kohya, architecture=architecture, unet_config=unet_config)
    return made


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def request_for(
    make_request: MakeRequest, bases: dict[str, Path]
) -> Callable[[str], TrainingRequest]:
    def make(architecture: str) -> TrainingRequest:
        values = make_request({"rank": RANK, "alpha": ALPHA, "targets": "all"})
        request = TrainingRequest.from_dict(values)
        return dataclasses.replace(
            request, architecture=architecture, base_folder=bases[architecture]
        )

    return make


@pytest.fixture
def trained(
    architecture: str,
    bases: dict[str, Path],
    request_for: Callable[[str], TrainingRequest],
    tmp_path: Path,
) -> Callable[..., Trained]:
    def make(*, dora: bool = False) -> Trained:
        request = request_for(architecture)
        return train(bases[architecture], architecture, request, tmp_path, dora=dora)

    return make


def test_plain_diffusers_makes_the_trained_picture_of_both_layouts(
    trained: Callable[..., Trained],
) -> None:
    made = trained()
    pipeline = made.plain()
    assert np.abs(paint(pipeline) - made.picture).max() > 0.03
    for path in (made.diffusers, made.kohya):
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=path.stem)
        assert np.array_equal(paint(pipeline), made.picture), path.stem
        pipeline.delete_adapters(path.stem)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_our_reader_makes_the_trained_picture_of_both_layouts(
    trained: Callable[..., Trained], dora: bool
) -> None:
    made = trained(dora=dora)
    pipeline = made.plain()
    names = layer_names(pipeline)
    for path in (made.diffusers, made.kohya):
        put_on(pipeline, read_adapter(path, names), path.stem)
        assert np.array_equal(paint(pipeline), made.picture), path.stem
        pipeline.delete_adapters(path.stem)
    assert all(
        torch.equal(value, made.parameters[name])
        for name, value in read_lora(made.diffusers).items()
    )


def test_dora_is_read_by_plain_diffusers_from_its_own_layout_only(
    trained: Callable[..., Trained],
) -> None:
    made = trained(dora=True)
    pipeline = made.plain()
    path = made.diffusers
    pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="a")
    assert np.array_equal(paint(pipeline), made.picture)
    pipeline.delete_adapters("a")
    path = made.kohya
    pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="b")
    assert np.abs(paint(pipeline) - made.picture).max() > 0.01


def test_what_other_programs_make_of_a_dora(
    bases: dict[str, Path], request_for: Callable[[str], TrainingRequest], tmp_path: Path
) -> None:
    """LyCORIS' formula gives the trained weight, ComfyUI's comes close, A1111's does not."""
    made = train(bases["sd1"], "sd1", request_for("sd1"), tmp_path, dora=True, size=0.03)
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"
    key = f"lora_unet_{layer.replace('.', '_')}"
    file, pipeline = load_file(made.kohya), made.plain()
    base = pipeline.unet.get_submodule(layer).weight.detach().clone()
    product = file[f"{key}.lora_up.weight"] @ file[f"{key}.lora_down.weight"]
    changed = base + file[f"{key}.alpha"] / RANK * product
    scale = file[f"{key}.dora_scale"]
    assert scale.shape == (base.shape[0], 1)
    put_on(pipeline, read_adapter(made.kohya, layer_names(pipeline)), "a")
    worn = pipeline.unet.get_submodule(layer)
    worn.merge(adapter_names=["a"])
    trained = worn.get_base_layer().weight
    assert torch.allclose(changed * scale / changed.norm(dim=1, keepdim=True), trained, atol=1e-6)
    comfy = changed * scale / base.norm(dim=1, keepdim=True)
    a1111 = changed * scale / changed.norm(dim=0, keepdim=True)
    error = [float((other - trained).norm() / trained.norm()) for other in (comfy, a1111)]
    assert 0.001 < error[0] < 0.05
    assert error[1] > 0.5


def test_the_keys_are_those_that_other_programs_look_for(
    bases: dict[str, Path], request_for: Callable[[str], TrainingRequest], tmp_path: Path
) -> None:
    wanted = {
        "sd1": (
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj",
            "lora_unet_mid_block_resnets_1_conv2",
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        ),
        "sdxl": (
            "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k",
            "lora_unet_input_blocks_1_0_in_layers_2",
            "lora_unet_middle_block_1_proj_in",
            "lora_unet_output_blocks_1_0_out_layers_3",
            "lora_te1_text_model_encoder_layers_0_self_attn_out_proj",
            "lora_te2_text_model_encoder_layers_0_self_attn_out_proj",
        ),
    }
    for family, keys in wanted.items():
        made = train(bases[family], family, request_for(family), tmp_path / family, dora=False)
        tensors = load_file(made.kohya)
        for key in keys:
            assert tensors[f"{key}.alpha"].shape == ()
            assert tensors[f"{key}.alpha"] == ALPHA
            assert tensors[f"{key}.lora_down.weight"].shape[0] == RANK
            assert tensors[f"{key}.lora_up.weight"].shape[1] == RANK
        conv = (
            "lora_unet_mid_block_resnets_0_conv1"
            if family == "sd1"
            else ("lora_unet_middle_block_0_in_layers_2")
        )
        assert tensors[f"{conv}.lora_down.weight"].shape[2:] == (3, 3)
        assert tensors[f"{conv}.lora_up.weight"].shape[2:] == (1, 1)
        assert len(tensors) == len(made.parameters) // 2 * 3


#: Stable Diffusion XL's UNet, as far as names and shapes go.
XL_UNET = {
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (1, 2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "cross_attention_dim": 64,
}


def test_the_layers_of_the_real_xl_carry_the_names_of_the_original_code() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**XL_UNET)
    kinds = torch.nn.Linear | torch.nn.Conv2d
    layers = [name for name, module in unet.named_modules() if isinstance(module, kinds)]
    keys = {layer: kohya_layer("sdxl", "unet", layer, unet.config) for layer in layers}
    assert len(set(keys.values())) == len(layers)
    known = {
        "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
        "down_blocks.1.attentions.0.proj_in": "input_blocks_4_1_proj_in",
        "down_blocks.2.attentions.1.transformer_blocks.9.attn1.to_q": (
            "input_blocks_8_1_transformer_blocks_9_attn1_to_q"
        ),
        "mid_block.resnets.1.time_emb_proj": "middle_block_2_emb_layers_1",
        "up_blocks.0.attentions.2.transformer_blocks.0.ff.net.2": (
            "output_blocks_2_1_transformer_blocks_0_ff_net_2"
        ),
        "up_blocks.0.upsamplers.0.conv": "output_blocks_2_2_conv",
        "up_blocks.2.resnets.2.conv_shortcut": "output_blocks_8_0_skip_connection",
        "time_embedding.linear_2": "time_embed_2",
        "add_embedding.linear_1": "label_emb_0_0",
        "conv_in": "input_blocks_0_0",
        "conv_out": "out_2",
    }
    assert {layer: keys[layer].removeprefix("lora_unet_") for layer in known} == known


def test_a_layer_without_a_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="no name"):
        kohya_layer("sd1", "text_encoder_2", "encoder.layers.0", {})
    with pytest.raises(ValueError, match="no name"):
        kohya_layer("sdxl", "unet", "something.new", {"layers_per_block": 2})


@pytest.mark.parametrize(
    "name, expected",
    [
        (
            "unet.down_blocks.0.attn1.to_q.lora_A.weight",
            ("unet", "down_blocks_0_attn1_to_q", "down"),
        ),
        ("unet.a.attn1.processor.to_out_lora.up.weight", ("unet", "a_attn1_to_out_0", "up")),
        ("base_model.model.mid.to_k.lora_B.weight", ("unet", "mid_to_k", "up")),
        ("mid.to_k.lora.down.weight", ("unet", "mid_to_k", "down")),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight",
            ("text_encoder", "encoder_layers_0_self_attn_q_proj", "down"),
        ),
        (
            "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight",
            ("text_encoder_2", "encoder_layers_0_mlp_fc1", "up"),
        ),
        ("lora_te2_text_projection.alpha", ("text_encoder_2", "text_projection", "alpha")),
        (
            "lora_te_text_model_encoder_layers_1_mlp_fc2.dora_scale",
            ("text_encoder", "encoder_layers_1_mlp_fc2", "magnitude"),
        ),
        ("unet.a.lora_magnitude_vector.weight", ("unet", "a", "magnitude")),
        ("unet.a.lora_magnitude_vector", ("unet", "a", "magnitude")),
        ("lora_unet_a.hada_w1_a", None),
        ("lora_unet_a.lora_mid.weight", None),
        ("transformer.single_transformer_blocks.0.attn.to_q.weight", None),
        ("", None),
    ],
)
def test_names_of_every_layout_are_understood(
    name: str, expected: tuple[str, str, str] | None
) -> None:
    parsed = parse_tensor_name(name)
    assert (parsed and (parsed.component, parsed.flat, parsed.part)) == expected


def test_flat_names_agree_with_and_without_the_lost_level() -> None:
    names = ("text_model.encoder.layers.0.mlp.fc1", "encoder.layers.0.mlp.fc1")
    assert len({flat_layer(name) for name in names}) == 1


def test_the_header_tells_what_it_is(
    bases: dict[str, Path], request_for: Callable[[str], TrainingRequest], tmp_path: Path
) -> None:
    expected = {
        "sd1": ("sd_v1", "False", "stable-diffusion-v1/lora", "epsilon"),
        "sd2": ("sd_v2_v", "True", "stable-diffusion-v2-768-v/lora", "v"),
        "sdxl": ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora", "epsilon"),
    }
    for family, said in expected.items():
        made = train(bases[family], family, request_for(family), tmp_path / family, dora=False)
        for path in (made.diffusers, made.kohya):
            words = _words(path)
            assert said == tuple(
                words[name]
                for name in (
                    "ss_base_model_version",
                    "ss_v2",
                    "modelspec.architecture",
                    "modelspec.prediction_type",
                )
            )
            assert words["ss_network_dim"] == "4"
            assert words["ss_network_alpha"] == "10"
            assert words["ss_steps"] == "12"
            assert words["ss_num_train_images"] == "6"
            assert words["ss_resolution"] == "(64, 64)"
            assert words["ss_sd_model_name"] == "tiny"
            assert words["modelspec.sai_model_spec"] == "1.0.0"
            assert words["modelspec.implementation"] == "diffusers"
            assert words["modelspec.title"] == "My zorp"
            assert words["modelspec.resolution"] == "64x64"
            assert words["modelspec.trigger_phrase"] == "zorp"
            assert words["modelspec.usage_hint"] == "Trigger word: zorp"
            tags = json.loads(words["ss_tag_frequency"])["dataset"]
            assert tags["a zorp on a red background"] == 2
            _require_hash(path, words)
            report = inspect_adapter(path)
            assert (report.architecture, report.rank, report.alpha) == (family, RANK, ALPHA)
            assert (report.layout, report.trigger_words) == (path.stem, ("zorp",))
            assert report.is_dora is False
            assert report.num_layers == len(made.parameters) // 2
        settings = json.loads(_words(made.diffusers)["lora_adapter_metadata"])
        assert settings["unet.lora_alpha"] == settings["text_encoder.lora_alpha"] == ALPHA


def _words(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as stream:
        words: dict[str, str] = stream.metadata()
    return words


def _require_hash(path: Path, words: dict[str, str]) -> None:
    """The specification's hash is that of everything behind the header."""
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert words["modelspec.hash_sha256"] == f"0x{sha256(data).hexdigest()}"
    assert words["sshs_model_hash"] == sha256(data).hexdigest()


def test_equal_runs_give_equal_files(
    bases: dict[str, Path], request_for: Callable[[str], TrainingRequest], tmp_path: Path
) -> None:
    first, second = (
        train(bases["sd1"], "sd1", request_for("sd1"), tmp_path / name, dora=True) for name in "ab"
    )
    assert first.kohya.read_bytes() == second.kohya.read_bytes()
    assert first.diffusers.read_bytes() == second.diffusers.read_bytes()


def test_what_is_no_file_of_ours_is_refused_and_nothing_is_left(
    bases: dict[str, Path], request_for: Callable[[str], TrainingRequest], tmp_path: Path
) -> None:
    made = train(bases["sdxl"], "sdxl", request_for("sdxl"), tmp_path, dora=False)
    without_alpha = tmp_path / "bare.safetensors"
    save_file(load_file(made.diffusers), without_alpha)
    for source, family in ((made.kohya, "sdxl"), (without_alpha, "sdxl"), (made.diffusers, "sd1")):
        with pytest.raises(InspectionError):
            to_kohya(source, tmp_path / "new", architecture=family, unet_config={})
        assert not (tmp_path / "new").exists()
    with pytest.raises(FileExistsError):
        train(bases["sdxl"], "sdxl", request_for("sdxl"), tmp_path, dora=False)


def test_captions_of_any_length_leave_a_bounded_header(
    request_for: Callable[[str], TrainingRequest], tmp_path: Path
) -> None:
    request = request_for("sd1")
    image = request.images[0]
    images = tuple(
        dataclasses.replace(image, caption=", ".join([f"tag {i}", "common", "x" * 4000]))
        for i in range(2000)
    )
    parameters = {
        f"unet.conv_in.lora_{half}.weight": torch.ones(shape)
        for half, shape in (("A", (RANK, 4, 3, 3)), ("B", (32, RANK, 1, 1)))
    }
    path = tmp_path / "a.safetensors"
    export_lora(path, parameters, dataclasses.replace(request, images=images), 1)
    assert path.stat().st_size < 200_000
    tags = json.loads(_words(path)["ss_tag_frequency"])["dataset"]
    assert (len(tags), tags["common"]) == (500, 2000)
