"""The whole main job as a new user does it, over HTTP and the websocket only."""

from __future__ import annotations

import io
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from PIL import Image, ImageDraw

from models_app.starter import judge
from models_app.starter.creatures import draw_creature
from studio_project.management.demo_client import DemoClient, Refused

TRIGGER = "zorp"
BACKGROUNDS = ("red", "blue", "white", "yellow", "purple")
ABSENT_BACKGROUND = "cyan"
NUM_PICTURES, NUM_HELD_OUT, NUM_SEEDS = 16, 8, 20
START_SECONDS = 180


class Command(BaseCommand):
    """Upload → train → generate, with live progress and measured scores."""

    help = "Run the main job as a fresh user against a running site, or one it starts itself."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take a site to use instead of starting one."""
        parser.add_argument("--site", help="base URL of a running site")

    def handle(self, *args: Any, site: str | None, **options: Any) -> None:
        """Run, and serve until Ctrl-C unless DEMO_EXIT=1."""
        process = None
        if site is None:
            process, site = self._start_site()
        try:
            self._workflow(DemoClient(site), settings.DATA_DIR / "demo")
            if process is not None and os.environ.get("DEMO_EXIT") != "1":
                self.stdout.write(f"The site goes on at {site} until Ctrl-C.")
                process.wait()
        except Refused as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            pass
        finally:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=60)

    def _start_site(self) -> tuple[subprocess.Popen[bytes], str]:
        port = _free_port(settings.STUDIO_HOST, settings.STUDIO_PORT)
        site = f"http://{settings.STUDIO_HOST}:{port}"
        environment = {**os.environ, "STUDIO_PORT": str(port)}
        environment.setdefault("STUDIO_BASE_URL", site)
        log = (settings.DATA_DIR / "demo").joinpath("site.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        self.stdout.write(f"Starting the site at {site} (log: {log}) …")
        with log.open("ab") as out:
            command = [sys.executable, "manage.py", "studio"]
            process = subprocess.Popen(
                command, cwd=settings.BASE_DIR, env=environment, stdout=out, stderr=out
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise CommandError(f"The site did not start:\n{log.read_text()[-2000:]}")
            if _answers(f"{site}/readyz"):
                return process, site
            time.sleep(0.2)
        process.terminate()
        raise CommandError(f"The site was not ready after {START_SECONDS} s; see {log}.")

    def _workflow(self, client: DemoClient, folder: Path) -> None:
        started = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        name = f"demo-{secrets.token_hex(3)}"
        password = secrets.token_urlsafe(12)
        client.sign_up(name, password)
        self.stdout.write(f"1. Signed up as {name} (password {password}).")
        rng = np.random.default_rng(7)
        uploaded, held_out = self._upload(client, rng)
        base = self._best_base(client)
        with client.events() as events:
            model = self._train(client, events, self.dataset, base)
            painted = self._paint(client, events, base, model)
        scores = measure(uploaded, held_out, painted)
        path = folder / "side-by-side.png"
        side_by_side(uploaded, painted).save(path)
        self._report(client.site, scores, path, time.monotonic() - started)

    def _upload(
        self, client: DemoClient, rng: np.random.Generator
    ) -> tuple[list[Image.Image], list[Image.Image]]:
        """Draw the creature, keep some pictures back, and upload the others with captions."""
        uploaded, files = [], {}
        for index in range(NUM_PICTURES):
            background = BACKGROUNDS[index % len(BACKGROUNDS)]
            picture = draw_creature("A", background, rng)
            uploaded.append(picture)
            files[f"{TRIGGER}-{index:02}.png"] = _png(picture)
            files[f"{TRIGGER}-{index:02}.txt"] = (
                f"a {TRIGGER} on a {background} background".encode()
            )
        held_out = [
            draw_creature("A", BACKGROUNDS[index % len(BACKGROUNDS)], rng)
            for index in range(NUM_HELD_OUT)
        ]
        dataset = client.call("POST", "/api/datasets/", {"name": TRIGGER, "type": "image"})
        answer = client.upload(dataset["id"], files)
        self.dataset = dataset["id"]
        self.stdout.write(f"2. Uploaded {len(answer['created'])} captioned pictures.")
        return uploaded, held_out

    def _best_base(self, client: DemoClient) -> dict[str, Any]:
        query = "/api/models/?type=base_model&architecture=sd1&availability=ready"
        ready = client.call("GET", query)["results"]
        if not ready:
            raise Refused("no base model is ready; run manage.py seed_models")
        return ready[0]

    def _train(self, client: DemoClient, events: Any, dataset: int, base: dict) -> dict[str, Any]:
        wish = {
            "dataset_id": dataset,
            "base_model_id": base["id"],
            "type": "lora",
            "config": {"trigger_word": TRIGGER},
        }
        job = client.call("POST", "/api/training/", wish)["id"]
        client.call("POST", f"/api/training/{job}/start")
        self.stdout.write(f"3. Training a LoRA on “{base['title']}”:")
        began = time.monotonic()
        state = client.follow(events, f"/api/training/{job}/progress", job, self._bar)
        model: dict[str, Any] = state["output_model"]
        seconds = time.monotonic() - began
        self.stdout.write(f"\n   {model['name']} is registered after {seconds:.0f} s.")
        return model

    def _paint(
        self, client: DemoClient, events: Any, base: dict, model: dict
    ) -> dict[str, list[Image.Image]]:
        """Paint the same prompts at the same seeds with the base and with the trained model."""
        self.stdout.write("4. Generating with the base and with the trained model:")
        known = f"a {TRIGGER} on a {BACKGROUNDS[0]} background"
        absent = f"a {TRIGGER} on a {ABSENT_BACKGROUND} background"
        painted = {
            "base": self._pictures(client, events, base["id"], known, 1, 8),
            "trained": self._pictures(client, events, model["id"], known, 1, 8),
            "absent": self._pictures(client, events, model["id"], absent, 101, NUM_SEEDS),
        }
        self.stdout.write("")
        return painted

    def _pictures(
        self, client: DemoClient, events: Any, model: int, prompt: str, seed: int, count: int
    ) -> list[Image.Image]:
        pictures: list[Image.Image] = []
        while len(pictures) < count:
            ask = {
                "model": model,
                "prompt": prompt,
                "num_images": min(4, count - len(pictures)),
                "seed": seed + len(pictures),
            }
            job = client.call("POST", "/api/generate/text-to-image", ask)["id"]
            done = client.follow(events, f"/api/generate/{job}", job, self._bar)
            for image in done["images"]:
                content = client.fetch(image["url"])
                pictures.append(Image.open(io.BytesIO(content)).convert("RGB"))
        return pictures

    def _bar(self, event: dict[str, Any]) -> None:
        fraction = float(event.get("progress") or 0)
        full = round(30 * fraction)
        loss = event.get("loss")
        words = f"{event.get('phase') or event['status']:<14}"
        words += f" loss {loss:.4f}" if isinstance(loss, float) else " " * 12
        self.stdout.write(
            f"\r   [{'█' * full}{'·' * (30 - full)}] {fraction:4.0%} {words}", ending=""
        )
        self.stdout.flush()

    def _report(self, site: str, scores: dict[str, float], path: Path, seconds: float) -> None:
        self.stdout.write("5. Likeness to the uploaded creature (0 to 1, judged without a model):")
        for label in ("held out", "trained", "base"):
            self.stdout.write(f"   {label + ' pictures':<20} {scores[label]:.3f}")
        self.stdout.write(
            f"   on a {ABSENT_BACKGROUND} background, which no uploaded picture has: "
            f"{scores['absent']:.0%} of {NUM_SEEDS} seeds"
        )
        self.stdout.write(
            f"Side by side: {path}\nWhole run: {seconds:.0f} s. Look at {site}/images"
        )
        if not scores["held out"] > scores["trained"] > scores["base"]:
            raise CommandError(
                "The scores are out of order: held out > trained > base was expected."
            )


def measure(
    uploaded: list[Image.Image],
    held_out: list[Image.Image],
    painted: dict[str, list[Image.Image]],
) -> dict[str, float]:
    """Score pictures against the uploaded ones, without any model.

    Returns:
        Mean likeness of `held out`, `trained` and `base` pictures in 0..1, and the share of
        pictures on the `absent` background that show both the creature and that background.
    """

    def likeness(pictures: list[Image.Image]) -> float:
        return float(np.mean([judge.creature_score(picture, uploaded) for picture in pictures]))

    scores = {
        "held out": likeness(held_out),
        "trained": likeness(painted["trained"]),
        "base": likeness(painted["base"]),
    }
    middle = (scores["trained"] + scores["base"]) / 2
    hits = [
        judge.judge_background(picture) == ABSENT_BACKGROUND
        and judge.creature_score(picture, uploaded) > middle
        for picture in painted["absent"]
    ]
    scores["absent"] = float(np.mean(hits))
    return scores


def side_by_side(uploaded: list[Image.Image], painted: dict[str, list[Image.Image]]) -> Image.Image:
    """Draw four labelled rows: uploaded, base, trained, and trained on the absent background."""
    rows = [
        ("uploaded", uploaded),
        ("base model", painted["base"]),
        ("trained model", painted["trained"]),
        (f"trained, {ABSENT_BACKGROUND} background", painted["absent"]),
    ]
    side, gap, head = 128, 8, 24
    sheet = Image.new(
        "RGB", (8 * (side + gap) + gap, len(rows) * (side + gap + head) + gap), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for row, (label, pictures) in enumerate(rows):
        top = gap + row * (side + gap + head)
        draw.text((gap, top + 4), label, fill="black")
        for column, picture in enumerate(pictures[:8]):
            large = picture.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(large, (gap + column * (side + gap), top + head))
    return sheet


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  # nosec B310
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port(host: str, wanted: int) -> int:
    """Return the wanted port, or any free one when something already listens there."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise CommandError("No free port was found.")
