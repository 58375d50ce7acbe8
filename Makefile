# Two commands matter: `make demo` and `make test`.  Both set everything up in .venv on a fresh machine.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
# With this exact spelling Python 3.11 gets the small CPU build; set TORCH= to leave PyTorch out.
TORCH  ?= torch==2.13.0
EXTRAS := triton,conformance,bench,test

.PHONY: demo test build lint matrix gpu bench mutants sanitize clean

$(VENV)/.tools: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -U pip
	test -z "$(TORCH)" || $(PY) -m pip install -q "$(TORCH)"
	$(PY) -m pip install -q "scikit-build-core>=0.10" "pybind11>=2.12" "cmake<4" ninja numpy ml_dtypes
	touch $@

# editable: Python files are used where they stand; C files are rebuilt here, incrementally
$(VENV)/.installed: $(VENV)/.tools CMakeLists.txt $(shell find hal kernels -name '*.c' -o -name '*.h' -o -name '*.cpp') \
                    $(wildcard kernels/ops/*.py) kernels/cpu/generate.py kernels/cpu/tables.py kernels/native/c_api.py
	flock $(VENV) env PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m pip install -q --no-build-isolation -e ".[$(EXTRAS)]"
	touch $@
build: $(VENV)/.installed

demo: build
	$(PY) -m haian.demo --report report

test: build lint
	$(PY) -m pytest -n 2 --dist loadfile

lint: build
	$(VENV)/bin/ruff check .
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files '*.c' '*.h' '*.cpp')
	rm -rf build/typing && mkdir -p build/typing/haian
	ln -s $(CURDIR)/src/haian/* $(addprefix $(CURDIR)/,hal kernels adapters conformance bench bridges reporting) build/typing/haian/
	cd build/typing && MYPYPATH=. $(abspath $(VENV))/bin/mypy --config-file $(CURDIR)/pyproject.toml -p haian

bench: build
	$(VENV)/bin/haian bench run --suite full --threads 1,all --report report/bench

mutants: build
	$(PY) -m haian.conformance.mutants

# every Triton kernel for cuda 80/90 and gfx942, then one kernel a family under older Tritons
matrix: build
	$(PY) tests/matrix.py
	for v in 3.0.0 3.2.0 3.6.0; do \
	  test -x $(VENV)-triton-$$v/bin/python || { $(PYTHON) -m venv $(VENV)-triton-$$v && \
	    $(VENV)-triton-$$v/bin/pip install -q "triton==$$v" setuptools "numpy<2.4" ml_dtypes; } && \
	  $(PY) tests/matrix.py --triton $(VENV)-triton-$$v/bin/python || exit 1; done

# the HAL suite and the operators on builds with AddressSanitizer and ThreadSanitizer, in environments of their own
sanitize: build
	tests/sanitize.sh address $(abspath $(PY))
	tests/sanitize.sh thread $(abspath $(PY))

gpu:
	bash tests/gpu.sh

clean:
	rm -rf build report $(VENV)/.installed
