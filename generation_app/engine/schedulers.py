"""Makes the noise scheduler of one request.

Every request gets a scheduler of its own (they carry state), made from the configuration of the
model, so that betas, spacing and prediction type stay what the model was trained with. What the
names mean to people stands in ``vocabulary``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from generation_app.engine.errors import EngineError

# Latents are not pictures: clipping them to [-1, 1], which some classes do unless told otherwise,
# would ruin them when the model's own scheduler says nothing about it.
_UNCLIPPED = {"clip_sample": False}
_PLAIN_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False}

_CLASSES: dict[str, tuple[type, dict[str, Any]]] = {
    "euler": (EulerDiscreteScheduler, _PLAIN_SIGMAS),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (
        DPMSolverMultistepScheduler,
        {**_PLAIN_SIGMAS, "algorithm_type": "dpmsolver++", "solver_order": 2},
    ),
    "dpmpp_2m_karras": (
        DPMSolverMultistepScheduler,
        {
            **_PLAIN_SIGMAS,
            "use_karras_sigmas": True,
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
        },
    ),
    "dpmpp_sde": (
        DPMSolverMultistepScheduler,
        {**_PLAIN_SIGMAS, "algorithm_type": "sde-dpmsolver++", "solver_order": 2},
    ),
    "ddim": (DDIMScheduler, _UNCLIPPED),
    "unipc": (UniPCMultistepScheduler, _PLAIN_SIGMAS),
    "lcm": (LCMScheduler, _UNCLIPPED),
    "heun": (HeunDiscreteScheduler, {**_UNCLIPPED, **_PLAIN_SIGMAS}),
    # Without its Runge-Kutta start, as Stable Diffusion was published: one call more than steps.
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
}


def build_scheduler(name: str, config: Mapping[str, Any], num_inference_steps: int) -> Any:
    """Make a scheduler for one request; its timesteps are not set yet.

    Args:
        name: A key of ``vocabulary.SCHEDULERS``.
        config: The configuration of the model's own scheduler.
        num_inference_steps: How many steps will be asked of it.

    Returns:
        A fresh diffusers scheduler.

    Raises:
        EngineError: ``invalid_request`` for an unknown name.
    """
    if name not in _CLASSES:
        raise EngineError("invalid_request", field="scheduler")
    kind, changes = _CLASSES[name]
    if name == "lcm":
        # It picks its steps from a schedule of this many, and refuses to pick more than there are.
        known = int(config.get("original_inference_steps") or 50)
        changes = {**changes, "original_inference_steps": max(known, num_inference_steps)}
    return kind.from_config(dict(config), **changes)  # type: ignore[attr-defined]
