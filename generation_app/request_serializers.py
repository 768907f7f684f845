"""What a request may hold, for the documentation of the API; `engine.request` checks it."""

from __future__ import annotations

from rest_framework import serializers

from generation_app.engine.request import MODES
from generation_app.engine.vocabulary import OUTPUT_FORMATS, SCHEDULERS, UPSCALERS


class LoraRequestSerializer(serializers.Serializer):
    """A LoRA and how strongly it acts."""

    model = serializers.CharField(help_text="Id or name.")
    weight = serializers.FloatField(required=False, help_text="1 = as trained.")


class PictureReferenceSerializer(serializers.Serializer):
    """A picture to start from: exactly one of these."""

    upload_id = serializers.IntegerField(
        required=False, help_text="From POST /api/generate/uploads/."
    )
    image_id = serializers.IntegerField(required=False, help_text="A picture of my gallery.")
    dataset_image_id = serializers.IntegerField(
        required=False, help_text="A picture of a dataset that I may see."
    )


class _RequestSerializer(serializers.Serializer):
    model = serializers.CharField(help_text="Id or name of a model.")
    width = serializers.IntegerField(required=False)
    height = serializers.IntegerField(required=False)
    num_inference_steps = serializers.IntegerField(required=False)
    seed = serializers.IntegerField(
        required=False, allow_null=True, help_text="null or -1: random, answered resolved."
    )
    num_images = serializers.IntegerField(required=False, help_text="Image i uses seed + i.")
    run_alone = serializers.BooleanField(
        required=False,
        help_text="Share no batch with other requests: then a picture is equal to the bit.",
    )


class _PictureRequestSerializer(_RequestSerializer):
    prompt = serializers.CharField(
        required=False,
        help_text="Understands (weights:1.2), {variations|alternatives} and <lora:name:0.8>.",
    )
    negative_prompt = serializers.CharField(required=False)
    guidance_scale = serializers.FloatField(required=False)
    scheduler = serializers.CharField(required=False, help_text=", ".join(SCHEDULERS))
    loras = LoraRequestSerializer(many=True, required=False)
    clip_skip = serializers.IntegerField(required=False)
    output_format = serializers.ChoiceField(
        required=False, choices=sorted(set(OUTPUT_FORMATS.values()))
    )


class TextToImageRequestSerializer(_PictureRequestSerializer):
    """A request; what is left out comes from the model. Bounds stand in /api/options/."""

    hires_scale = serializers.FloatField(
        required=False, help_text="Over 1: enlarge the picture so much and refine it."
    )
    hires_strength = serializers.FloatField(required=False)
    hires_steps = serializers.IntegerField(required=False, help_text="0: as in the first pass.")
    hires_upscaler = serializers.ChoiceField(
        required=False, choices=sorted(set(UPSCALERS.values()))
    )


class ImageToImageRequestSerializer(_PictureRequestSerializer):
    """A request that starts from a picture; its size is the picture's if none is given."""

    image = PictureReferenceSerializer()
    strength = serializers.FloatField(required=False, help_text="1 paints all of it anew.")


class InpaintRequestSerializer(ImageToImageRequestSerializer):
    """A request that paints a picture anew where its mask is white."""

    mask_image = PictureReferenceSerializer(help_text="As large as the picture.")
    mask_blur = serializers.IntegerField(required=False, help_text="Pixels; softens the edge.")


class ImageToVideoRequestSerializer(_RequestSerializer):
    """A request for a clip."""

    image = PictureReferenceSerializer()
    num_frames = serializers.IntegerField(required=False)
    fps = serializers.IntegerField(required=False)
    motion_bucket_id = serializers.IntegerField(required=False, help_text="More moves more.")
    noise_aug_strength = serializers.FloatField(required=False)
    decode_chunk_size = serializers.IntegerField(required=False)
    min_guidance_scale = serializers.FloatField(required=False)
    max_guidance_scale = serializers.FloatField(required=False)


class EstimateRequestSerializer(TextToImageRequestSerializer):
    """The request that would be sent, and its mode; the pictures of the mode are named too."""

    mode = serializers.ChoiceField(required=False, choices=tuple(MODES))


class UploadRequestSerializer(serializers.Serializer):
    """A picture as a file."""

    file = serializers.FileField()


class RecallTextSerializer(serializers.Serializer):
    """A text in the form of AUTOMATIC1111."""

    text = serializers.CharField()
