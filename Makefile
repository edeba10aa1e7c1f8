# Every target sets up what it needs. Required on the machine: Python 3.11 or newer, make, git.
#   make demo                      the whole product on synthetic images, offline, in minutes
#   make test PYTHON=python3.12    choose the Python (the environment is rebuilt when it changes)

# Unset: the first of these that is new enough and has ensurepip; tested versions come first.
PYTHON ?=
PYTHONS := $(if $(PYTHON),"$(PYTHON)",python3.12 python3.11 python3.13 python3)
# The Python of `make test-python OTHER=python3.13`, in an environment of its own.
OTHER ?= python3.13
# Passed on to pytest: make test ARGS="-k geometry"
ARGS ?=
# Where `make demo` writes.
OUT ?= demo_run
# `make lock UPGRADE=--upgrade` takes the newest releases; otherwise locked versions stay unless they no longer fit.
UPGRADE ?=

# A range: patch releases of uv read a lock of the same minor release alike.
UV_RELEASE := uv>=0.13,<0.14
UV := .tools/bin/uv
BIN := .venv/bin
# The stamps carry the choice of Python, so that another choice rebuilds the environments.
CHOICE := $(subst /,_,$(if $(PYTHON),$(PYTHON),default))
TOOLS_READY := .tools/ready-$(CHOICE)
READY := .venv/ready-$(CHOICE)

# Never fetch an interpreter behind the user's back; PyTorch's wheels are large, so be patient with slow networks.
export UV_PYTHON_DOWNLOADS = never
export UV_HTTP_TIMEOUT ?= 300
# Tests must import this checkout, not another one that happens to be on the path.
unexport PYTHONPATH
# Else every process that a test starts compiles PyTorch from source.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-smoke test test-slow browser test-lowest test-python check audit dist docs lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## create .venv with everything that the other targets need

demo: $(READY) ## train, evaluate and explain on synthetic images (offline, 10 minutes at most); writes one page
	@$(BIN)/tnet demo --out "$(OUT)"

demo-smoke: $(READY) ## run every step of the demo at its smallest, in a temporary folder
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && $(BIN)/tnet demo --smoke --out "$$scratch/demo"

test: $(READY) ## run the default test suite, with tensor shapes checked on every call into tnet
	@$(BIN)/python -m pytest $(ARGS)

test-slow: $(READY) ## run the tests that take minutes
	@$(BIN)/python -m pytest -m slow --timeout 900 --durations 25 $(if $(ARGS),$(ARGS),--ignore tests/export)
	@$(if $(ARGS),,$(BIN)/python -m pytest -m slow --timeout 900 tests/export) # in processes that ran nothing else

# Where it cannot, those tests are skipped.
browser: ## install Chromium with apt, if root, for the tests of the viewer's page
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		if command -v $$name; then exit 0; fi; \
	done; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then \
		echo "skipped: installing a browser needs root and apt-get; install Chromium to test the viewer's page"; exit 0; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	{ apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium; } > /dev/null \
		|| echo "skipped: apt-get could not install chromium (above); the tests of the viewer's page are skipped"

test-lowest: $(TOOLS_READY) ## run the default test suite on the oldest releases that pyproject.toml allows
	@$(UV) venv --quiet --clear --python .tools/bin/python .venv-lowest
	@$(UV) pip install --quiet --python .venv-lowest --resolution lowest-direct --group dev -e .
	@.venv-lowest/bin/python -m pytest $(ARGS)

test-python: $(TOOLS_READY) ## run the default test suite on another Python: make test-python OTHER=python3.13
	@$(UV) venv --quiet --clear --python "$(OTHER)" .venv-other
	@$(UV) pip sync --quiet --python .venv-other --require-hashes requirements.lock
	@$(UV) pip install --quiet --python .venv-other --no-deps --no-build-isolation --editable .
	@.venv-other/bin/python -V && .venv-other/bin/python -m pytest $(ARGS)

check: $(READY) ## check lint, format, types, and that the environment fits pyproject.toml
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(UV) pip check --quiet --python .venv || { echo "pyproject.toml and requirements.lock disagree (above): run 'make lock'"; exit 1; }
	@$(BIN)/python -W error -c "import tnet; [getattr(tnet, name) for name in tnet.__all__]"
	@$(BIN)/tnet --help > /dev/null

