.PHONY: run test faults soak lint check-all tools bench bench-growth bench-tokens bench-tools
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Empty if Python is too old, or missing.
NEW_ENOUGH = $(shell $(PYTHON) -c 'import sys; print(sys.version_info >= (3, 11) or "")')
# The bundled PostgreSQL has no wheel for 3.15. The server itself runs on it.
TOO_NEW = "The tests need Python 3.11 to 3.14, such as: make test PYTHON=python3.14 VENV=.venv-3.14"
# Empty if Python cannot make a virtual environment: on Debian, that is a package of its own.
HAS_VENV = $(shell $(PYTHON) -c 'import ensurepip; print(True)' 2>/dev/null)

# PORT is not in the server's environment: there, it would be the sign of a platform.
run: $(VENV)/run
	@env -u PORT $(BIN)/python -m gunicorn $(if $(PORT),-b 127.0.0.1:$(PORT))

# All but the faults, which have a command of their own, and the slow tests.
test: $(VENV)/test
	$(BIN)/python -m pytest -n 4 --dist worksteal --ignore tests/faults

# Every fault, the slow ones too, with what each has counted.
faults: $(VENV)/test
	$(BIN)/python -m pytest -m "slow or not slow" -s -q tests/faults

# Half an hour of load, while the database, the network, the issuer and workers fail in turn.
soak: $(VENV)/test
	SOAK_MINUTES=30 $(BIN)/python -m pytest -m slow -s -q tests/faults/test_soak.py

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every test, also those that need PgBouncer, Chromium or Node.js; installs what is missing.
check-all: tools lint
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not alone"
	$(BIN)/python -m pytest -m alone

tools:
	.ci/install

# Installs what is missing; takes an hour.
bench: bench-tools $(VENV)/test .venv-bench/installed .venv-peers/installed bench/peers/node_modules/installed
	$(BIN)/python -m bench.run --save .venv-bench/services.json
	.venv-bench/bin/python bench/plots.py .venv-bench/services.json bench/services.svg

# To ten million tasks: half an hour, and 6 GB of disk.
bench-growth: bench-tools $(VENV)/test .venv-bench/installed
	$(BIN)/python -m bench.growth --save .venv-bench/growth.json
	.venv-bench/bin/python bench/plots.py .venv-bench/growth.json bench/growth.svg

bench-tools:
	bench/install

.venv-bench/installed: bench/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -r bench/requirements.txt
	@touch $@

.venv-peers/installed: bench/peers/requirements.txt requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check -r requirements.txt -r bench/peers/requirements.txt
	@touch $@

bench/peers/node_modules/installed: bench/peers/package-lock.json
	npm ci --prefix bench/peers --no-audit --no-fund --silent
	@touch $@

bench-tokens: $(VENV)/test
	$(BIN)/python -m bench.tokens

$(VENV)/run: requirements.txt
	$(if $(NEW_ENOUGH),,$(error Python 3.11 or newer is needed, such as: make PYTHON=python3.13 $(MAKECMDGOALS)))
	$(if $(HAS_VENV),,$(error $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: sudo apt install $(notdir $(PYTHON))-venv))
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/test: requirements-dev.txt $(VENV)/run
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 15) and $(TOO_NEW))'
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
