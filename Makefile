# What people and CI run. `make` alone lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help demo test fuzz faults mutate simulate simulate-mutations attack e2e kernels loom lint check bench compare soak deb tools

# cargo-nextest and cargo-deny, where the machine has none.
CARGO_TOOLS := $(abspath $(or $(CARGO_TARGET_DIR),target))/tools
export PATH := $(CARGO_TOOLS)/bin:$(PATH)

# Test modules that need what the machine's own kernel may lack.
NEEDS_A_KERNEL := kernel_tls wireguard

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/\1\t\2/' | expand -t 20

demo: ## Build a release and show a whole relay with real tunnels through it
	@cargo build --release --locked
	exec target/release/sluicegate demo

test: tools ## Install what the tests need, and run every test
	@cargo nextest run --locked -p sluicegate -p sluicegate-house -p sluicegate-fuzz
	tests/kernels/run $(NEEDS_A_KERNEL)
	$(MAKE) --no-print-directory loom simulate

# Not by the environment: bash has a variable SECONDS of its own.
fuzz: ## Fuzz parsers, following the coverage: TARGET=connect_head SECONDS=60; without a target, each in turn
	@exec fuzz/run $(or $(TARGET),all) $(or $(SECONDS),60)

faults: ## Let every system call of a relay fail in every way, and write the table of docs/faults.md; ARGS="splice EINTR" runs these cases
	@exec cargo bench --locked --profile dev --bench faults -- $(ARGS)

mutate: ## Break the queries in every way, in all sizes and on both stores, and write a table; ARGS="grants drop 30%" runs these cases
	@exec cargo test --locked --profile thorough --test mutation -- $(ARGS)

simulate: ## Play histories of whole workers on a simulated kernel; SEED=N plays one again, SECONDS=N that long
	@exec cargo run --locked --quiet -p sluicegate-simulate -- $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

simulate-mutations: ## How long the simulation takes to find each known fault; ARGS="leaked-pipe fin-not-passed" tries these
	@exec cargo run --locked --quiet -p sluicegate-simulate --bin mutations -- $(ARGS)

attack: ## Attack a relay, and HAProxy where it has the same job, and write a table; ARGS="nobody heads" runs those alone, EACH=5 is for how many seconds each
	@export ATTACK_SECONDS=$${EACH:-5}
	exec cargo bench --locked --bench attack -- $(ARGS)

e2e: tools ## The production shape, with real clients: each step with its time; KEEP=1 leaves it up, STEP=NAME runs that one
	@export SLUICEGATE_E2E_KEEP=$${KEEP:-} SLUICEGATE_E2E_STEP=$${STEP:-}
	exec cargo test --locked --test e2e -- --nocapture

kernels: tools ## The tests that depend on the kernel, on Debian's 6.1 and 6.12 in a virtual machine; TESTS="tls nodes" runs these modules
	@exec tests/kernels/run $(TESTS)

# In a place of its own: the flag concerns every crate.
loom: ## Try every order in which threads can publish, reclaim, revoke and wake
	@export RUSTFLAGS='--cfg crossbeam_loom' CARGO_TARGET_DIR="$${CARGO_TARGET_DIR:-target}/loom"
	cargo clippy --locked -p sluicegate-loom --tests -- -D warnings
	exec cargo test --locked -p sluicegate-loom --profile thorough --no-fail-fast --quiet

lint: tools ## Formatting, clippy, documentation, layers and cycles, licences and banned crates
	@cargo fmt --all --check
	cargo clippy --locked -p sluicegate -p sluicegate-house -p sluicegate-fuzz --all-targets -- -D warnings
	cargo clippy --locked -p sluicegate-simulate --bins -- -D warnings
	cargo clippy --locked -p sluicegate --bench attack --bench compare --bench control --bench faults --bench full_load --bench handover --bench soak --bench tls -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items
	cargo deny --log-level error check bans licenses sources
	cargo run --locked -p sluicegate-house --quiet

check: ## The fastest look at whether everything compiles
	@cargo check --locked --all-targets

bench: ## The microbenches
	@cargo bench --locked

soak: ## A node under the mix of a real one for HOURS (1): memory, descriptors, files and counters must not grow
	@HOURS=$${HOURS:-1} exec cargo bench --locked --bench soak

compare: ## Measure beside the peers and write a report; ARGS="--quick" takes 3 minutes, ARGS=--help tells more
	@.ci/tools compare
	exec cargo bench --locked --bench compare -- $(ARGS)

# In a place of its own: the flags concern every crate. They leave this machine's paths out of the program, and give it
# the id by which debuggers find its symbols.
deb: ## Build target/sluicegate_VERSION_ARCH.deb, its debug symbols and its bill of materials; the same again for the same commit
	@target=$${CARGO_TARGET_DIR:-target}
	export SLUICEGATE_VERSION SOURCE_DATE_EPOCH
	SLUICEGATE_VERSION=$$(packaging/version)
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)}
	cargo=$${CARGO_HOME:-$$HOME/.cargo}
	export RUSTFLAGS="--remap-path-prefix=$$PWD=/usr/src/sluicegate --remap-path-prefix=$$cargo=/usr/src/cargo -Clink-arg=-Wl,--build-id=sha1"
	export CFLAGS="-ffile-prefix-map=$$PWD=/usr/src/sluicegate -ffile-prefix-map=$$cargo=/usr/src/cargo"
	CARGO_TARGET_DIR=$$target/package cargo build --release --locked
	packaging/build-deb "$$target/package/release/sluicegate" "$$target"
	packaging/sbom "$$SLUICEGATE_VERSION" >"$$target/sluicegate_$$SLUICEGATE_VERSION.cdx.json"
	echo "$$target/sluicegate_$$SLUICEGATE_VERSION.cdx.json"

tools: ## Install what tests and lint use, where it is missing and we are root
	@.ci/tools
	.ci/cargo-tools $(CARGO_TOOLS)
	.ci/balena-cli
	.ci/axe-core
