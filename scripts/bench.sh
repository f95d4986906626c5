#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
# Prints the numbers that README.md quotes, measured on this machine: what an
# answer of bmc_rx costs, next to a program that only sends the frame back. Needs
# root, and a machine that has nothing else to do. An argument is the number of
# rounds (7).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/need.sh

need "${build_needs[@]}" iproute2
echo "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), Linux $(uname -r)"
cargo bench --locked --quiet --bench hit_cost -- "${1-7}"
