# Everything a developer or CI runs. `make help` lists it.
# Paths stay relative, so that a checkout may lie in a folder with spaces.

PYTHON ?= python3
PY := .venv/bin/python
WORKERS ?= 2# processes of pytest
PYTEST_OPTIONS ?=# such as --randomly-seed=1
PYTEST = $(PY) -m pytest -q $(PYTEST_OPTIONS)
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
UNBUILT = not llamacpp and not trained and not faults and not slow and not programs and not families and not lm_eval and not vllm and not pages
FAST = $(UNBUILT) and not lasting

.DEFAULT_GOAL := help
.PHONY: help setup packages llamacpp demo check lint type fast unbuilt coverage test test-slow programs pages families lm-eval vllm bench fmt docs site pictures release lock wheel clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: setup ## set up, then run the main job on a tiny model made on the spot
	@$(PY) -m exporter demo

test: setup lint type ## set up, then lint, types and every test but those of the next three
	@$(PYTEST) $(PARALLEL) -m "not slow and not programs and not families and not lm_eval and not vllm and not pages"

test-slow: setup ## what is long by nature: kills, soaks, the wheel, llama.cpp's own server tests
	@$(PYTEST) $(PARALLEL) -m slow

programs: setup ## the tests that need Chromium and HAProxy: the page, reports, and a balancer
	@$(PYTEST) $(PARALLEL) -m "programs and not alone" tests/runtime
	@$(PYTEST) -m "programs and alone" tests/runtime/gateway

pages: setup ## every command of the README and of docs/, on the demo's models
	@$(PYTEST) $(PARALLEL) -m pages tests/test_readme.py

families: setup ## popular families with their real tokenizers (npm, pip): docs/families.md
	@$(PYTEST) -n $(WORKERS) -m families tests/families tests/exporter tests/runtime

lm-eval: setup ## lm-evaluation-harness (pip) over decant serve, against its own hf model
	@$(PY) -m pip install -q -c constraints.txt 'lm_eval[api]>=0.4.9'
	@$(PYTEST) -m lm_eval tests/runtime/harness

vllm: setup ## vLLM (pip, for CPUs) over what --to vllm writes, against transformers and peft
	@$(PY) -m tests.support.vllm_environment
	@$(PYTEST) -m vllm tests/exporter/formats

check: packages lint type fast ## lint, types and the fast tests: no build, no training; seconds

setup: packages llamacpp ## the Python packages in .venv, and llama.cpp in the user's cache

packages:
	@$(PYTHON) vendor/bootstrap.py

llamacpp: packages
	@$(PY) -m vendor.build > /dev/null

lint: packages
	@$(PY) -m ruff check -q . && $(PY) -m ruff format -q --check .

type: packages
	@$(PY) -m mypy

fast: packages
	@$(PYTEST) $(PARALLEL) -m "$(FAST)"

unbuilt: # the tests that need no build and no training, as pytest's -m names them
	@echo '$(UNBUILT)'

coverage: packages ## the tests without a build, and which lines and branches of the code they run
	@rm -f .coverage*
	@$(PYTEST) $(PARALLEL) -m "$(UNBUILT)" --cov --cov-report=
	@$(PY) .ci/coverage.py

bench: setup ## measure the export against the usual road
	@$(PY) benchmarks/export.py

fmt: packages ## format the code
	@$(PY) -m ruff format -q . && $(PY) -m ruff check -q --fix .

docs: packages ## write docs/cli.md and docs/export.md's formats from the commands
	@$(PY) -m exporter.cli.reference .

site: packages ## build the pages of docs/ into dist/site; fails on a broken link
	@$(PY) -m pip install -q -c constraints.txt -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build # with -q it would pass over what it warns of

pictures: setup ## draw the pictures of the pages (needs Chromium)
	@$(PY) docs/screenshots.py

release: setup ## build the wheel and the sdist, check both, say what to do next
	@sh vendor/release.sh $(PY)

lock: ## renew constraints.txt and packages.lock (needs uv)
	@sh vendor/lock.sh

wheel: packages ## build the wheel into dist/
	@$(PY) -m pip wheel -q --no-deps -w dist .

clean: ## remove .venv and what tools left; the llama.cpp build stays in the cache
	rm -rf .venv .venv-setup.* .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* dist
