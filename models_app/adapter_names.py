"""How files call the layers of a LoRA: diffusers', peft's and kohya's names; no torch, no Django.

One tensor name is split by :func:`parse_tensor_name` into the network it belongs to, the layer and
the part of the adapter. Layers are compared by their *flat* name, with ``_`` for every dot: kohya's
names cannot be split back into dots (``to_out_0`` or ``to_out.0``?), but the network that is to
wear the adapter knows its own layers. :func:`kohya_layer` writes what A1111, Forge, ComfyUI and
kohya's own tools read.

Source: kohya-ss/sd-scripts, ``networks/lora.py`` and ``library/sdxl_model_util.py``; the block
names of SDXL are those of Stability-AI/generative-models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DOWN, UP, MAGNITUDE, ALPHA = "down", "up", "magnitude", "alpha"


@dataclass(frozen=True)
class KohyaFamily:
    """What kohya's files call a family of models.

    Attributes:
        version: Value of ``ss_base_model_version``.
        version_prefix: What all such values of the family begin with.
        prefixes: What stands before a layer's name, by the folder of its network.
        block_names: Whether the layers of the UNet carry the names of the original code
            (``input_blocks``) instead of diffusers' (``down_blocks``).
    """

    version: str
    version_prefix: str
    prefixes: Mapping[str, str]
    block_names: bool = False


_SD = {"unet": "lora_unet", "text_encoder": "lora_te"}
KOHYA_FAMILIES = {
    "sd1": KohyaFamily("sd_v1", "sd_v1", _SD),
    "sd2": KohyaFamily("sd_v2", "sd_v2", _SD),
    "sdxl": KohyaFamily(
        "sdxl_base_v1-0",
        "sdxl_",
        {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
        block_names=True,
    ),
}


@dataclass(frozen=True)
class TensorName:
    """A tensor of an adapter.

    Attributes:
        component: ``unet``, ``text_encoder`` or ``text_encoder_2``.
        layer: The layer as the file names it: with dots, or all in one in kohya's layout.
        part: ``down``, ``up``, ``magnitude`` or ``alpha``.
    """

    component: str
    layer: str
    part: str

    @property
    def flat(self) -> str:
        """The layer's name in which all layouts agree, see :func:`flat_layer`."""
        return flat_layer(self.layer)


_KOHYA = re.compile(
    r"lora_(?P<component>unet|te|te1|te2)_(?P<layer>\w+)"
    r"\.(?P<part>lora_down\.weight|lora_up\.weight|alpha|dora_scale)"
)
_DOTTED = re.compile(
    r"(?:(?P<component>unet|text_encoder_2|text_encoder)\.|base_model\.model\.)?"
    r"(?P<layer>\w+(?:\.\w+)*?)"
    r"(?:\.(?P<part>lora_A|lora_B|lora\.down|lora\.up|lora_down|lora_up"
    r"|lora_linear_layer\.down|lora_linear_layer\.up)\.weight"
    r"|_lora\.(?P<old>down|up)\.weight"
    r"|\.(?P<magnitude>lora_magnitude_vector(?:\.weight)?|dora_scale)"
    r"|\.(?P<alpha>alpha))"
)
_COMPONENTS = {
    "unet": "unet",
    "te": "text_encoder",
    "te1": "text_encoder",
    "te2": "text_encoder_2",
    None: "unet",
}
_PARTS = {
    **dict.fromkeys(("lora_A", "lora.down", "lora_down", "lora_linear_layer.down"), DOWN),
    **dict.fromkeys(("lora_B", "lora.up", "lora_up", "lora_linear_layer.up"), UP),
    **{"lora_down.weight": DOWN, "lora_up.weight": UP, "alpha": ALPHA, "dora_scale": MAGNITUDE},
}
#: Layers as diffusers called them before it used peft.
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def flat_layer(layer: str) -> str:
    """A layer's name in which all layouts agree: no dots, no ``text_model`` in front."""
    # CLIP lost this level in transformers 5, but only without a projection.
    return layer.replace(".", "_").removeprefix("text_model_")


def parse_tensor_name(name: str) -> TensorName | None:
    """Splits the name of a tensor; ``None`` if it belongs to no LoRA of a kind known here."""
    if found := _KOHYA.fullmatch(name):
        component = _COMPONENTS[found["component"]]
        return TensorName(component, found["layer"], _PARTS[found["part"]])
    found = _DOTTED.fullmatch(name)
    if found is None:
        return None
    component = found["component"] or "unet"
    layer = found["layer"].replace(".processor.", ".")
    if found["old"]:
        return TensorName(component, _old_layer(component, layer), found["old"])
    part = ALPHA if found["alpha"] else MAGNITUDE if found["magnitude"] else _PARTS[found["part"]]
    return TensorName(component, layer, part)


def _old_layer(component: str, layer: str) -> str:
    head, _, last = layer.rpartition(".")
    if component == "unet":
        return f"{layer}.0" if last == "to_out" else layer
    return f"{head}.{_OLD_TEXT.get(last, last)}"


def kohya_layer(
    architecture: str, component: str, layer: str, unet_config: Mapping[str, Any]
) -> str:
    """What a kohya file calls a layer, without the part of the adapter.

    Args:
        architecture: Name of the family.
        component: Folder of the network.
        layer: The layer's name in diffusers or transformers, with dots.
        unet_config: Configuration of the UNet, which numbers the blocks.

    Raises:
        ValueError: If such files have no name for it.
    """
    family = KOHYA_FAMILIES.get(architecture)
    if family is None or component not in family.prefixes:
        raise ValueError(f"kohya's layout has no name for {component} of {architecture}")
    if component != "unet":
        flat = flat_layer(layer)
        return f"{family.prefixes[component]}_{_text_level(flat)}{flat}"
    name = block_name(layer, unet_config) if family.block_names else layer
    return f"{family.prefixes[component]}_{name.replace('.', '_')}"


def _text_level(flat: str) -> str:
    return "" if flat == "text_projection" else "text_model_"


_OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(
    r"(?:(?P<side>down|up)_blocks\.(?P<block>\d+)|mid_block)"
    r"\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<index>\d+)\.(?P<rest>.+)"
)


def block_name(layer: str, unet_config: Mapping[str, Any]) -> str:
    """What the original code of Stable Diffusion calls a layer of diffusers' UNet.

    Args:
        layer: diffusers' name.
        unet_config: ``layers_per_block`` and ``up_block_types`` of it are read.

    Raises:
        ValueError: If the original code has no such layer.
    """
    if layer in _OUTER:
        return _OUTER[layer]
    found = _BLOCK.fullmatch(layer)
    per_block = unet_config.get("layers_per_block")
    if found is None or not isinstance(per_block, int):
        raise ValueError(f"{layer} has no name in the original code")
    kind, index = found["kind"], int(found["index"])
    rest = _RESNET.get(found["rest"], found["rest"]) if kind == "resnets" else found["rest"]
    if found["side"] is None:
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{rest}"
    first = int(found["block"]) * (per_block + 1)
    if kind == "downsamplers":
        return f"input_blocks.{1 + first + per_block}.0.op"
    if kind == "upsamplers":
        has_attention = "CrossAttn" in str(unet_config["up_block_types"][int(found["block"])])
        return f"output_blocks.{first + per_block}.{2 if has_attention else 1}.{rest}"
    place = 1 if kind == "attentions" else 0
    if found["side"] == "down":
        return f"input_blocks.{1 + first + index}.{place}.{rest}"
    return f"output_blocks.{first + index}.{place}.{rest}"
