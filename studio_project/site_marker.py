"""The file by which a worker knows that it shares code and storage with the site.

The site writes it into the file storage when it starts; a worker that finds none, or another code
version in it, takes no jobs and says why.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path

from django.conf import settings

from studio_project import __version__, storage

KEY = "site.json"
VARIABLE = "STUDIO_CODE_VERSION"
PACKAGES = ("studio_project", "datasets_app", "models_app", "training_app", "generation_app")


@functools.cache
def code_version() -> str:
    """The version of the code that this process runs: the release and a digest of the sources.

    What ``manage.py studio`` starts goes by the version that it started with. A file that changes
    under a running site must not keep a worker that it restarts from going on; the children of a
    worker read the sources anew for each job anyway.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return given
    digest = hashlib.sha256()
    for package in PACKAGES:
        folder = Path(settings.BASE_DIR) / package
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(settings.BASE_DIR)).encode())
            digest.update(path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:12]}"


def write() -> None:
    """Marks the storage as this site's, of this code version."""
    storage.save(KEY, json.dumps({"code_version": code_version()}).encode())


def refusal() -> str:
    """Why a worker of this process must not take jobs; empty if it may.

    Returns:
        ``storage`` if the site's files cannot be read from here, ``code_version`` if the site runs
        other code.
    """
    try:
        with storage.open_key(KEY) as file:
            marker = json.load(file)
    except Exception:
        return "storage"
    return "" if marker.get("code_version") == code_version() else "code_version"
