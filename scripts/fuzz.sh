#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
# Fuzzes the parsers of bpf/ natively, with clang's libFuzzer and sanitizers:
# what they understand must be what memcached does (tests/fuzz/proto.c). An
# argument is the number of inputs (1000000); a thorough run takes 10000000.
#
#   BMC_TEST_SEED=N     seed of the inputs (1)
#   BMC_CLANG=PATH      the clang (clang-19)
#
# An input that fails is left in the directory that is printed; run it again with
# the program there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/need.sh

need clang-19 libclang-rt-19-dev
runs=${1-1000000}
seed=${BMC_TEST_SEED-1}
work=$(mktemp -d)
echo "in $work, seed $seed"

"${BMC_CLANG-clang-19}" -g -O2 -Wall -Wno-unused-function \
	-fsanitize=fuzzer,address,undefined -fno-sanitize=alignment \
	-fno-sanitize-recover=all -I bpf -I vmlinux -I tests/fuzz tests/fuzz/proto.c -o "$work/proto"

# What the log says of a failure; it has not all of these lines.
failed() {
	set +e
	grep -E '^Running' "$work/log" | tail -n 1
	grep -a -A 30 -m 1 -E 'instead of|not so|==ERROR|runtime error' "$work/log"
	grep -a -E 'Test unit|Base64' "$work/log"
	exit 1
}

mkdir "$work/corpus" "$work/known"
into=known
number=0
while IFS= read -r line; do
	case $line in
	"# Broken"*) into=corpus ;;
	[cCrR]" "*)
		printf -v name '%s/%02d' "$work/$into" $((number += 1))
		# The second byte (proto.c): as it is; 8 times, and cut up.
		printf "${line:0:1}\0${line:2}" >"$name"
		printf "${line:0:1}\x2b${line:2}" >"$name-long"
		;;
	esac
done <tests/fuzz/seeds.txt

# Otherwise a parser that understands nothing would pass.
BMC_FUZZ_ALL_KNOWN=1 "$work/proto" "$work"/known/* >"$work/log" 2>&1 || failed
mv "$work"/known/* "$work/corpus"

"$work/proto" -runs="$runs" -seed="$seed" -max_len=1024 -print_final_stats=1 \
	-artifact_prefix="$work/" "$work/corpus" >"$work/log" 2>&1 || failed
grep '^Done' "$work/log"
rm -r "$work"
