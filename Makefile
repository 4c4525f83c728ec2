# Every target prepares what it needs by itself, in .venv; nothing is installed outside of this directory.
#
#   make demo       everything embedded: sensors, cameras, a live table, then a replay       SECONDS=20
#   make run        the gateway with gateway.toml, which it writes on the first run           CONFIG=gateway.toml
#   make test       all tests; those that need Mosquitto, GStreamer, kcat or Kafka skip without these
#   make lint       ruff, mypy --strict, and the stubs of the extension modules
#   make bench      measurements beside the peers that are found
#   make sanitize   native unit tests under address, undefined-behaviour and thread sanitizers
#   make fuzz       MQTT, RTSP and cameras, and the Kafka endpoint under atheris              SECONDS=20
#   make torture    the simulated crashes (or for so many SECONDS), the real ones, and hundreds
#                   of cameras, each byte compared                                            SEEDS=20000 ROUNDS=300
#   make dist       sdist and wheel in dist/
#   make clean      removes what was built; make distclean removes .venv too

SHELL := /bin/sh
.DELETE_ON_ERROR:
.SUFFIXES:

VENV := .venv
BIN := $(VENV)/bin
# Empty means: the first of python3, python3.14 … python3.11 that is new enough.
PYTHON ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

SECONDS ?= 20
CONFIG ?= gateway.toml
ROUNDS ?= 300
SEEDS ?= 20000
# Where the seeds begin that `make torture SECONDS=…` goes through.
FIRST ?= 0
TESTS ?= tests

