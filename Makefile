# Every command of a developer or newcomer. `make help` lists them.
PYTHON := .venv/bin/python
READY := .venv/.ready
SOURCES := crds operator trainer_image cli tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test processes check fix generate lock nightly bench e2e cluster clean

help: ## List the commands
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY) ## Install everything that is needed into .venv

$(READY): requirements.lock examples/requirements.txt pyproject.toml tools/setup.sh
	@bash tools/setup.sh
	@touch $@

quickstart: $(READY) ## Fine-tune a small model on this computer, no GPU needed
	@.venv/bin/finetune local run examples/01-support-assistant.yaml
	@.venv/bin/finetune local chat brio --compare --max-new-tokens 60 \
	  --prompt "My Brio One shows a blinking red light. What should I do?"
	@echo "Talk with it yourself: .venv/bin/finetune local chat brio --compare"

test: check ## All tests, those with a real cluster too (as root); installs what it needs
	@echo "Now the tests without a cluster, and those with one: both at once, each told when it is through"
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target processes e2e

processes: $(READY) ## Tests without a cluster beyond `check`: models trained and commands run on this computer
	@nice -n 10 $(PYTHON) -m pytest tests --ignore=tests/unit --ignore=tests/contract -n 2 --dist loadscope --durations 40 -m "not nightly and not cluster"

check: $(READY) ## Format, lint, types, import contracts, unit and contract tests: under two minutes
	@$(PYTHON) -m ruff format --check $(SOURCES)
	@$(PYTHON) -m ruff check $(SOURCES)
	@$(PYTHON) -m mypy
	@.venv/bin/lint-imports --no-logo
	@$(PYTHON) -m finetune_api.crd --check
	@$(PYTHON) -m finetune_api.reference --check
	@$(PYTHON) -m finetune_api.chart --check
	@$(PYTHON) -m finetune_operator.permissions --check
	@$(PYTHON) -m pytest tests/unit tests/contract -q

fix: $(READY) ## Format and mend what a machine can
	@$(PYTHON) -m ruff check --fix $(SOURCES)
	@$(PYTHON) -m ruff format $(SOURCES)

generate: $(READY) ## Write the CRDs, the reference and the chart's CRDs and rules
	@$(PYTHON) -m finetune_api.crd
	@$(PYTHON) -m finetune_api.reference
	@$(PYTHON) -m finetune_api.chart
	@$(PYTHON) -m finetune_operator.permissions

lock: $(READY) ## Resolve the dependencies anew
	@bash tools/lock.sh

nightly: $(READY) ## Tests that take too long for every change
	@$(PYTHON) -m pytest tests -m nightly

bench: $(READY) ## Benchmarks: ratios measured in one run
	@$(PYTHON) benchmarks/packing.py
	@$(PYTHON) -m tests.cluster run sh -c "kubectl apply --server-side --force-conflicts --filename crds \
	  && $(PYTHON) -m benchmarks.load latency burst progress memory"

e2e: $(READY) ## Tests with a real cluster, real images and real pods (as root)
	@$(PYTHON) -m tests.e2e

cluster: $(READY) ## A real Kubernetes on this computer (as root), and a shell that speaks to it
	@$(PYTHON) -m tests.cluster up
	@$(PYTHON) -m tests.cluster shell

clean: ## Remove what was installed and built; objects and results in .finetune stay
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
