#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
# Builds the BPF programs with every supported clang that is installed, loads
# them into the running kernel, and compares the number of instructions that the
# verifier walks with tests/verifier.txt. Needs root.
#
#   --update   writes tests/verifier.txt instead
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${1-} == --update ]]; then
	export BMC_UPDATE_VERIFIER=1
fi
found=
for version in 14 16 19; do
	clang=$(command -v "clang-$version") || {
		echo "clang-$version: not installed, skipped"
		continue
	}
	found=1
	BMC_CLANG=$clang cargo test --quiet --locked --test verifier -- --nocapture |
		grep "^clang"
done
[[ -n $found ]] || {
	echo "no supported clang is installed" >&2
	exit 1
}
