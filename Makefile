# weft: "make" lists what can be done. Tests that need the kernel want root; nothing outside of namespaces they make is touched.

SHELL   := bash
.SHELLFLAGS := -euo pipefail -c
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
TOOL    := $(GO) tool -modfile=tools/go.mod
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -tags urfave_cli_no_docs -ldflags '-s -w -X weft.network/weft/appliance/cli.version=$(VERSION)'
# The early start is a module of its own, so ./... does not reach it.
TESTED  := ./... a.weft/early
# gobgp has races of its own when several speakers share a process, as in its tests only: the detector looks at what uses it.
RACE := -race -gcflags='github.com/osrg/gobgp/v3/...=-race=false'
# Stories with many processes in real time: beside the kernel tests some of these wait for a processor for seconds.
STORIES := weft.network/weft/test/netlab
FUZZTIME ?= 20s

# Debian's names of what tests, demo and the test cluster run.
PACKAGES := bird2 conntrack containerd containernetworking-plugins curl debootstrap dnsperf ethtool frr gcc git iperf3 iproute2 iputils-arping iputils-ping \
	jq libc6-dev ndisc6 nftables procps runc socat tcpdump util-linux

.DEFAULT_GOAL := help
.PHONY: help build build-all deps test test-pure golden generate lint check demo e2e conformance bench fuzz clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/weft for this machine: static, stripped
	$(BUILD) -o bin/weft .

build-all: ## bin/weft-linux-amd64 and bin/weft-linux-arm64
	GOOS=linux GOARCH=amd64 $(BUILD) -o bin/weft-linux-amd64 .
	GOOS=linux GOARCH=arm64 $(BUILD) -o bin/weft-linux-arm64 .

deps: ## install the Debian packages that tests and demo run, if any is missing
	@missing=; for p in $(PACKAGES); do \
		[ "$$(dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null || true)" = installed ] || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
		echo "installing$$missing, without starting their services"; export DEBIAN_FRONTEND=noninteractive; policy=/usr/sbin/policy-rc.d; \
		[ -e $$policy ] || { printf '#!/bin/sh\nexit 101\n' >$$policy; chmod 755 $$policy; trap "rm -f $$policy" EXIT; }; \
		apt-get update -q && apt-get install -q -y --no-install-recommends $$missing; \
		for s in bird frr; do case "$$missing" in *$$s*) [ ! -d /run/systemd/system ] || systemctl disable -q $$s.service;; esac; done; fi

test: deps ## every Go test with the race detector, as root; a test that skips fails
	@[ "$$(id -u)" = 0 ] || { echo "make test needs root for the kernel tests: sudo make test, or make test-pure" >&2; exit 1; }
	WEFT_TEST_MUST_RUN=1 $(GO) test $(RACE) -count=1 -timeout 20m $$($(GO) list $(TESTED) | grep -vx $(STORIES))
	WEFT_TEST_MUST_RUN=1 $(GO) test $(RACE) -count=1 -timeout 20m $(STORIES)

test-pure: ## the tests that need no root; the others skip themselves
	$(GO) test -count=1 $(TESTED)

golden: ## rewrite the golden files, then show what changed: read it before you commit it
	@pkgs=$$(git grep -l --untracked 'flag.Bool("update"' -- '*_test.go' | xargs -n1 dirname | sort -u | sed 's|^|./|'); \
	$(GO) test -count=1 $$pkgs -update
	git diff --stat -- '*testdata*'

generate: ## run the code generators
	$(GO) generate ./...

lint: ## golangci-lint, pinned in tools/go.mod
	$(TOOL) golangci-lint run

check: ## everything about the code that needs no running: format, vet, lint, layers, modules, generated files, both machines
	@files=$$($(TOOL) gofumpt -l $$(git ls-files -co --exclude-standard '*.go')); \
	[ -z "$$files" ] || { echo "not formatted (gofumpt -w):"; echo "$$files"; exit 1; }
	$(GO) vet $(TESTED)
	$(MAKE) --no-print-directory lint
	$(GO) test -count=1 ./test/arch
	$(GO) mod tidy -diff
	cd plugins/cni/early && $(GO) mod tidy -diff
	@tree() { git status --porcelain; git diff | sha256sum; }; before=$$(tree); \
	$(GO) generate ./...; \
	[ "$$before" = "$$(tree)" ] || { echo "make generate changes the tree: commit what it makes"; git status --short; exit 1; }
	$(MAKE) --no-print-directory build-all

demo: deps build ## three nodes on this machine and a proof of each claim
	test/demo/demo.sh

e2e: deps ## a real cluster of two nodes on this machine
	test/e2e/run.sh

conformance: deps ## the official sig-network conformance suite on that cluster
	test/e2e/build.sh conformance
	test/e2e/run.sh -run Conformance

bench: deps build ## weft against what you would take instead, in one run
	test/bench/run.sh

fuzz: ## every fuzz target for FUZZTIME (20s)
	@git grep --untracked -n '^func Fuzz' -- '*_test.go' | sed -E 's|^(.*)/[^/]*:[0-9]+:func (Fuzz[A-Za-z0-9_]*).*|\1 \2|' | \
	while read -r dir target; do \
		echo "$$dir $$target"; $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) ./$$dir; done

clean: ## remove what was built; caches of the test cluster stay in .cache
	rm -rf bin
