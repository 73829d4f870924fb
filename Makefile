# Keelson: every target is one line of help; `make` prints them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/keelson
TOOLS := $(CACHE)/tools
BIN   := bin
# Tests that start real servers share two cores politely.
PKGS  ?= ./...

.PHONY: help
help: ## print this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

.PHONY: demo
demo: setup ## run the main job: a whole cluster (root on Linux), else its light form; only attested workloads get in
	go run ./test/demo

.PHONY: test
test: setup ## run all unit and integration tests
	go test -timeout 30m $(PKGS)

.PHONY: vmboot
vmboot: ## boot real virtual machines that prove their boot to a real SPIRE server
	go test -count=1 -v -timeout 60m -run "TestAVirtualMachineProvesItsBoot|TestBootsArePredictedFromTheirFiles|TestWhatANodeRunsIsMeasured|TestThreat08" ./test/cluster/vmboot

.PHONY: race
race: setup ## run all unit and integration tests with the race detector, in random order
	go test -race -shuffle=on -timeout 40m $(PKGS)

.PHONY: check
check: ## everything that CI runs, with the time that each part took
	@for part in fmt-check vet lint generate-check tidy-check race resolution issuable charts e2e; do \
	  begun=$$SECONDS; $(MAKE) --no-print-directory $$part; echo "== $$part: $$((SECONDS - begun)) s"; \
	done

.PHONY: setup
setup: ## install or build what demo and tests need beyond Go (cached)
	@test/setup

.PHONY: build
build: ## build the commands into bin/
	CGO_ENABLED=0 go build -trimpath -o $(BIN)/ ./cmd/...

.PHONY: images
images: ## make the container images for amd64 and arm64 in out/images (OCI image layout; no container engine needed)
	go run ./charts/images/makeimages out/images

.PHONY: push
push: ## push what `make images` made to REGISTRY (host/path) with Docker's credentials, and print the digests
	go run ./charts/images/makeimages out/images "$(REGISTRY)"

.PHONY: fmt
fmt: ## format the code
	gofmt -w $$(git ls-files '*.go')

.PHONY: fmt-check
fmt-check: ## fail where the code is not formatted
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "not formatted (make fmt):"; echo "$$out"; exit 1; fi

.PHONY: vet
vet: setup ## run go vet
	go vet ./...

.PHONY: tools
tools: ## build the pinned linters and generators (cached)
	@test/tools/build "$(TOOLS)"

.PHONY: lint
lint: tools ## run golangci-lint (staticcheck is one of its linters)
	$(TOOLS)/golangci-lint run ./...
	cd test/charts && $(TOOLS)/golangci-lint run ./...

.PHONY: generate
generate: tools ## write deep copies and definitions from the API types, and what of the chart follows from code
	$(TOOLS)/controller-gen object crd paths=./policy-sync/api/... output:crd:dir=charts/keelson/crds
	go run ./charts/generate charts/keelson

.PHONY: generate-check
generate-check: generate ## fail where generated files are not up to date
	git diff --exit-code -- charts/keelson policy-sync/api

.PHONY: tidy-check
tidy-check: ## fail where go.mod or go.sum is not tidy
	go mod tidy -diff
	cd test/charts && go mod tidy -diff
	cd test/parts/containerd/resolution && go mod tidy -diff
	cd test/parts/spire/issuable && go mod tidy -diff

.PHONY: charts
charts: setup ## lint the Helm charts, compare what they render, and install them into a real Kubernetes API
	cd test/charts && go vet ./... && go test -count=1 -timeout 20m ./...

.PHONY: resolution
resolution: ## compare what containerd and CRI-O would start from random indexes with what is judged
	cd test/parts/containerd/resolution && go vet ./... && go test -count=1 ./...

.PHONY: issuable
issuable: ## compare which agents SPIRE's own server lets issue an identity, in random worlds, with what policy-sync reports
	cd test/parts/spire/issuable && go vet ./... && go test -count=1 ./...

.PHONY: e2e
e2e: setup ## run the end-to-end suites: every scenario on a whole cluster (root on Linux), and the light demo
	go run ./test/demo -light
	go run ./test/e2e

.PHONY: e2e-long
e2e-long: setup ## the scenarios that measure and that kill, at length: 20 runs, 50 pods, ten minutes
	go run ./test/e2e -runs 20 -pods 50 -faults 10m tampering rollout tenants faults

.PHONY: cluster
cluster: setup ## bring up the whole cluster with its workloads, until Ctrl-C
	go run ./test/e2e -hold

.PHONY: cluster-down
cluster-down: ## end that cluster from elsewhere, and clean up after one that was killed
	go run ./test/e2e -down

.PHONY: fuzz
FUZZTIME ?= 20s
fuzz: ## run every fuzz target for FUZZTIME (20s)
	@for pkg in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg; \
	  done; \
	done

.PHONY: bench
bench: ## measure speed as ratios within one run; the tables are also out/bench.json and out/bench-eventlogs.json
	@mkdir -p out
	go test -run '^$$' -bench . -benchmem ./nodeattestor/... ./policy-sync/... ./workloadattestor/...
	KEELSON_BENCH_JSON=$(CURDIR)/out/bench.json go test -run '^$$' -bench . -benchmem -timeout 30m ./test/bench
	cd test/bench/peers && KEELSON_BENCH_JSON=$(CURDIR)/out/bench-eventlogs.json go test -run '^$$' -bench Replay .
	cd test/bench/peers/attestors && CGO_ENABLED=0 go test -trimpath -run '^$$' -bench 'Warm/.*/in-a-row|Cold' -benchtime 500x .
	cd test/bench/peers/attestors && CGO_ENABLED=0 go test -trimpath -run '^$$' -bench 'Warm/.*/apart' -benchtime 60x .

.PHONY: bench-scale
SIZES ?= 100/2000/20,1000/20000/200
bench-scale: setup ## measure policy-sync with worlds of SIZES (nodes/pods/policies) on a real API; the table is also out/bench-scale.json
	go run ./test/bench/scale -sizes $(SIZES) -json out/bench-scale.json

.PHONY: cover
cover: setup ## print test coverage by package
	go test -cover ./...

.PHONY: clean
clean: ## remove what builds and the demo left in the tree
	rm -rf $(BIN) out
