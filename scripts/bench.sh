#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
# Prints, measured on this machine: what an answer of bmc_rx costs, next to a program
# that only sends the frame back; what the programs take for a hit, a miss, a lease and
# a fill; how many requests bmc and memcached answer when they are flooded; whether TCP
# is slower with bmc than without; what share of a mixed load is answered; how soon it
# is when the clients were there first; what memory an entry takes; how well the cache
# chooses what it keeps; and what bmc gains end to end. README.md quotes the first four
# and the last three. Needs root, an hour, and a machine that has nothing else to do.
#
#   bench.sh [ROUNDS]   of the first four, instead of 5, 5, 5 and 2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/need.sh

need "${build_needs[@]}" "${network_needs[@]}"
echo "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), Linux $(uname -r)"
cargo bench --locked --quiet --bench hit_cost -- "$@"
echo
cargo bench --locked --quiet --bench path_cost -- "$@"
echo
cargo bench --locked --quiet --bench peak -- "$@"
echo
cargo bench --locked --quiet --bench tcp -- "$@"
echo
cargo bench --locked --quiet --bench hit_ratio
echo
cargo bench --locked --quiet --bench adoption
echo
cargo bench --locked --quiet --bench density
echo
cargo bench --locked --quiet --bench eviction
echo
cargo run --locked --quiet --release -- bench --seconds 1
