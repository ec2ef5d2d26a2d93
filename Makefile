# One command for each thing to do here. Needs make and Python 3.10 or newer; sets up .venv by itself.
#
#   make demo                     a grid search on a local Compute Engine   ARGS="--workers 4 --keep"
#   make test                     all tests                                 ARGS="-k tls -x"
#   make lint                     style, types, layers, docstrings, documentation
#   make docs                     the documentation, in docs/_build/html
#   make bench                    the benchmarks; they write docs/performance.md      ARGS="--quick"
#   make images-lock              lock the container images' packages; needs uv       ARGS="--upgrade"
#   make clean                    remove what the others made
#
# PYTHON=/path/to/python chooses the Python, VENV=folder the virtual environment.

VENV ?= .venv
export PYTHON VENV
INSTALLED = $(VENV)/.installed

.PHONY: demo test test-as-user lint docs bench images-lock clean
# Two targets may not install into one environment at the same time.
.NOTPARALLEL:

demo: $(INSTALLED)-demo
	$(VENV)/bin/dask gce demo $(ARGS)

test: $(INSTALLED)-test
	ci/test.sh $(ARGS)

test-as-user:
	ci/test-as-user.sh $(ARGS)

lint: $(INSTALLED)-lint $(INSTALLED)-docs
	ci/lint.sh

docs: $(INSTALLED)-docs
	ci/docs.sh

bench: $(INSTALLED)-bench
	ci/bench.sh $(ARGS)

images-lock:
	ci/lock-images.sh $(ARGS)

# The environment is made anew when what is installed in it may have changed, and only then.
$(INSTALLED)-%: setup.cfg pyproject.toml ci/setup.sh
	ci/setup.sh $*
	touch $@

clean:
	rm -rf $(VENV) build dist docs/_build docs/api/generated *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
