# make          build bin/provisiond
# make demo     a daemon and a simulated rack on loopback, to a running cluster
# make test     every test; says loudly what this machine cannot run
# make e2e      real UEFI firmware in QEMU against the real daemon (root)
# make bench    the benchmarks, each a ratio against something in the same run
# make pictures the pictures in the documents, by the test that takes them
# make generate the Go client of the API, client/operations.gen.go
# make lint     go vet, golangci-lint, gofmt
# make vuln     known vulnerabilities in what we call (govulncheck)
# make sbom     what is in the binary, as CycloneDX: bin/provisiond.cdx.json
# make fuzz     every fuzz target for a while (FUZZTIME=30s)

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  := -s -w -X main.version=$(VERSION)
GOLANGCI := $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.12.2
CODEGEN  := $(GO) run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.5.1
FUZZTIME ?= 30s

GOVULNCHECK := $(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0
CYCLONEDX   := $(GO) run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0

.PHONY: all build demo test unit e2e bench pictures generate lint vuln sbom fuzz clean

all: build

build:
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/provisiond ./cmd/provisiond

demo: build
	./bin/provisiond demo

# What the packages in .ci/packages bring for the end-to-end test, for the tests with
# clients that others wrote, for those in a browser, for the examples of the documents,
# for the check of the alerts, and for signed UKIs.
# CI must leave nothing out; elsewhere what is left out is said.
E2E_NEEDS     := qemu-system-x86_64 qemu-system-aarch64 aarch64-linux-gnu-objcopy sbsign openssl curl tshark mformat dhcrelay radvd
BROWSER_NEEDS := chromium
DOC_NEEDS     := bash curl jq radvd
RULE_NEEDS    := promtool
SIGN_NEEDS    := sbverify sbsign objdump sig-list-to-certs openssl /usr/lib/systemd/boot/efi/linuxx64.efi.stub
ISO_NEEDS     := xorriso
CLIENT_NEEDS  := ip curl tftp atftp dhclient dhcpcd dhcp6c dhcrelay sysctl /lib/systemd/systemd-networkd

test: unit
	@absent() { for p in $$*; do command -v $$p >/dev/null || echo $$p; done; }; \
	lacks() { test "$$(id -u)" = 0 || echo root; absent $$*; }; \
	e2e=$$(lacks $(E2E_NEEDS)); clients=$$(lacks $(CLIENT_NEEDS)); browser=$$(absent $(BROWSER_NEEDS)); docs=$$(absent $(DOC_NEEDS)); rules=$$(absent $(RULE_NEEDS)); sign=$$(absent $(SIGN_NEEDS)); isos=$$(absent $(ISO_NEEDS)); \
	if [ -n "$$e2e$$clients$$browser$$docs$$rules$$sign$$isos" ]; then \
		echo; \
		test -z "$$browser" || echo "*** LEFT OUT: tests of the pages in a browser. Missing:" $$browser; \
		test -z "$$clients" || echo "*** LEFT OUT: tests in network namespaces, or with TFTP and DHCPv6 clients. Missing:" $$clients; \
		test -z "$$e2e" || echo "*** LEFT OUT: the end-to-end test with real UEFI firmware. Missing:" $$e2e; \
		test -z "$$docs" || echo "*** LEFT OUT: examples of the documents. Missing:" $$docs; \
		test -z "$$isos" || echo "*** LEFT OUT: another reader of ISO volumes. Missing:" $$isos; \
		test -z "$$rules" || echo "*** LEFT OUT: the check of the alerts. Missing:" $$rules; \
		test -z "$$sign" || echo "*** LEFT OUT: other programs that read and verify UKIs and Secure Boot keys. Missing:" $$sign; \
		echo "*** To run all of them, as root on Debian (in a container or a VM: some packages bring services that start):"; \
		echo "***   xargs -a .ci/packages apt-get install -y && make test"; \
		echo; \
		if [ -n "$$CI" ]; then echo "make test: CI must run all of them" >&2; exit 1; fi; \
	fi; \
	test -n "$$e2e" || $(MAKE) --no-print-directory e2e

# The model without the race detector too: that is twenty times as many schedules.
unit:
	$(GO) test -race -timeout 20m ./...
	$(GO) test ./internal/model

e2e:
	$(GO) test -tags e2e -count=1 -timeout 60m -v ./internal/e2e

bench:
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 30m ./internal/... ./web

# Of the pages as TestBrowser sees them: light, and as wide as a window.
PICTURES := rack machine reimage cluster discovered

pictures:
	@mkdir -p bin/pictures docs/pictures
	SCREENSHOTS=$(CURDIR)/bin/pictures $(GO) test -count=1 -run '^TestBrowser$$' ./internal/daemon
	@for p in $(PICTURES); do cp bin/pictures/$$p-light-1100.png docs/pictures/$$p.png; done

generate:
	@mkdir -p bin
	$(GO) run ./client/internal/generate >bin/openapi-3.0.json
	$(CODEGEN) -config client/internal/generate/oapi-codegen.yaml bin/openapi-3.0.json

lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags e2e ./internal/e2e/...
	$(GOLANGCI) run ./...

# Without its database there is nothing to check against, which is said.
vuln:
	@out=$$($(GOVULNCHECK) ./cmd/provisiond 2>&1) && echo "$$out" || { \
		echo "$$out" | grep -q 'fetching vulnerabilities' || { echo "$$out"; exit 1; }; \
		echo "*** LEFT OUT: known vulnerabilities. The database of govulncheck cannot be reached."; \
	}

sbom:
	@mkdir -p bin
	$(CYCLONEDX) app -json -output bin/provisiond.cdx.json -main cmd/provisiond .

# Inputs of some kB, such as UKIs, would be made smaller for all of the time.
fuzz:
	@grep -rlE '^func Fuzz' --include='*_test.go' internal | while read -r f; do \
		for t in $$(grep -oE '^func Fuzz[A-Za-z0-9]+' $$f | cut -d' ' -f2); do \
			echo "== $$t ($$(dirname $$f))"; \
			$(GO) test -run '^$$' -fuzz "^$$t\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x ./$$(dirname $$f) || exit 1; \
		done; \
	done

clean:
	rm -rf bin internal/e2e/out
