# `make demo` and `make test` need nothing but make: what else is missing, scripts/setup.sh installs.
# Written for GNU make 3.81 (macOS has no newer one) and bash 3.2.

# Naming bash also makes make 3.81 look up commands in the PATH that is set below.
SHELL := /bin/bash

CARGO ?= cargo
PREFIX ?= $(HOME)/.local
# Everything is built in one profile and always for the whole workspace, so that llama.cpp, minutes
# of C++, is built once and shared by the binaries, the tests and the lints.
ALL := --release --workspace
# `make build FEATURES=cuda` or metal: GPUs, compiled in.
ifdef FEATURES
ALL += --features $(FEATURES:%=hypura/%)
endif
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)

# Rust that setup.sh has just installed is not in the caller's PATH yet.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

# RUSTFLAGS in the environment replaces the flags of .cargo/config.toml, and without a target-cpu
# llama.cpp is built without its fast kernels.
ifneq ($(origin RUSTFLAGS),undefined)
ifeq ($(findstring target-cpu,$(RUSTFLAGS)),)
override RUSTFLAGS := $(strip $(RUSTFLAGS) -C target-cpu=native)
$(info note: RUSTFLAGS is set; building with RUSTFLAGS="$(RUSTFLAGS)")
endif
export RUSTFLAGS
endif
ifneq ($(origin CARGO_ENCODED_RUSTFLAGS),undefined)
ifeq ($(findstring target-cpu,$(CARGO_ENCODED_RUSTFLAGS)),)
$(info warning: CARGO_ENCODED_RUSTFLAGS is set without a target-cpu; inference will be slow)
endif
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup build demo test clients page lint fmt doc deny install clean
.PHONY: lint-fmt lint-tree lint-arrows lint-clippy lint-doc

help: ## Show this list
	@sed -nE 's/^([a-z]+):.*## (.*)/\1|\2/p' Makefile | while IFS='|' read -r name what; do \
		printf '  make %-8s %s\n' "$$name" "$$what"; done

setup: ## Install what the build needs and this machine lacks
	@scripts/setup.sh

build: setup ## Build the binaries into target/release
	$(CARGO) build $(ALL)

demo: build ## Run a Mixture-of-Experts model in half the memory of its weights
	@scripts/demo.sh

test: setup ## Run all tests
	$(CARGO) test $(ALL) --no-fail-fast

clients: build ## Run the official Python clients against the server
	@scripts/test-clients.sh

page: build ## Check the server's page in a headless browser
	@scripts/test-ui.sh
	@scripts/test-page.sh

lint: lint-fmt lint-tree lint-arrows lint-clippy lint-doc ## Check formatting, clippy, docs and architecture

lint-fmt: setup
	$(CARGO) fmt --all --check

lint-tree:
	@scripts/check-tree.sh

lint-arrows: setup
	@scripts/check-arrows.sh

lint-clippy: setup
	$(CARGO) clippy $(ALL) --all-targets -- -D warnings

lint-doc: setup
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(ALL) --no-deps

fmt: setup ## Format the code
	$(CARGO) fmt --all

doc: setup ## Build the documentation into target/doc
	$(CARGO) doc $(ALL) --no-deps

deny: setup ## Check licences, bans and sources of all dependencies
	@scripts/deny.sh

install: build ## Install hypura, built for this machine's CPU, into PREFIX/bin (~/.local/bin)
	install -d "$(DESTDIR)$(PREFIX)/bin"
	install -m 755 "$(TARGET_DIR)/release/hypura" "$(DESTDIR)$(PREFIX)/bin/hypura"

clean: ## Remove what was built, and the demo's model
	$(CARGO) clean
	@scripts/demo.sh --clean
