# The commands of this project. `make help` lists them. Two are enough: `make demo` and `make test`.
SHELL := /bin/bash
BUILD ?= build
JOBS  ?= $(shell nproc)
DEMO_OUT ?= $(BUILD)/demo
# Long real text that every Debian and Ubuntu has; TEXT="a.txt b.txt" names your own.
TEXT ?= $(wildcard /usr/share/common-licenses/*[0-9])

.PHONY: help deps build cuda python demo test test-core test-python test-aarch64 check format bundle bench clean fuzz fuzz-readers sanitize check-clang proof tidy

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 18

deps:
	@scripts/install_deps.sh build

build: deps  ## build/moba, the program, and build/libmoba_torch.so
	@cmake -S . -B $(BUILD) -G Ninja -DMOBA_TESTS=OFF > $(BUILD).configure.log 2>&1 || { cat $(BUILD).configure.log; exit 1; }
	@rm -f $(BUILD).configure.log
	@cmake --build $(BUILD) -j $(JOBS)

cuda: build  ## build/libmoba_cuda.so, the kernels for Hopper GPUs; compiles on a machine without one
	@scripts/install_cuda.sh
	@cmake -S . -B $(BUILD) -G Ninja -DMOBA_CUDA=ON > /dev/null
	@cmake --build $(BUILD) -j $(JOBS) --target moba_cuda

python: build  ## .venv/bin/python that imports torch and libmoba
	@scripts/install_python.sh

demo: build  ## hide facts in long text, let the shipped model find them with full attention and with MoBA
	@scripts/demo.sh $(BUILD) $(DEMO_OUT) $(TEXT)

test: test-core test-python  ## every test that this machine can run

test-core:
	@scripts/install_deps.sh test
	@[ "$$(uname -m)" != x86_64 ] || scripts/install_cuda.sh
	@cmake -S . -B $(BUILD) -G Ninja -DMOBA_TESTS=ON > /dev/null
	@cmake --build $(BUILD) -j $(JOBS)
	ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS) --timeout 900

test-python: python
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r scripts/requirements-test.txt
	.venv/bin/python -m pytest tests/python tests/app -q

test-aarch64:  ## the core's tests on emulated 64-bit Arm (qemu-user; slow)
	@scripts/test_aarch64.sh

fuzz:  ## random cases against the reference until Ctrl-C; a failure prints the seed that repeats it (FUZZ="--seed N")
	@scripts/install_deps.sh test
	@cmake -S . -B $(BUILD)-core -G Ninja -DMOBA_TORCH=OFF -DMOBA_CUDA=OFF -DMOBA_TESTS=ON > /dev/null
	@cmake --build $(BUILD)-core -j $(JOBS) --target property_fuzz
	$(BUILD)-core/tests/fuzz/property_fuzz $(FUZZ)

fuzz-readers:  ## libFuzzer on the C++ API and each file reader, 60 s each (FUZZ="600 toml": seconds, names); needs clang
	@scripts/fuzz.sh $(FUZZ)

sanitize:  ## the core's tests under AddressSanitizer with UBSan, then ThreadSanitizer (SANITIZE=thread: one of them)
	@scripts/install_deps.sh test
	@scripts/sanitize.sh $(SANITIZE)

check-clang:  ## core, tests, example and the out-of-tree project with clang++, warnings as errors
	@cmake -S . -B $(BUILD)-clang -G Ninja -DMOBA_TORCH=OFF -DMOBA_CUDA=OFF -DMOBA_TESTS=ON -DMOBA_WERROR=ON -DCMAKE_CXX_COMPILER=clang++ > /dev/null
	@cmake --build $(BUILD)-clang -j $(JOBS)
	@ctest --test-dir $(BUILD)-clang -R core_install --output-on-failure --no-tests=error

proof:  ## what a compiler and a test do not see: what fuzzing once found, sanitize, check-clang, tidy
	@scripts/install_deps.sh proof
	@scripts/fuzz.sh 0
	@MOBA_PROPERTY_PERCENT=2 scripts/sanitize.sh
	@$(MAKE) --no-print-directory check-clang tidy

tidy:  ## clang-tidy over the core: bugprone, performance, names
	@scripts/tidy.sh

check:  ## format, layering and file-size rules
	@scripts/install_deps.sh test
	@scripts/check.sh

format:  ## rewrite the sources with clang-format
	@scripts/install_deps.sh test
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs .venv/bin/clang-format -i

bench: build  ## attention on this CPU against torch's dense attention
	@$(BUILD)/moba bench attend --device cpu

bundle: build  ## dist/moba-bundle.tar.gz: program, operators, tests and configs for another (GPU) machine
	@scripts/make_bundle.sh $(BUILD)

clean:
	rm -rf $(BUILD) dist
