"""A script's view of a running site: HTTP and the websocket, standard library and `websockets`.

It knows nothing of Django or the database, so what it does anyone's script can do.
"""

from __future__ import annotations

import base64
import contextlib
import http.cookiejar
import json
import re
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from websockets.sync.client import ClientConnection, connect

FINAL = ("completed", "failed", "canceled")


class Refused(Exception):
    """The site answered with an error."""


class DemoClient:
    """One user's session with the site.

    Args:
        site: Base URL such as `http://127.0.0.1:8000`.
    """

    def __init__(self, site: str) -> None:
        self.site = site.rstrip("/")
        self.headers: dict[str, str] = {}
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self._opener = urllib.request.build_opener(cookies)

    def sign_up(self, name: str, password: str) -> None:
        """Make an account through the sign-up page, then a token for the API.

        Raises:
            Refused: When sign-up is closed or the form was not accepted.
        """
        page = self._send("GET", "/accounts/signup/").decode()
        field = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
        if field is None:
            raise Refused("sign-up is not open on this site (STUDIO_SIGNUP)")
        form = {
            "csrfmiddlewaretoken": field[1],
            "username": name,
            "email": f"{name}@example.org",
            "password1": password,
            "password2": password,
        }
        body = urllib.parse.urlencode(form).encode()
        referer = {"Referer": f"{self.site}/accounts/signup/"}
        kind = "application/x-www-form-urlencoded"
        self._send("POST", "/accounts/signup/", body, {**referer, "Content-Type": kind})
        basic = base64.b64encode(f"{name}:{password}".encode()).decode()
        token = self.call("POST", "/api/tokens/", {"name": "demo"}, Authorization=f"Basic {basic}")
        self.headers["Authorization"] = f"Bearer {token['token']}"

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Send JSON and return the parsed answer.

        Raises:
            Refused: With the site's problem text.
        """
        data = None if body is None else json.dumps(body).encode()
        raw = self._send(method, path, data, {"Content-Type": "application/json", **headers})
        return json.loads(raw) if raw else None

    def fetch(self, path: str) -> bytes:
        """Return the bytes behind a URL of an answer."""
        return self._send("GET", path)

    def upload(self, dataset: int, files: dict[str, bytes]) -> Any:
        """Send pictures and caption files in one multipart request."""
        mark = uuid.uuid4().hex
        parts = []
        for name, content in files.items():
            head = f'Content-Disposition: form-data; name="files"; filename="{name}"'
            parts.append(f"--{mark}\r\n{head}\r\n\r\n".encode() + content + b"\r\n")
        body = b"".join(parts) + f"--{mark}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        return json.loads(self._send("POST", f"/api/datasets/{dataset}/images/", body, kind))

    @contextlib.contextmanager
    def events(self) -> Iterator[ClientConnection]:
        """Open the event socket; its first frame says that it is ready."""
        url = self.site.replace("http", "ws", 1) + "/ws/events/"
        with connect(url, additional_headers=self.headers) as socket:
            first = json.loads(socket.recv(timeout=10))
            if first.get("type") != "connection.ready":
                raise Refused(f"unexpected first frame: {first}")
            yield socket

    def follow(
        self, socket: ClientConnection, path: str, job: str, show: Callable[[dict], None]
    ) -> Any:
        """Show a job's live events until it is final, then return what the API says of it.

        Raises:
            Refused: When the job did not complete.
        """
        state = self.call("GET", path)
        while state["status"] not in FINAL:
            try:
                event = json.loads(socket.recv(timeout=20))
            except TimeoutError:  # an event is only a hint, so ask when none comes
                state = self.call("GET", path)
                continue
            if event.get("id") != job or not event["type"].endswith(".changed"):
                continue
            show(event)
            if event["status"] in FINAL:
                state = self.call("GET", path)
        if state["status"] != "completed":
            raise Refused(f"the job ended {state['status']}: {state.get('error')}")
        return state

    def _send(
        self, method: str, path: str, body: bytes | None = None, headers: dict | None = None
    ) -> bytes:
        url = path if path.startswith("http") else self.site + path
        every = {**self.headers, **(headers or {})}
        request = urllib.request.Request(url, body, every, method=method)  # noqa: S310 (our own site)
        try:
            with self._opener.open(request, timeout=60) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            raise Refused(
                f"{method} {path}: {error.code} {error.read().decode()[:2000]}"
            ) from error
