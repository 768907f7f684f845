"""Rules of the house that no single module can keep."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("studio_project", "datasets_app", "models_app", "training_app", "generation_app")
SOURCES = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]


def _modules_after(statement: str, *prefixes: str) -> str:
    check = (
        f"import sys; {statement}; "
        f"print([name for name in sys.modules if name.split('.')[0] in {prefixes!r}][:3])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", check],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_site_does_not_load_torch() -> None:
    heavy = ("torch", "diffusers", "transformers", "peft", "accelerate")
    assert _modules_after("import studio_project.asgi", *heavy) == "[]"


def test_a_worker_does_not_load_torch() -> None:
    start = (
        "import os, django; os.environ['DJANGO_SETTINGS_MODULE'] = 'studio_project.settings'; "
        "django.setup(); import training_app.actors, generation_app.actors"
    )
    assert _modules_after(start, "torch", "diffusers", "transformers") == "[]"


def test_engines_do_not_load_django() -> None:
    engines = (
        "import training_app.trainer.loop, generation_app.engine.generate, models_app.loading, "
        "models_app.inspection, studio_project.child_protocol"
    )
    assert _modules_after(engines, "django", "rest_framework", "dramatiq") == "[]"


def _names_of(call: ast.AST) -> str:
    return ast.unparse(call.func) if isinstance(call, ast.Call) else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_can_be_read(path: Path) -> None:
    banned = {"pickle", "shelve", "marshal", "joblib", "dill", "cloudpickle"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & banned
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in banned
        assert _names_of(node) not in ("torch.load", "torch.save")
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert ast.unparse(node.value) == "False"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_hold_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
