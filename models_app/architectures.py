"""What each family of diffusion models is made of and how its prompts become conditioning.

One entry of :data:`ARCHITECTURES` describes one family: its networks, the size it was
made for, how a prompt is encoded and what its denoiser wants to know beside the noisy
latents. To add a family is to add an entry. This module loads no weights (see
``loading``), and importing it costs nothing: torch arrives with the networks that its
functions are given.

Shape legend: B pictures, T tokens (77), D width of the text encoders together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: The parts of a pipeline by the name of their folder.
Components = Mapping[str, Any]
#: Token ids (B, T) by folder of the text encoder, and ``<folder>.mask`` of them.
Tokens = Mapping[str, Any]
#: (width, height), or (left, top), in pixels.
Size = tuple[int, int]


@dataclass(frozen=True)
class Conditioning:
    """What a denoiser is told about a batch beside the noisy latents.

    Attributes:
        tensors: Named tensors whose first dimension is the batch. Every family has
            ``prompt_embeds`` (B, T, D); SDXL also ``pooled_prompt_embeds`` (B, D₂) and, when
            the denoiser is called, ``time_ids`` (B, 6).
    """

    # Not `torch.Tensor`: the site reads this module's table and must not know torch.
    tensors: Mapping[str, Any]


def _encode_clip(components: Components, tokens: Tokens, clip_skip: int | None) -> Conditioning:
    """Encodes prompts with one CLIP text encoder, as SD 1.x and 2.x do.

    Source: diffusers, ``StableDiffusionPipeline.encode_prompt``; equal to it bit for bit.

    Returns:
        ``prompt_embeds`` (B, T, D), the encoder's last hidden states; with ``clip_skip``
        those of an earlier layer after the final norm.
    """
    text_encoder, ids = components["text_encoder"], tokens["text_encoder"]
    mask = None
    if getattr(text_encoder.config, "use_attention_mask", False):
        mask = tokens["text_encoder.mask"]
    if clip_skip is None:
        embeds = text_encoder(ids, attention_mask=mask)[0]
    else:
        hidden = text_encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        # The norm lies in `text_model` up to transformers 4, on the encoder itself from 5 on,
        # where the pipeline's own way to it fails.
        owner: Any = getattr(text_encoder, "text_model", text_encoder)
        embeds = owner.final_layer_norm(hidden[-(clip_skip + 1)])
    return Conditioning({"prompt_embeds": embeds.to(text_encoder.dtype)})


def _encode_clip_pair(
    components: Components, tokens: Tokens, clip_skip: int | None
) -> Conditioning:
    """Encodes prompts with two CLIP text encoders, as SDXL does.

    Source: diffusers, ``StableDiffusionXLPipeline.encode_prompt``; equal to it bit for bit.

    Returns:
        ``prompt_embeds`` (B, T, D), the last but one hidden states of both encoders side by
        side, with ``clip_skip`` earlier ones; ``pooled_prompt_embeds`` (B, D₂), the second
        encoder's projection.
    """
    from torch import cat

    layer = -(2 + (clip_skip or 0))
    outputs = [
        components[name](tokens[name], output_hidden_states=True)
        for name in ("text_encoder", "text_encoder_2")
    ]
    dtype = components["text_encoder_2"].dtype
    return Conditioning(
        {
            "prompt_embeds": cat([output.hidden_states[layer] for output in outputs], -1).to(dtype),
            "pooled_prompt_embeds": outputs[1][0],
        }
    )


def _condition_cross_attention(conditioning: Conditioning) -> dict[str, Any]:
    """What a UNet without further conditions is called with."""
    return {"encoder_hidden_states": conditioning.tensors["prompt_embeds"]}


def _condition_size(conditioning: Conditioning) -> dict[str, Any]:
    """What a UNet is called with that also knows the pooled prompt and the sizes."""
    tensors = conditioning.tensors
    return {
        "encoder_hidden_states": tensors["prompt_embeds"],
        "added_cond_kwargs": {
            "text_embeds": tensors["pooled_prompt_embeds"],
            "time_ids": tensors["time_ids"],
        },
    }


def _time_ids(original: Size, crop_offset: Size, target: Size) -> tuple[int, ...]:
    """The six numbers of SDXL's micro-conditioning, heights before widths.

    Source: Podell et al. 2023 (arXiv:2307.01952) section 2.2.
    """
    return (*reversed(original), *reversed(crop_offset), *reversed(target))


@dataclass(frozen=True)
class Architecture:
    """One family of models.

    Attributes:
        name: The value of a model's ``architecture``.
        title: How people call it.
        category: ``"image"`` or ``"video"``.
        pipeline: Class of the text-to-image (or image-to-video) pipeline in diffusers.
        classes: Library and class of every network and tokenizer, by folder.
        text_encoders: Folders of the text encoders, in order.
        native_size: Side of the picture in pixels that the family was made for; a base
            says it more exactly by its own ``sample_size``.
        denoiser: Folder of the network that predicts the noise.
        vae_factor: Pixels per latent along one side.
        prediction_types: What its noise schedulers may predict.
        trainable: Whether the trainer knows the family.
        modelspec: The family's name in the ModelSpec metadata of weights files.
        encode: Tokens to conditioning; ``None`` where the pipeline must do it.
        condition: Conditioning to keyword arguments of the denoiser.
        size_ids: A picture's original size, what was cut off at its left and top, and the
            size that it is painted at, to the numbers that the denoiser knows as
            ``time_ids``; ``None`` where it knows no sizes.
        has_zero_unconditional: Whether the denoiser learned zeros in place of an empty
            prompt's conditioning.
    """

    name: str
    title: str
    category: str
    pipeline: str
    classes: Mapping[str, tuple[str, str]]
    text_encoders: tuple[str, ...]
    native_size: int
    modelspec: str
    denoiser: str = "unet"
    vae_factor: int = 8
    prediction_types: tuple[str, ...] = ("epsilon", "v_prediction")
    trainable: bool = False
    encode: Callable[[Components, Tokens, int | None], Conditioning] | None = None
    condition: Callable[[Conditioning], dict[str, Any]] | None = None
    size_ids: Callable[[Size, Size, Size], tuple[int, ...]] | None = None
    has_zero_unconditional: bool = False

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """Folders of the tokenizers, in the order of their text encoders."""
        return tuple(name.replace("text_encoder", "tokenizer") for name in self.text_encoders)


_SD_CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
}

ARCHITECTURES: dict[str, Architecture] = {
    entry.name: entry
    for entry in (
        Architecture(
            name="sd1",
            title="Stable Diffusion 1.x",
            category="image",
            pipeline="StableDiffusionPipeline",
            classes=_SD_CLASSES,
            text_encoders=("text_encoder",),
            native_size=512,
            modelspec="stable-diffusion-v1",
            trainable=True,
            encode=_encode_clip,
            condition=_condition_cross_attention,
        ),
        Architecture(
            name="sd2",
            title="Stable Diffusion 2.x",
            category="image",
            pipeline="StableDiffusionPipeline",
            classes=_SD_CLASSES,
            text_encoders=("text_encoder",),
            native_size=768,
            modelspec="stable-diffusion-v2",
            trainable=True,
            encode=_encode_clip,
            condition=_condition_cross_attention,
        ),
        Architecture(
            name="sdxl",
            title="Stable Diffusion XL",
            category="image",
            pipeline="StableDiffusionXLPipeline",
            classes={
                **_SD_CLASSES,
                "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
                "tokenizer_2": ("transformers", "CLIPTokenizer"),
            },
            text_encoders=("text_encoder", "text_encoder_2"),
            native_size=1024,
            modelspec="stable-diffusion-xl-v1-base",
            trainable=True,
            encode=_encode_clip_pair,
            condition=_condition_size,
            size_ids=_time_ids,
            has_zero_unconditional=True,
        ),
        Architecture(
            name="svd",
            title="Stable Video Diffusion",
            category="video",
            pipeline="StableVideoDiffusionPipeline",
            classes={
                "unet": ("diffusers", "UNetSpatioTemporalConditionModel"),
                "vae": ("diffusers", "AutoencoderKLTemporalDecoder"),
                "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
                "feature_extractor": ("transformers", "CLIPImageProcessor"),
            },
            text_encoders=(),
            native_size=576,
            modelspec="stable-video-diffusion-img2vid-v1",
        ),
    )
}


def get_architecture(name: str) -> Architecture:
    """Looks a family up.

    Raises:
        ValueError: If no entry has this name.
    """
    try:
        return ARCHITECTURES[name]
    except KeyError:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"unknown architecture {name!r}; known are {known}") from None


def tokenize(
    architecture: Architecture, components: Components, prompts: Sequence[str]
) -> dict[str, Any]:
    """Turns prompts into token ids for each text encoder, on the CPU.

    Args:
        architecture: The family.
        components: Its loaded tokenizers, by folder.
        prompts: B prompts; what is over a tokenizer's length is cut off.

    Returns:
        See :data:`Tokens`.
    """
    tokens: dict[str, Any] = {}
    for encoder, folder in zip(architecture.text_encoders, architecture.tokenizers, strict=True):
        tokenizer = components[folder]
        made = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        tokens |= {encoder: made.input_ids, f"{encoder}.mask": made.attention_mask}
    return tokens


def encode_tokens(
    architecture: Architecture,
    components: Components,
    tokens: Tokens,
    *,
    clip_skip: int | None = None,
) -> Conditioning:
    """Turns tokens into conditioning; the caller decides about gradients.

    Args:
        architecture: The family.
        components: Its loaded text encoders, by folder.
        tokens: What :func:`tokenize` made, on the text encoders' device.
        clip_skip: How many of the encoders' last layers to leave out.

    Raises:
        ValueError: If the family's prompts are encoded by its pipeline only.
    """
    if architecture.encode is None:
        raise ValueError(f"prompts of {architecture.title} are encoded by its pipeline")
    return architecture.encode(components, tokens, clip_skip)


def encode_prompts(
    architecture: Architecture,
    components: Components,
    prompts: Sequence[str],
    *,
    clip_skip: int | None = None,
) -> Conditioning:
    """Turns prompts into conditioning: :func:`tokenize`, then :func:`encode_tokens`.

    Args:
        architecture: The family.
        components: Its loaded tokenizers and text encoders, by folder.
        prompts: B prompts; what is over the tokenizer's length is cut off.
        clip_skip: How many of the encoder's last layers to leave out.

    Raises:
        ValueError: If the family's prompts are encoded by its pipeline only.
    """
    if architecture.encode is None:
        raise ValueError(f"prompts of {architecture.title} are encoded by its pipeline")
    tokens = {
        name: ids.to(components[name.removesuffix(".mask")].device)
        for name, ids in tokenize(architecture, components, prompts).items()
    }
    return encode_tokens(architecture, components, tokens, clip_skip=clip_skip)


def denoiser_arguments(architecture: Architecture, conditioning: Conditioning) -> dict[str, Any]:
    """Keyword arguments that tell the denoiser about the prompts.

    Raises:
        ValueError: If the family's denoiser is called by its pipeline only.
    """
    if architecture.condition is None:
        raise ValueError(f"the denoiser of {architecture.title} is called by its pipeline")
    return architecture.condition(conditioning)