NATIVE := _native/gateway_native
NATIVE_SOURCES := $(wildcard $(NATIVE)/*.pyx $(NATIVE)/*.pxd $(NATIVE)/*.h $(NATIVE)/crc32c.c)
NATIVE_MODULES := $(patsubst $(NATIVE)/%.pyx,gateway_native.%,$(wildcard $(NATIVE)/*.pyx))

.PHONY: help demo run test lint bench fuzz sanitize sanitize-address sanitize-thread torture dist clean distclean format

help:
	@sed -n 's/^# \{0,1\}//; 1,/^$$/p' Makefile

# --- the environment -------------------------------------------------------------------------------------------------

$(VENV)/.stamp-venv:
	@python=$$(PYTHON="$(PYTHON)" .ci/check-machine) && "$$python" -m venv $(VENV)
	@$(PIP) --upgrade pip "setuptools>=77" wheel "cython>=3.1"
	@touch $@

# Beside their sources, so that an edited one needs no new installation.
$(VENV)/.stamp-build: $(VENV)/.stamp-venv setup.py $(NATIVE_SOURCES)
	@echo "Building the extension modules; the first time this takes a minute or two ..."
	@PYTHON=$(BIN)/python .ci/check-machine >/dev/null
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

define install
	@echo "Installing into $(VENV): $(1) ..."
	@GATEWAY_EXTENSIONS=no PYTHONWARNINGS='ignore:Editable installation' \
	    $(PIP) --no-build-isolation --editable '$(1)'
	@touch $@
endef

$(VENV)/.stamp-run: pyproject.toml | $(VENV)/.stamp-build
	$(call install,.[all])

$(VENV)/.stamp-test: pyproject.toml | $(VENV)/.stamp-build
	$(call install,.[test])
	@touch $(VENV)/.stamp-run

$(VENV)/.stamp-fuzz: $(VENV)/.stamp-test
	$(call install,.[fuzz])

$(VENV)/.stamp-lint: $(VENV)/.stamp-test
	$(call install,.[lint])

# --- using it --------------------------------------------------------------------------------------------------------

demo: $(VENV)/.stamp-run
	@$(BIN)/gateway demo --seconds $(SECONDS)

run: $(VENV)/.stamp-run
	@test -e "$(CONFIG)" || $(BIN)/gateway init "$(CONFIG)"
	@exec $(BIN)/gateway run -c "$(CONFIG)"

# --- checking it -----------------------------------------------------------------------------------------------------

test: $(VENV)/.stamp-test
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/.stamp-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=_native:adapters $(BIN)/python -m mypy.stubtest --concise --ignore-disjoint-bases \
		--allowlist .ci/stubtest-allowlist --ignore-unused-allowlist $(NATIVE_MODULES)

format: $(VENV)/.stamp-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.stamp-test
	$(BIN)/python -m bench $(BENCH)

torture: $(VENV)/.stamp-test
	$(BIN)/python -m tests.simulation \
	    $(if $(findstring file,$(origin SECONDS)),--seeds $(FIRST):$(SEEDS),--seeds $(FIRST): --seconds $(SECONDS))
	GATEWAY_CRASH_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest tests/crash --timeout 3600
	GATEWAY_CAMERAS=100 GATEWAY_CAMERA_SECONDS=60 GATEWAY_CAMERA_SIZE=1920x1080 GATEWAY_CAMERAS_RESTARTED=500 \
	    $(BIN)/python -m pytest tests/integration/test_camera_farm.py --timeout 3600

# --- fuzzing ---------------------------------------------------------------------------------------------------------
# The extensions are built a second time, so that the fuzzer sees which of their branches an input reaches. GCC does that with
# calls that tests/fuzz/coverage.c counts.

fuzz: $(VENV)/.stamp-fuzz
	@mkdir -p build/fuzz
	$(CC) -O2 -fPIC -shared -o build/fuzz/coverage.so tests/fuzz/coverage.c
	GATEWAY_CFLAGS="-fsanitize-coverage=trace-pc -g -O1" \
	    $(BIN)/python setup.py --quiet build --build-base build/fuzz --build-lib build/fuzz/lib
	for target in mqtt rtp rtsp kafka; do \
	    GATEWAY_COVERAGE=$(CURDIR)/build/fuzz/coverage.so PYTHONPATH=build/fuzz/lib:. \
	        $(BIN)/python -m tests.fuzz.fuzz_$$target -max_total_time=$(SECONDS) || exit 1; \
	done

# --- sanitizers ------------------------------------------------------------------------------------------------------
# The extensions are built a second time into a tree of their own, and the interpreter starts with the sanitizer's run-time
# library loaded first. Python and its libraries are not instrumented: leaks are theirs to judge, so leak detection is off.

CC ?= cc
SANITIZE_TESTS ?= tests/unit tests/property tests/simulation/test_disk.py tests/simulation/test_simulation.py
SANITIZE_PYTEST = GATEWAY_SIMULATION_SEEDS=1000 $(BIN)/python -m pytest -p no:cacheprovider -p no:faulthandler --timeout 1800 -o filterwarnings=default

sanitize: sanitize-address sanitize-thread

sanitize-address: $(VENV)/.stamp-test
	GATEWAY_CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1" \
	    $(BIN)/python setup.py --quiet build --build-base build/address --build-lib build/address/lib
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1 \
	    UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	    PYTHONMALLOC=malloc \
	    $(SANITIZE_PYTEST) -o pythonpath="build/address/lib" $(SANITIZE_TESTS)

sanitize-thread: $(VENV)/.stamp-test
	GATEWAY_CFLAGS="-fsanitize=thread -fno-omit-frame-pointer -g -O1" \
	    $(BIN)/python setup.py --quiet build --build-base build/thread --build-lib build/thread/lib
	LD_PRELOAD="$$($(CC) -print-file-name=libtsan.so)" \
	    TSAN_OPTIONS="halt_on_error=1 exitcode=66 report_signal_unsafe=0 $(TSAN_EXTRA)" \
	    $(SANITIZE_PYTEST) -o pythonpath="build/thread/lib" $(SANITIZE_TESTS)

# --- packaging -------------------------------------------------------------------------------------------------------

dist: $(VENV)/.stamp-test
	@$(PIP) "build>=1.2"
	$(BIN)/python -m build --outdir dist

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f $(NATIVE)/*.so $(patsubst %.pyx,%.c,$(wildcard $(NATIVE)/*.pyx)) $(VENV)/.stamp-build
	find gateway adapters _native tests bench -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
