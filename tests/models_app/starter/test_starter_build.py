"""The whole build with tiny step counts, and what a stopped build ends with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from models_app.starter import build, export, score, training, unet_training, vae_training
from models_app.starter.export import export_pipeline, read_facts
from models_app.starter.training import TrainingRun, cosine_with_warmup
from models_app.starter.unet_training import min_snr_weights
from models_app.starter.vae_training import measure_psnr, passes_gate, random_view


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads that wait for each other at every operation crawl on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Batches and measurements of a few pictures: it is how a build goes on that is seen here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae_training, "BATCH_SIZE", 4)
        patch.setattr(unet_training, "BATCH_SIZE", 4)
        patch.setattr(score, "STEPS", 2)
        patch.setattr(build, "measure_psnr", partial(measure_psnr, count=2))
        yield


def _tiny(work_dir: Path, *more: str) -> list[str]:
    sizes = "--pool-size 8 --world-size 8 --prompts 2 --steps-vae 2 --steps-unet 2 --no-gate"
    output = ["--output", str(work_dir / "weights")]
    return ["--work-dir", str(work_dir), *output, *sizes.split(), *more]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, _one_thread: None, _small: None) -> Path:
    """The folder of a whole build."""
    folder = tmp_path_factory.mktemp("built")
    assert build.main(_tiny(folder)) == 0
    return folder


def test_build_runs_from_drawing_to_the_model_card(built: Path) -> None:
    facts = read_facts(built / "weights")
    assert facts["vae"]["steps"] == facts["unet"]["steps"] == 2
    assert set(facts["scores"]) >= {"colour", "background", "shape", "seconds_per_picture"}
    assert "2 held-out prompts" in (built / "weights" / "README.md").read_text()
    with Image.open(built / "weights" / "thumbnail.webp") as picture:
        assert picture.size == (256, 192)
    assert not list(built.glob(".weights*"))


def test_poor_autoencoder_stops_the_build_before_the_unet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = [argument for argument in _tiny(tmp_path) if argument != "--no-gate"]
    assert build.main(arguments) == 1
    assert "misses its gate" in caplog.text
    assert not (tmp_path / "unet.safetensors").exists()


def _train_line(path: Path, *stops: int) -> tuple[dict[str, torch.Tensor], TrainingRun]:
    """Fit a small network in as many resumptions as there are stops."""
    for stop in stops:
        torch.manual_seed(0)
        network = torch.nn.Linear(4, 4)
        run = TrainingRun(path, {"line": network}, seed=1, peak_learning_rate=1e-2)

        def loss_of_step(
            rng: np.random.Generator, generator: torch.Generator, network: torch.nn.Module = network
        ) -> torch.Tensor:
            inputs = torch.randn(8, 4, generator=generator) * rng.random()
            return (network(inputs) - inputs.flip(1)).square().mean()

        _train_until(run, stop, loss_of_step)
    return load_file(path), run


def _train_until(run: TrainingRun, stop: int, loss_of_step: object) -> None:
    """Stop a run of ten steps early, as a killed process would after its checkpoint."""
    while run.step < stop:
        run._step(10, loss_of_step)  # type: ignore[arg-type]
    run.save()


def test_resumed_run_ends_bit_equal(tmp_path: Path) -> None:
    straight, _ = _train_line(tmp_path / "straight.safetensors", 10)
    resumed, run = _train_line(tmp_path / "resumed.safetensors", 3, 7, 10)
    assert run.step == 10
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_averages_and_weights_exchange_places(tmp_path: Path) -> None:
    _, run = _train_line(tmp_path / "run.safetensors", 5)
    before = {key: value.detach().clone() for key, value in run.parameters.items()}
    run.swap_averages()
    assert any(not torch.equal(before[key], run.parameters[key]) for key in before)
    run.swap_averages()
    assert all(torch.equal(before[key], run.parameters[key]) for key in before)


def test_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    run = TrainingRun(
        tmp_path / "x.safetensors", {"n": torch.nn.Linear(1, 1)}, seed=0, peak_learning_rate=1e-3
    )
    with pytest.raises(FloatingPointError, match="step 1"):
        run.train(1, lambda rng, generator: run.parameters["n.bias"].sum() * float("nan"))
    assert not run.path.exists()


def test_learning_rate_rises_and_falls() -> None:
    rates = [cosine_with_warmup(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] < 0.02
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[-1] == pytest.approx(0.01, abs=0.001)


def test_min_snr_weights_leave_noisy_steps_alone() -> None:
    weights = min_snr_weights(torch.tensor([0.99, 5 / 6, 0.5, 0.01]))
    assert weights.tolist() == pytest.approx([5 / 99, 1.0, 1.0, 1.0])


def test_gate_wants_both_kinds() -> None:
    assert passes_gate({"creatures": 20.0, "glyphs": 18.0})
    assert not passes_gate({"creatures": 25.0, "glyphs": 17.9})


def test_views_hold_the_same_pixels() -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    rng = np.random.default_rng(0)
    for _ in range(20):
        view = np.sort(random_view(picture, rng).ravel())
        assert np.array_equal(view, np.arange(48)) or np.array_equal(
            view, 255 - np.arange(48)[::-1]
        )


def test_model_that_is_too_large_is_not_exported(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_facts(built / "weights")
    monkeypatch.setattr(export, "MAXIMUM_BYTES", 1000)
    from models_app.starter.score import load_pipeline

    pipeline = load_pipeline(built / "weights")
    with pytest.raises(ValueError, match="more than 1000"):
        export_pipeline(
            built / "weights",
            vae=pipeline.vae,
            text_encoder=pipeline.text_encoder,
            unet=pipeline.unet,
            tokenizer=pipeline.tokenizer,
            facts=before,
        )
    assert read_facts(built / "weights") == before
    assert not list(built.glob(".weights*"))


def test_build_that_was_killed_ends_with_the_same_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = ["--steps-vae", "3", "--steps-unet", "3", "--stage", "unet"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    build.main(_tiny(straight, *stages))

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for module, function in ((vae_training, "measure_psnr"), (build, "export_pipeline")):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            # A checkpoint after every step, and death right after the first one.
            patch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
            patch.setattr(module, function, kill)
            build.main(_tiny(killed, *stages))
    build.main(_tiny(killed, *stages))
    for network in ("vae", "unet"):
        one, other = (load_file(folder / f"{network}.safetensors") for folder in (straight, killed))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