# pip-audit succeeds where it reaches no list of vulnerabilities, and only says of each package that it is not found.
audit: $(TOOLS_READY) ## look for known vulnerabilities of the locked packages, where a list of them can be reached
	@if text=$$($(UV) tool run --quiet --python .tools/bin/python 'pip-audit>=2.9' --disable-pip --require-hashes \
		--requirement requirements.lock --progress-spinner off 2>&1); then \
		left=$$(printf '%s\n' "$$text" | grep -c 'could not be audited'); \
		if [ "$$left" = 0 ]; then echo "no known vulnerabilities"; \
		else echo "skipped: no list of vulnerabilities can be reached for $$left of the packages"; fi; \
	elif printf '%s\n' "$$text" | grep -q '^Found .* known vulnerabilit'; then printf '%s\n' "$$text"; exit 1; \
	else echo "skipped: pip-audit does not work here ($$(printf '%s\n' "$$text" | tail -n 1))"; fi

dist: $(READY) ## build wheel and sdist in dist/, and try both in a clean environment
	@rm -rf dist && $(UV) build --quiet --no-build-isolation --python .venv/bin/python
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && cd "$$scratch" && for file in "$(CURDIR)"/dist/*; do \
		"$(CURDIR)/$(UV)" venv --quiet --clear --python "$(CURDIR)/.tools/bin/python" clean && \
		"$(CURDIR)/$(UV)" pip install --quiet --python clean --constraints "$(CURDIR)/requirements.lock" "$$file" && \
		clean/bin/tnet --version && clean/bin/tnet recipes > /dev/null && clean/bin/tnet demo --smoke --out demo > /dev/null && \
		rm -rf demo && echo "works: $$file" || exit 1; \
	done

docs: $(READY) ## build the docs site in site/ (offline)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)
	@echo "site/index.html"

# Written to a copy and moved into place, so that a failed run leaves the old lock. The copy keeps pinned versions.
lock: $(TOOLS_READY) ## rewrite requirements.lock from pyproject.toml
	@if [ -f requirements.lock ]; then cp requirements.lock requirements.lock.new; fi
	@$(UV) pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header $(UPGRADE) --quiet --output-file requirements.lock.new
	@if grep -nE '://|^--' requirements.lock.new; then echo "the lock must name no host (above)"; exit 1; fi
	@{ printf '%s\n' '# Every package needed to run and develop tnet, for Python 3.11 and newer on Linux, macOS and Windows,' \
		'# by version and hash. Written by `make lock`.'; grep -v '^#' requirements.lock.new; } > requirements.lock.tmp
	@mv requirements.lock.tmp requirements.lock && rm -f requirements.lock.new

clean: ## remove the environments, caches and builds; results stay
	rm -rf .tools .venv .venv-lowest .venv-other .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist site
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# uv, in an environment of its own.
$(TOOLS_READY):
	@found=; bare=; \
	for candidate in $(PYTHONS); do \
		"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		if "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then found=$$candidate; break; fi; \
		bare=$${bare:-$$candidate}; \
	done; \
	if [ -z "$$found" ] && [ -n "$$bare" ]; then \
		echo "$$bare cannot create environments: it lacks ensurepip. On Debian and Ubuntu install python3-venv" >&2; \
		echo "(sudo apt install python3-venv), or name another: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; \
	elif [ -z "$$found" ]; then \
		echo "No Python 3.11 or newer found (tried:" $(PYTHONS)")." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; \
	fi; \
	echo "Setting up with $$("$$found" -V) ($$found)"; \
	rm -rf .tools && "$$found" -m venv .tools
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check '$(UV_RELEASE)'
	@touch $@

# The locked packages only, each checked by hash; tnet itself is linked to src/, so edits need no set-up.
$(READY): $(TOOLS_READY) pyproject.toml requirements.lock
	@echo "Installing into .venv (PyTorch is large: the first time takes some minutes)"
	@[ "$$(.venv/bin/python -V 2>/dev/null)" = "$$(.tools/bin/python -V)" ] || \
		$(UV) venv --quiet --clear --python .tools/bin/python .venv
	@rm -f .venv/ready-*
	@$(UV) pip sync $$([ -t 2 ] || echo --quiet) --python .venv --require-hashes requirements.lock
	@$(UV) pip install --quiet --python .venv --no-deps --no-build-isolation --editable .
	@touch $@
