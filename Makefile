# The two commands of the README are `make demo` and `make test`; both make the environment first if it is missing. The
# demo needs bytelm alone; tests, checks and wheels bring what they need besides (`install`).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENGINE := $(wildcard bytelm/engine/*.cpp bytelm/engine/*.h) bytelm/engine/build.py
LIBRARY := libbytelm_engine.so
COMMA := ,
ZIG := $(CURDIR)/$(BIN)/python -m ziglang c++ -target
WHEEL := $(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

.NOTPARALLEL:
.PHONY: demo test test-slow test-sanitized check check-aarch64 format install wheel wheel-cross clean

demo: $(VENV)/engine
	$(BIN)/bytelm quickstart

test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

test-slow: install
	$(BIN)/pytest -m slow

# The engine's tests with a library that watches its own memory accesses and arithmetic, in this machine's widest
# variant and the plain one. Python itself is built without the sanitizer, so that comes first into the process, with
# the C++ library, for torch's exceptions must be seen by both. Leaks are not looked for: what Python keeps until the
# end looks like one. One test is left out: it limits the address space, of which the sanitizer reserves terabytes.
test-sanitized: install
	$(BIN)/python -m bytelm.engine.build --sanitize --out build/sanitized/$(LIBRARY) \
	    --isa $$($(BIN)/python -c 'from bytelm.engine.library import load_library as load; print(load().isa + ",plain")')
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1 \
	BYTELM_ENGINE_LIBRARY=$(CURDIR)/build/sanitized/$(LIBRARY) $(BIN)/pytest -n auto \
	    --ignore tests/engine/test_library.py tests/engine \
	    --deselect tests/engine/test_weights.py::test_memory_that_is_used_up_is_said_with_the_size

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

# Whether 64-bit ARM computes the same bits. Beside the extra `cross` it needs an emulator and a C library for it:
# apt install qemu-user libc6-arm64-cross
CHECK_PROGRAM := -std=c++17 -O1 tests/engine/other_machine.cpp
check-aarch64: install
	$(BIN)/pip install --quiet --constraint constraints.txt ziglang
	$(BIN)/python -m bytelm.engine.build --target aarch64 --out build/aarch64/$(LIBRARY)
	$(ZIG) aarch64-linux-gnu.2.17 -DBL_ISA_NAME=neon $(CHECK_PROGRAM) build/aarch64/$(LIBRARY) -o build/aarch64/check
	$(CXX) -DBL_ISA_NAME=plain $(CHECK_PROGRAM) bytelm/engine/$(LIBRARY) -o build/check-plain
	build/check-plain >build/check-plain.txt
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/aarch64/check | diff build/check-plain.txt -
	cat build/check-plain.txt

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/installed $(VENV)/engine

# pip says nothing while it unpacks and compiles, so what is there already is told every few seconds. The demo's modules
# are compiled when they are first imported, and take less room; the tests, whose warnings are errors, need all of them.
define INSTALL
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "bytelm needs Python 3.11 or newer, found " + sys.version.split()[0])'
	@$(PYTHON) -m venv $(VENV)
	@echo 'installing bytelm and what it needs into $(VENV): $(2)'
	@$(BIN)/pip install --quiet --quiet $(3) --constraint constraints.txt --editable '$(1)' & pip=$$!; \
	    trap 'kill $$pip 2>/dev/null' INT TERM; begun=$$(date +%s); \
	    while sleep 4 && kill -0 $$pip 2>/dev/null; do \
	        echo "  $$(($$(date +%s) - begun)) s, $$(du -sm $(VENV) 2>/dev/null | cut -f1) MB"; \
	    done; wait $$pip
	@echo 'installed; type $(BIN)/bytelm, or bytelm after: . $(BIN)/activate'
endef

$(VENV)/installed: pyproject.toml constraints.txt setup.py
	$(call INSTALL,.[xformers$(COMMA)s3$(COMMA)ray$(COMMA)near-duplicates$(COMMA)bpe$(COMMA)dev],2.2 GB with what tests and checks need; some minutes)
	@test ! -e $(VENV)/lean || $(BIN)/python -m compileall -qq $(VENV)/lib || true
	@touch $(VENV)/lean $@

$(VENV)/lean: pyproject.toml constraints.txt setup.py
	$(call INSTALL,.,1.2 GB; a minute or two,--no-compile)
	@touch $@

# The installation above builds the engine, too; this builds it anew when its sources alone have changed.
$(VENV)/engine: $(VENV)/lean $(ENGINE)
	$(BIN)/python -m bytelm.engine.build --optional
	touch $@

# One wheel for this machine's architecture, with every instruction set in it; it needs this machine's glibc.
wheel: install
	$(BIN)/python -m bytelm.engine.build
	rm -rf build/lib build/bdist.*
	$(WHEEL)
	ls dist/*linux*.whl

# Wheels for x86-64 and for 64-bit ARM that need no more than glibc 2.17. A wheel is made without an engine, too, and
# then has another name: that is no success here, and the last command says why.
wheel-cross: install
	$(BIN)/pip install --quiet --constraint constraints.txt ziglang
	set -e; for machine in x86_64 aarch64; do \
	    rm -rf build/lib build/bdist.*; \
	    CXX="$(ZIG) $$machine-linux-gnu.2.17" $(WHEEL); \
	    ls dist/*manylinux_2_17_$$machine.whl || { $(BIN)/python -m bytelm.engine.build \
	        --target $$machine --out build/$$machine/$(LIBRARY); exit 1; }; \
	done

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	rm -f bytelm/engine/libbytelm_engine.*
