# The commands of this project; `make help` lists them.
#
# Nothing but Python 3.11 and make is needed to start: tools and libraries go into a virtual environment in the cache,
# keyed by what is pinned, outside the checkout.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help python check format generate constraints test test-unit test-integration test-e2e demo clean-cluster

CACHE := $(or $(GPUBATCH_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/gpubatch)
VENV := $(CACHE)/venv-$(shell { python3 hack/requirements; cat constraints.txt; } | sha256sum | cut -c1-12)
BIN := $(VENV)/bin
export GPUBATCH_CACHE := $(CACHE)
export PATH := $(BIN):$(PATH)

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

$(VENV)/ready:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	@echo "==> Installing the Python tools into $(VENV)"
	@python3 -m venv $(VENV)
	@$(BIN)/python hack/requirements > $(VENV)/requirements.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r $(VENV)/requirements.txt
	@touch $@

python: $(VENV)/ready ## Print the path of the Python with all that the project needs
	@echo $(BIN)/python

check: $(VENV)/ready ## Lint, types, layers, generated files, chart
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=operator:runner:cli $(BIN)/lint-imports
	PYTHONPATH=operator:runner:cli $(BIN)/python -m gpubatch_operator.api.crd | diff crds/gpubatchjobs.yaml - || \
	  { echo "crds/gpubatchjobs.yaml is not up to date: make generate"; exit 1; }
	$(BIN)/python hack/chart --check
	$(BIN)/python hack/apidocs --check
	$(BIN)/python hack/clidocs --check
	$$(hack/cluster tool helm) lint --strict charts/gpubatch

format: $(VENV)/ready ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: $(VENV)/ready ## Make the generated files anew: CRD, chart, references
	PYTHONPATH=operator:runner:cli $(BIN)/python -m gpubatch_operator.api.crd > crds/gpubatchjobs.yaml
	$(BIN)/python hack/chart
	$(BIN)/python hack/apidocs
	$(BIN)/python hack/clidocs

constraints: ## Pin the newest versions of all Python packages
	python3 -m venv $(CACHE)/venv-constraints
	$(CACHE)/venv-constraints/bin/python hack/requirements > $(CACHE)/requirements.txt
	$(CACHE)/venv-constraints/bin/pip install --quiet --upgrade -r $(CACHE)/requirements.txt hatchling
	sed -i '/^[^#]/d' constraints.txt
	$(CACHE)/venv-constraints/bin/pip freeze --exclude setuptools --exclude pip >> constraints.txt

test: test-unit test-integration test-e2e ## All tests

test-unit: $(VENV)/ready ## Tests that need nothing but Python
	$(BIN)/pytest -n 2 --dist worksteal tests/unit

test-integration: $(VENV)/ready ## Tests on a real API server and S3 server
	$(BIN)/pytest -n 2 --no-loadscope-reorder tests/integration

test-e2e: $(VENV)/ready ## Tests on a real cluster: kubelets, images, vLLM
	$(BIN)/pytest tests/e2e

demo: $(VENV)/ready ## The main job on a real cluster; KEEP=1 leaves it up
	$(BIN)/python hack/demo

clean-cluster: ## Take the local cluster down
	hack/cluster down
