# make book and make test need python 3.11-3.13 with venv, and make; nothing else.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTHON := $(CURDIR)/.venv/bin/python
BUILD := jupyter-book build . --all -W -n --keep-going
SETUP := sh tools/setup.sh

.PHONY: help setup book test fast notebooks serve bench address constraints clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## .venv, MathJax and the data (done by the others when needed)
	@$(SETUP)

book: setup ## build and execute the whole book -> _build/html/index.html
	$(BUILD)
	@echo "Open _build/html/index.html in a browser, or type: make serve"

test: setup ## style, notebooks in step, tests/, then every page executed
	ruff check .
	ruff format --check .
	$(PYTHON) tools/notebooks.py --check
	pytest
	pytest --nbval book/

fast: setup ## the tests without those that start processes or environments
	pytest -m "not slow"

notebooks: setup ## write book/*.ipynb from the pages, running those that changed
	$(PYTHON) tools/notebooks.py --execute

serve: setup ## show the built book on http://localhost:8000
	$(PYTHON) -m http.server --bind 127.0.0.1 --directory _build/html 8000

bench: setup ## speed of training and sampling beside other libraries
	$(PYTHON) tools/bench.py

address: setup ## give the repository another address: make address URL=https://...
	$(PYTHON) tools/address.py "$(URL)"

constraints: setup ## write down the newest versions that fit together
	$(PYTHON) tools/constraints.py

clean: ## remove what was built (not .venv)
	rm -rf _build
