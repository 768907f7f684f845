"""What the settings of a training are called: label, one line of help and unit of each.

Names, bounds and choices come from `training_app.trainer.config`; where they stand in the form is
told in `forms`.
"""

from __future__ import annotations

from collections.abc import Mapping

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

Words = str | Promise

CHOICE_LABELS: Mapping[str, Words] = {
    "constant": _("Constant"),
    "linear": _("Falling in a line"),
    "cosine": _("Falling in a curve (cosine)"),
    "auto": _("Automatic"),
    "no": _("32 bit"),
    "bf16": _("16 bit (bfloat16)"),
    "attention": _("Attention only"),
    "attention+feed_forward": _("Attention and feed-forward"),
    "all": _("All layers, convolutions included"),
    "adapters": _("A LoRA beside the model"),
    "unet": _("The whole network"),
    "on": _("Always"),
    "off": _("Never"),
    "fp16": _("16 bit (float16)"),
    "adamw": "AdamW",
    "adamw8bit": _("AdamW in 8 bit"),
    "prodigy": "Prodigy",
    "adafactor": "Adafactor",
    "l2": _("Squared error"),
    "huber": "Huber",
    "center": _("The middle"),
    "random": _("Random parts"),
    "last": _("The last step"),
    "best": _("The checkpoint with the lowest held-out loss"),
}
# Name: label, help, unit.
WORDS: Mapping[str, tuple[Words, Words, Words]] = {
    "max_train_steps": (
        _("Steps"),
        _("How long it trains. More steps follow the pictures closer."),
        "",
    ),
    "learning_rate": (
        _("Learning rate"),
        _("How far each step goes. Too high becomes noise, too low learns nothing."),
        "",
    ),
    "rank": (_("Rank"), _("How much the LoRA can hold, and how large its file is."), ""),
    "alpha": (_("Alpha"), _("Strength of the LoRA; it acts with alpha divided by rank."), ""),
    "train_batch_size": (_("Batch size"), _("Pictures looked at together; costs memory."), ""),
    "num_devices": (
        _("Devices"),
        _("GPUs that share each batch. It waits for a worker that has so many."),
        "",
    ),
    "gradient_accumulation_steps": (
        _("Accumulated batches"),
        _("Batches put together into one step; a larger batch without more memory."),
        "",
    ),
    "resolution": (
        _("Resolution"),
        _("Side of a square with the area that pictures are trained at."),
        _("pixels"),
    ),
    "seed": (
        _("Seed"),
        _("The number that all chance in the run follows; the same seed repeats it."),
        "",
    ),
    "lr_scheduler": (
        _("Course of the learning rate"),
        _("What happens to the learning rate after the warm-up."),
        "",
    ),
    "lr_warmup_steps": (
        _("Warm-up"),
        _("Steps in which the learning rate rises to its peak."),
        _("steps"),
    ),
    "weight_decay": (_("Weight decay"), _("Pulls the weights towards zero."), ""),
    "max_grad_norm": (
        _("Gradient clipping"),
        _("Norm that a step's gradients are cut to; 0 does not cut."),
        "",
    ),
    "mixed_precision": (_("Precision"), _("How the network computes; the LoRA stays exact."), ""),
    "flip": (
        _("Mirror pictures"),
        _("Shows each picture mirrored as well. Not for faces, letters or anything with a side."),
        "",
    ),
    "caption_dropout": (
        _("Captions left out"),
        _("Share of captions replaced by nothing, which keeps guidance working."),
        "",
    ),
    "snr_gamma": (
        _("Min-SNR gamma"),
        _("Weighs easy and hard noise levels against each other; 0 weighs all alike."),
        "",
    ),
    "targets": (_("Layers"), _("Which layers of the network learn."), ""),
    "sample_prompts": (
        _("Sample prompts"),
        _("One per line. Empty: taken from the captions."),
        "",
    ),
    "control_prompt": (
        _("Control prompt"),
        _("A prompt without the trigger word; its sample shows what the base model loses."),
        "",
    ),
    "sample_every_steps": (
        _("Samples every"),
        _("Steps between sample pictures; 0 paints them at the end only."),
        _("steps"),
    ),
    "sample_inference_steps": (
        _("Steps per sample"),
        _("Denoising steps of a sample picture."),
        "",
    ),
    "sample_guidance_scale": (
        _("Guidance of samples"),
        _("How closely a sample follows its prompt."),
        "",
    ),
    "tune": (
        _("What learns"),
        _("A small file beside the model, or the whole network: larger, and it learns more."),
        "",
    ),
    "dropout": (_("Dropout"), _("Share of the LoRA left out at random; learns less by heart."), ""),
    "use_dora": (
        _("DoRA"),
        _("Learns the strength of each layer apart; often closer, and slower."),
        "",
    ),
    "train_text_encoder": (
        _("Train the text encoder"),
        _("Words learn as well. It helps with new words, and costs time and memory."),
        "",
    ),
    "text_encoder_learning_rate": (
        _("Learning rate of the text encoder"),
        _("How far each step takes the words; smaller than that of the pictures."),
        "",
    ),
    "instance_prompt": (
        _("Prompt of your pictures"),
        _("Stands for every picture without a caption, such as “a photo of zorbfox dog”."),
        "",
    ),
    "class_prompt": (
        _("Prompt of the class"),
        _("What your subject is one of, such as “a photo of a dog”; keeps the others as they are."),
        "",
    ),
    "prior_loss_weight": (
        _("Weight of the class"),
        _("How much the pictures of the class count; 0 does without them."),
        "",
    ),
    "num_class_images": (
        _("Pictures of the class"),
        _("How many the base model paints beforehand; they are used again next time."),
        _("pictures"),
    ),
    "use_ema": (
        _("Averaged weights"),
        _("The result is the average of the last steps: calmer, and costs memory."),
        "",
    ),
    "ema_decay": (_("Decay of the average"), _("Closer to 1 averages over more steps."), ""),
    "gradient_checkpointing": (
        _("Save memory"),
        _("Computes twice what it cannot keep; slower. Automatic: only where it must."),
        "",
    ),
    "torch_compile": (
        _("Compile the network"),
        _("Takes minutes at the start, then steps are faster. Automatic: in long ones on a GPU."),
        "",
    ),
    "optimizer": (
        _("Optimizer"),
        _("How steps are taken. Prodigy finds the learning rate, Adafactor saves memory."),
        "",
    ),
    "loss": (_("Loss"), _("How errors count. Huber is kinder to pictures that fit badly."), ""),
    "huber_delta": (_("Huber threshold"), _("Errors above it count in a line."), ""),
    "noise_offset": (
        _("Noise offset"),
        _("Lets the model learn very bright and very dark pictures; 0.05 is plenty."),
        "",
    ),
    "caption_prefix": (
        _("Words before every caption"),
        _("They follow the trigger word."),
        "",
    ),
    "shuffle_captions": (
        _("Shuffle tags"),
        _("Comma-separated tags change their order, so that none counts by its place."),
        "",
    ),
    "keep_tokens": (
        _("Tags that stay in front"),
        _("How many tags keep their place when they are shuffled."),
        _("tags"),
    ),
    "caption_variants": (
        _("Orders of the tags"),
        _("How many orders of each caption are learned."),
        "",
    ),
    "crop": (_("Cut"), _("Which part is shown of a picture that does not fit."), ""),
    "crop_variants": (_("Cuts of a picture"), _("How many random cuts are learned."), ""),
    "validation_images": (
        _("Held-out pictures"),
        _("They are not learned; their loss tells when it learns by heart. 0 holds none out."),
        _("pictures"),
    ),
    "checkpoint_every_steps": (
        _("Checkpoints every"),
        _("Steps between states you can choose from; 0 makes ten at most, each with samples."),
        _("steps"),
    ),
    "choose": (
        _("The result is"),
        _("Best needs held-out pictures. You can choose another checkpoint at any time."),
        "",
    ),
}
