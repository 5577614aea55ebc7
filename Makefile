# Everything here makes and uses its own virtual environment, .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install demo test check wheel docs clean

help: ## say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /: /'

install: $(VENV)/.installed ## make .venv and install the package with everything that tests and demo need

# torch first, pinned by constraints.txt: an open range lets a dependency pull another build over it.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install ## photographs -> tokenizer -> report -> prior -> new images, in runs/demo
	$(BIN)/python examples/demo.py

test: install ## the whole test suite
	$(BIN)/python -m pytest

check: install ## lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.13
	$(BIN)/lint-imports

wheel: install ## build the wheel into dist/
	$(BIN)/python -m pip wheel . --quiet --no-deps --no-build-isolation --wheel-dir dist

docs: install ## the documentation site, into build/site; a warning or a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo build/site/index.html

clean: ## remove what was built (not runs/)
	rm -rf $(VENV) build dist *.egg-info
