# Studio's commands. `make setup` once, then `make run`, `make demo`, `make test`, `make lint`.
.PHONY: setup run demo test lint format types messages lock clean prerequisites browser

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt | prerequisites
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements.txt
	$(BIN)/pip check --quiet
	touch $@

prerequisites:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Studio needs Python 3.11 or newer. On Debian 12: sudo apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "Python's venv module is missing. Install it with: sudo apt-get install python3-venv"; exit 1; }

browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || { echo "The browser tests need Chromium. Install it with: sudo apt-get install chromium"; exit 1; }

run: setup
	$(BIN)/python manage.py studio

demo: setup
	$(BIN)/python manage.py demo_workflow

# Unit tests are dealt out one by one, so that neither core waits for the last file; what needs real
# processes is dealt out by class or file, which shares a site, the longest first. Bytecode is kept
# even where it usually is not, for a hundred processes would each compile the same files.
test: export PYTHONDONTWRITEBYTECODE =
test: setup browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --ignore tests/e2e -n auto --maxprocesses 4 --dist worksteal
	$(BIN)/python -m pytest tests/e2e -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit -q -c pyproject.toml -r studio_project datasets_app models_app training_app generation_app
	$(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Collect new strings for the translators; needs GNU gettext.
messages: setup
	.ci/messages --update

lock:
	echo "$(TORCH)" > $(VENV)/torch.txt
	$(BIN)/pip-compile -q --extra test --generate-hashes --no-allow-unsafe --unsafe-package torch \
	  -c $(VENV)/torch.txt --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --no-emit-options --strip-extras --no-header --output-file requirements.txt pyproject.toml

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
