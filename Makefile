.PHONY: run test faults lint check-all tools bench bench-growth bench-tokens
PYTHON ?= python3
BIN = .venv/bin

# Not through the environment, where a PORT would be the sign of a platform.
run: .venv/run
	@env -u PORT $(BIN)/gunicorn $(if $(PORT),-b 127.0.0.1:$(PORT)) 'app:create_app()'

test: .venv/test
	$(BIN)/python -m pytest

# Every fault, the slow ones too, with what each has counted.
faults: .venv/test
	$(BIN)/python -m pytest -m "slow or not slow" -s -q tests/faults

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every test, also those that need PgBouncer, Chromium or Node.js; installs what is missing.
check-all: tools lint
	$(BIN)/python -m pytest -m "slow or not slow"

tools:
	.ci/install

# Needs wrk, Node.js and npm, from Debian's packages; takes a quarter of an hour.
bench: .venv/test .venv-peers/installed bench/peers/node_modules/installed
	PYTHONPATH=.:tests $(BIN)/python -m bench.run

# To ten million tasks: a quarter of an hour, and 6 GB of disk.
bench-growth: .venv/test
	PYTHONPATH=.:tests $(BIN)/python -m bench.growth

.venv-peers/installed: bench/peers/requirements.txt requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check -r requirements.txt -r bench/peers/requirements.txt
	@touch $@

bench/peers/node_modules/installed: bench/peers/package-lock.json
	npm ci --prefix bench/peers --no-audit --no-fund --silent
	@touch $@

bench-tokens: .venv/test
	$(BIN)/python -m bench.tokens

.venv/run: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/test: requirements-dev.txt .venv/run
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
