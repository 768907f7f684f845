"""Train a LoRA on a folder of pictures and generate with it, over HTTP and the websocket.

Usage: STUDIO_TOKEN=studio_… python train_and_generate.py FOLDER TRIGGER_WORD "PROMPT"
It needs one package beyond the standard library: pip install websockets
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

SITE = os.environ.get("STUDIO_URL", "http://127.0.0.1:8000")
HEADERS = {"Authorization": f"Bearer {os.environ.get('STUDIO_TOKEN', '')}"}


def call(method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
    """Send one request; an error's problem+json text ends the script."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body else None
    url = path if "://" in path else SITE + path
    request = urllib.request.Request(url, data, {**HEADERS, "Content-Type": kind}, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            raw = answer.read()
            return json.loads(raw) if "json" in answer.headers["Content-Type"] else raw
    except urllib.error.HTTPError as error:
        sys.exit(f"{method} {path}: {error.code} {error.read().decode()}")


def upload(dataset: int, folder: Path) -> Any:
    """Send the pictures and the caption files beside them as multipart/form-data."""
    mark, body = uuid.uuid4().hex, b""
    for file in sorted(folder.iterdir()):
        head = f'Content-Disposition: form-data; name="files"; filename="{file.name}"'
        body += f"--{mark}\r\n{head}\r\n\r\n".encode() + file.read_bytes() + b"\r\n"
    body += f"--{mark}--\r\n".encode()
    kind = f"multipart/form-data; boundary={mark}"
    return call("POST", f"/api/datasets/{dataset}/images/", body, kind)


def follow(socket: Any, path: str) -> Any:
    """Wait for a job: an event only says when to look, the answer is the truth."""
    while (state := call("GET", path))["status"] not in ("completed", "failed", "canceled"):
        print(f"  {state['status']} {state['progress']:.0%}", end="\r", flush=True)
        with contextlib.suppress(TimeoutError):
            socket.recv(timeout=10)
    print(f"  {state['status']}      ")
    return state if state["status"] == "completed" else sys.exit(str(state["error"]))


def main(folder: str, trigger_word: str, prompt: str) -> None:
    """Run the whole chain and save the pictures beside this script's caller."""
    dataset = call("POST", "/api/datasets/", {"name": Path(folder).name, "type": "image"})["id"]
    print(f"uploaded {len(upload(dataset, Path(folder))['created'])} pictures")
    ready = call("GET", "/api/models/?type=base_model&architecture=sd1&availability=ready")
    base = ready["results"][0]["id"]
    wish = {"dataset_id": dataset, "base_model_id": base, "type": "lora"}
    wish["config"] = {"trigger_word": trigger_word}
    with connect(SITE.replace("http", "ws", 1) + "/ws/events/", additional_headers=HEADERS) as ws:
        job = call("POST", "/api/training/", wish)["id"]
        call("POST", f"/api/training/{job}/start")
        model = follow(ws, f"/api/training/{job}/progress")["output_model"]
        ask = {"model": model["id"], "prompt": prompt, "num_images": 2, "seed": 1}
        job = call("POST", "/api/generate/text-to-image", ask)["id"]
        for image in follow(ws, f"/api/generate/{job}")["images"]:
            Path(f"{image['seed']}.png").write_bytes(call("GET", image["url"]))


if __name__ == "__main__":
    main(*sys.argv[1:4])
