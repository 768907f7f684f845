"""Two processes on one training: the steps of one, and one mind about when to stop."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import training_app.trainer.ranks as ranks_module
import training_app.trainer.reporting as reporting
from tests.training_app.trainer.conftest import (
    ONE_SAMPLE,
    Finished,
    first_gradients,
    request_for,
)
from tests.training_app.trainer.rank_child import Staying, take_part
from training_app.trainer.ranks import EXIT_RANK_LOST, RankLost

ROOT = Path(__file__).resolve().parents[3]
SHARED = ONE_SAMPLE | {"num_devices": 2, "max_train_steps": 6, "checkpoint_every_steps": 2}
#: Everything that draws, in both halves of a batch, and in the networks too.
DRAWING = {
    "num_devices": 2,
    "flip": True,
    "caption_dropout": 0.5,
    "dropout": 0.3,
    "noise_offset": 0.1,
    "gradient_accumulation_steps": 2,
}
PRIOR = DRAWING | {"class_prompt": "a thing", "prior_loss_weight": 0.7, "num_class_images": 4}
WORDS = {"num_devices": 2, "train_text_encoder": True, "max_grad_norm": 0.0}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", DRAWING),
    "dreambooth": ("dreambooth", PRIOR),
    "full": ("full", WORDS),
}


class Launch:
    """What two ranks did, and how the first one found the other dead."""

    def __init__(self, folder: Path, orders: dict[str, Any]) -> None:
        self.folder, self.orders = folder, orders
        (folder / "orders.json").write_text(json.dumps(orders))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        env |= {"RANK": "0", "GLOO_SOCKET_IFNAME": "lo"}
        module = [sys.executable, "-m", "tests.training_app.trainer.rank_child", str(folder)]
        with pytest.MonkeyPatch.context() as patch, (folder / "log").open("w") as log:
            for name, value in env.items():
                patch.setenv(name, value)
            patch.setattr(reporting, "MESSAGES_PER_SECOND", 1e9)
            patch.setattr(ranks_module, "TIMEOUT", timedelta(seconds=120))
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            other = subprocess.Popen(module, cwd=ROOT, env=os.environ | {"RANK": "1"}, stderr=log)
            try:
                ranks = Staying.join()
                take_part(ranks, folder)
                self.status = other.wait(60)
                with pytest.raises(RankLost) as self.lost, ranks.together():
                    pass
            finally:
                other.kill()
                other.wait()
                torch.set_num_threads(threads)
                dist.destroy_process_group()

    def gradients(self, name: str, rank: int) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.{rank}.safetensors")

    def told(self, rank: int) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.folder / f"told.{rank}.json").read_text())
        return told


@pytest.fixture(scope="module")
def launch(
    base_folder: Path,
    images: list[dict[str, Any]],
    finished: Finished,
    tmp_path_factory: pytest.TempPathFactory,
) -> Launch:
    """One launch that does all there is to see: starting a second process is what takes long."""
    folder = tmp_path_factory.mktemp("ranks")

    def order(name: str, config: dict[str, Any], method: str = "lora") -> dict[str, Any]:
        request = request_for(base_folder, images, folder / name, config, method)
        return request | {"cache_folder": str(finished.cache), "device": "cpu+cpu"}

    resume = {"resume_folder": str(folder / "paused" / "output" / "checkpoints")}
    return Launch(
        folder,
        {
            "gradients": {name: order(name, kind[1], kind[0]) for name, kind in KINDS.items()},
            "whole": order("whole", SHARED | {"validation_images": 1}),
            "paused": order("paused", SHARED | {"validation_images": 1}),
            "resumed": order("paused", SHARED | {"validation_images": 1}) | resume,
            "short": order("short", SHARED),
        },
    )


def test_gradients_travel_in_blocks_of_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks_module, "_BLOCK_BYTES", 16)
    sizes = [(2, torch.float32), (1, torch.float32), (1, torch.float32), (3, torch.bfloat16)]
    tensors = [torch.ones(size, dtype=kind) for size, kind in sizes]
    blocks = [[len(each) for each in block] for block in ranks_module._blocks(tensors)]
    assert blocks == [[2, 1, 1], [3]]
    assert list(ranks_module._blocks([])) == []


@pytest.mark.parametrize("name", KINDS)
def test_two_ranks_have_the_gradients_of_one(launch: Launch, name: str) -> None:
    expected = first_gradients(launch.orders["gradients"][name])
    first, second = (launch.gradients(name, rank) for rank in range(2))
    assert set(first) == set(expected)
    assert all(torch.equal(first[key], second[key]) for key in expected)
    whole = [torch.cat([side[key].flatten() for key in expected]) for side in (expected, first)]
    assert _differ(*whole) < 1e-5
    # Rounding is a larger share of the smallest gradients, a wrong row a far larger one of all.
    assert max(_differ(tensor, first[key]) for key, tensor in expected.items()) < 1e-3


def _differ(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Norm of the difference as a share of the norm."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def test_both_stop_at_the_same_step(launch: Launch) -> None:
    first, second = (launch.told(rank)["paused"] for rank in range(2))
    assert first["steps"] == second["steps"] == [1, 2, 3]
    assert [end["step"] for end in first["end"]] == [end["step"] for end in second["end"]] == [3]
    assert (first["checkpoints"], second["checkpoints"]) == ([2, 3], [])


def test_a_resumed_training_equals_an_unbroken_one(launch: Launch) -> None:
    first, second = (launch.told(rank) for rank in range(2))
    assert first["resumed"]["notes"] == ["resumed"]
    assert first["paused"]["losses"] + first["resumed"]["losses"] == first["whole"]["losses"]
    assert second["resumed"]["losses"] == first["resumed"]["losses"]
    assert (first["whole"]["end"], second["whole"]["end"]) == (["done"], [])
    assert (first["whole"]["samples"], second["whole"]["samples"]) == (1, 0)
    weights = [
        (launch.folder / name / "output" / "adapter.safetensors").read_bytes()
        for name in ("whole", "paused")
    ]
    assert weights[0] == weights[1]


def test_memory_that_runs_out_on_one_halves_the_batch_of_both(launch: Launch) -> None:
    first, second = (launch.told(rank)["short"] for rank in range(2))
    assert first["notes"] == second["notes"] == ["micro_batch_halved"]
    assert first["losses"] == second["losses"]
    assert first["steps"] == [1, 2, 3, 3, 4, 5, 6]
    assert first["end"] == ["done"]


def test_the_loss_of_a_rank_ends_the_first_without_a_word(launch: Launch) -> None:
    # No handler of errors may take it for one: the worker shall see a crash.
    assert launch.status == 9
    assert not isinstance(launch.lost.value, Exception)
    assert launch.lost.value.code == EXIT_RANK_LOST
