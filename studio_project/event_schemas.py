"""What each event may hold, as JSON schemas: documentation for clients, checked by tests.

Prompts, captions and pictures never travel in events.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

STATUSES = ["pending", "queued", "running", "paused", "completed", "failed", "canceled"]
NUMBER_OR_NULL: Schema = {"type": ["number", "null"]}
INTEGER: Schema = {"type": "integer", "minimum": 0}
TEXT: Schema = {"type": "string", "maxLength": 200}
UUID: Schema = {"type": "string", "format": "uuid"}


def _schema(event_type: str, identity: Schema, **properties: Schema) -> Schema:
    """An event of an object: either its scalars or the word that it is gone."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": event_type,
        "type": "object",
        "properties": {
            "type": {"const": event_type},
            "id": identity,
            "version": INTEGER,
            "ts": {"type": "string", "format": "date-time"},
            "gone": {"const": True, "description": "You cannot see this object any more."},
            **properties,
        },
        "required": ["type", "id", "version", "ts"],
        "additionalProperties": False,
    }


def _job(event_type: str, **properties: Schema) -> Schema:
    """The event of a job."""
    return _schema(
        event_type,
        UUID,
        status={"enum": STATUSES},
        phase=TEXT,
        waiting_reason={"enum": ["", "behind_jobs", "device_busy", "no_worker", "queue_paused"]},
        progress={"type": "number", "minimum": 0, "maximum": 1},
        step=INTEGER,
        total_steps=INTEGER,
        eta_seconds={"type": ["integer", "null"], "minimum": 0},
        **properties,
    )


def _model(event_type: str) -> Schema:
    """The event of a diffusion model."""
    return _schema(
        event_type,
        INTEGER,
        name=TEXT,
        title=TEXT,
        model_type={"enum": ["base_model", "lora", "dreambooth", "full"]},
        category={"enum": ["image", "video"]},
        architecture=TEXT,
        base_model={"type": ["integer", "null"]},
        visibility={"enum": ["private", "shared"]},
        is_active={"type": "boolean"},
        availability={"enum": ["ready", "remote", "downloading", "failed"]},
        usable={"type": "boolean", "description": "Ready, active and with a usable base."},
    )


EVENT_SCHEMAS: dict[str, Schema] = {
    "connection.ready": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "connection.ready",
        "type": "object",
        "properties": {"type": {"const": "connection.ready"}, "protocol": {"const": 1}},
        "required": ["type", "protocol"],
        "additionalProperties": False,
    },
    "training_job.changed": _job(
        "training_job.changed",
        loss=NUMBER_OR_NULL,
        learning_rate=NUMBER_OR_NULL,
        images_per_second=NUMBER_OR_NULL,
        output_model={"type": ["integer", "null"]},
    ),
    "training_job.sampled": _schema("training_job.sampled", UUID, step=INTEGER, index=INTEGER),
    "generation_job.changed": _job("generation_job.changed", images=INTEGER),
    "generation_job.previewed": _schema(
        "generation_job.previewed", UUID, step=INTEGER, image_index=INTEGER
    ),
    "diffusion_model.registered": _model("diffusion_model.registered"),
    "diffusion_model.changed": _model("diffusion_model.changed"),
    "dataset.changed": _schema(
        "dataset.changed",
        INTEGER,
        name=TEXT,
        visibility={"enum": ["private", "shared"]},
        num_items=INTEGER,
        size_bytes=INTEGER,
    ),
    "training_job.deleted": _schema("training_job.deleted", UUID),
    "generation_job.deleted": _schema("generation_job.deleted", UUID),
    "diffusion_model.deleted": _schema("diffusion_model.deleted", INTEGER),
    "dataset.deleted": _schema("dataset.deleted", INTEGER),
    "generated_image.deleted": _schema("generated_image.deleted", {"type": ["integer", "string"]}),
    "queue.changed": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "queue.changed",
        "type": "object",
        "properties": {
            "type": {"const": "queue.changed"},
            "queues": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "properties": {"queued": INTEGER, "running": INTEGER},
                    "required": ["queued", "running"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["type", "queues"],
        "additionalProperties": False,
    },
}
