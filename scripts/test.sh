#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
# Every check there is, but for those on older kernels (test-kernels.sh), from a bare
# Debian 12 with rustup: installs the Debian packages that are missing, then checks
# format and lints, runs all tests and the demo, and builds and loads the BPF programs
# with every clang that is supported.
#
# Run it as root: the kernel lets nobody else load the programs or make network
# namespaces. Otherwise what needs root is skipped, and said to be.
#
#   BMC_NO_INSTALL=1    installs nothing
#   BMC_E2E_GETS=N      GETs of each random run in tests/e2e.rs (100000); a
#                       thorough run takes 1000000
#   BMC_E2E_LIFE=N      seconds that its items live which are to end (4)
#   BMC_MODEL=full      the larger bounds of tests/model
#   BMC_STRESS_OPS=N    operations of tests/stress (200000)
#   BMC_FAULT_SECONDS=N how long tests/faults goes on (40); it sets the clock now and
#                       then, and back
#   BMC_CHURN_SECONDS=N how long tests/churn.rs asks for each size (12)
#   BMC_TRANSPARENT_COMMANDS=N
#                       commands of tests/transparent (20000)
#   BMC_FUZZ_RUNS=N     frames of tests/datapath/fuzz.rs (200000)
#   BMC_TEST_SEED=N     seed of random tests; a failing one prints its own
#   BMC_CLANG=PATH      the clang that builds what is tested (the newest found)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/need.sh

failed=()
skipped=()

# stage <name> <command>...
stage() {
	printf '\n=== %s\n' "$1"
	"${@:2}" || failed+=("$1")
}

skip() {
	printf '\n=== %s: skipped, %s\n' "$1" "$2"
	skipped+=("$1")
}

# It prints what README.md shows.
demo() {
	scripts/demo.sh | diff <(sed -n '/^1\. A client/,/^```$/{/^```$/!p}' README.md) -
}

# What a test run changes in the work tree would be committed by accident.
before=$(git status --porcelain)

need "${build_needs[@]}" "${network_needs[@]}" tmux clang-16 clang-14 clang-format-19 \
	libclang-rt-19-dev python3-pymemcache dpkg-dev systemd \
	ansible-core python3-apt prometheus prometheus-node-exporter
for component in rustfmt clippy; do
	cargo "${component/rust/}" --version >/dev/null 2>&1 || rustup component add "$component"
done

for script in scripts/*.sh .ci/run tests/package/boot.sh; do
	stage "$script" bash -n "$script"
done
for script in scripts/deb/{textfile,postinst,prerm,postrm}; do
	stage "$script" sh -n "$script"
done
stage "cargo fmt" cargo fmt --check
if clang_format=$(command -v clang-format-19); then
	stage "clang-format" "$clang_format" --style=file:bpf/.clang-format \
		--dry-run --Werror bpf/*.[ch] src/*.c tests/fuzz/*.[ch]
else
	skip "clang-format" "clang-format-19 is missing"
fi
stage "clippy" cargo clippy --locked --all-targets -- -D warnings
stage "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
if [[ $EUID -eq 0 ]]; then
	stage "verifier" scripts/verifier.sh
	stage "demo" demo
else
	skip "verifier" "it needs root"
	skip "demo" "it needs root"
fi
stage "fuzz the parsers" scripts/fuzz.sh 200000
stage "cargo test" cargo test --locked --no-fail-fast
[[ $EUID -eq 0 ]] || skip "the tests that need root" "see above"

stage "clean work tree" test "$before" = "$(git status --porcelain)"

echo
if [[ ${#failed[@]} -gt 0 ]]; then
	printf 'FAILED:'
	printf ' [%s]' "${failed[@]}"
	echo
	exit 1
fi
if [[ ${#skipped[@]} -gt 0 ]]; then
	printf 'PASSED, except what was skipped:'
	printf ' [%s]' "${skipped[@]}"
	echo
else
	echo "PASSED: everything"
fi
