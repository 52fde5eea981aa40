# Thin names for the commands that people and CI run. Everything is in .ci/setup and tests/tools.
# On a fresh Debian machine any of these may be the first command: .ci/setup installs what is missing,
# as root or with sudo, and makes .venv.
#
#   make lab-up HOSTS='kvm1 xen'                      some of the lab's hosts instead of all
#   make test-unit ARGS='-x -k "config or logs"'      ARGS goes to pytest

PYTHON := .venv/bin/python
SETUP := sh .ci/setup
SUITE := $(PYTHON) -m tests.tools.suite
ARGS :=
HOSTS :=
# By the environment: no shell in between that would take quotes apart.
export SUITE_PYTEST_ARGUMENTS := $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help demo test test-unit test-rpc test-docs test-conformance test-qemu test-lab lab-up lab-status lab-down matrix lint generate docs bench requirements clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 26

demo: ## Show everything with a real guest: the first thing to try
	@$(SETUP) demo
	@$(PYTHON) -m tests.e2e.demo

test: ## All checks and all tests, real QEMU guests included
	@$(SETUP) test
	@$(SUITE)

test-unit: ## Unit tests: seconds, no hypervisor
	@$(SETUP) test
	@$(SUITE) unit

test-rpc: ## The daemon through its API, with the fake backend; injected faults
	@$(SETUP) test
	@$(SUITE) rpc

test-docs: ## Documentation is complete and true; the wheel is whole
	@$(SETUP) test
	@$(SUITE) docs

test-conformance: ## The conformance kit, for the backends that need no QEMU
	@$(SETUP) test
	@$(SUITE) conformance

test-qemu: ## Tests with a real libvirt daemon and real QEMU guests
	@$(SETUP) test
	@$(SUITE) qemu

test-lab: ## Tests on real KVM and Xen hosts, which are built first (minutes, once)
	@$(SETUP) test
	@$(PYTHON) -m tests.lab build
	@$(SUITE) lab

lab-up: ## Start real KVM and Xen hosts to play with: guestctl --context lab get guests
	@$(SETUP) test
	@$(PYTHON) -m tests.lab up $(HOSTS)

lab-status: ## Show what of the lab runs, and how to reach it
	@$(PYTHON) -m tests.lab status

lab-down: ## End the lab
	@$(PYTHON) -m tests.lab down $(HOSTS)

matrix: ## Run the conformance kit on every host, the lab's included, and write docs/capabilities.md
	@$(SETUP) test
	@$(PYTHON) -m tests.lab build
	@$(PYTHON) -m tests.tools.matrix --run

lint: ## Static checks: ruff, mypy, import-linter, buf, generated code, shellcheck
	@$(SETUP) dev
	@$(SUITE) static

generate: ## Write virtd/v1 anew from proto/
	@$(SETUP) test
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(PYTHON) -m tests.tools.proto generate

docs: ## Build the documentation into docs/_build/html
	@$(SETUP) test
	@$(PYTHON) docs/build.py

bench: ## Measure and print; asserts nothing
	@$(SETUP) test
	@$(PYTHON) -m tests.bench

requirements: ## Pin anew all that tests and docs need (requirements/dev.txt)
	@$(SETUP) test
	@$(PYTHON) -m tests.tools.requirements

clean: ## Remove everything that was built, .venv included
	rm -rf .venv build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
