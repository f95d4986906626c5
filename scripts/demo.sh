#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
# Shows bmc at work, in two network namespaces of its own: a client in one, an
# unmodified memcached behind bmc in the other. Leaves nothing behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/need.sh

server=bmc-demo-server
client=bmc-demo-client
address=10.94.0.1
memcached=

die() {
	echo "demo: $*" >&2
	exit 1
}

# `ip netns exec` would hide bpffs.
inside() {
	nsenter "--net=/run/netns/$1" -- "${@:2}"
}

bmc() {
	inside "$server" "${CARGO_TARGET_DIR:-target}/release/bmc" --instance demo "$@"
}

# What is left of a demo: its pins and its namespaces.
leftovers() {
	ls -d "/run/netns/$server" "/run/netns/$client" /sys/fs/bpf/bmc/demo 2>/dev/null || true
}

clean_up() {
	trap '' INT TERM HUP # once is enough
	if [[ -e /sys/fs/bpf/bmc/demo && -e /run/netns/$server ]]; then
		bmc detach || true
	fi
	rm -rf /sys/fs/bpf/bmc/demo
	if [[ -n $memcached ]]; then
		kill "$memcached" 2>/dev/null && wait "$memcached" 2>/dev/null || true
		memcached=
	fi
	local namespace
	for namespace in "$server" "$client"; do
		[[ ! -e /run/netns/$namespace ]] || ip netns delete "$namespace"
	done
}

# over_tcp <text>: one command; the lines that memcached answers.
over_tcp() {
	inside "$client" bash -c '
		exec 3<>"/dev/tcp/$0/11211"
		printf "%b\r\n" "$1" >&3
		while read -r line <&3; do
			echo "$line"
			[[ $line == STAT* ]] || break
		done | tr -d "\r"' "$address" "$1"
}

# over_udp <key>: one GET; the reply without memcached's 8-byte frame.
over_udp() {
	inside "$client" bash -c '
		exec 3<>"/dev/udp/$0/11211"
		printf "\0\1\0\0\0\1\0\0get %s\r\n" "$1" >&3
		timeout 2 dd bs=2048 count=1 <&3 2>/dev/null | tail -c +9 | tr -d "\r"' "$address" "$1"
}

gets() { over_tcp stats | sed -n 's/^STAT cmd_get //p'; }
hits() { bmc stats --json | grep -o '"hits": *[0-9]*' | head -n 1 | grep -o '[0-9]*$'; }

# ask <key>: a GET over UDP, and whose counter moved.
ask() {
	local gets_before hits_before reply value who=nobody
	gets_before=$(gets) hits_before=$(hits)
	reply=$(over_udp "$1")
	value=$(sed -n 2p <<<"$reply")
	[[ -n $value ]] || die "no reply"
	if [[ $(gets) -gt $gets_before ]]; then
		who=memcached
	elif [[ $(hits) -gt $hits_before ]]; then
		who="the kernel"
	fi
	printf '   get %-9s %-14s answered by %s\n' "$1" "$value" "$who"
	[[ $who == "${2-$who}" ]] || die "expected $2 to answer"
}

[[ $EUID -eq 0 ]] || die "BPF and network namespaces need root: sudo $0"
exec 9<"$0"
flock --nonblock 9 || die "another demo is running"
need "${build_needs[@]}" "${network_needs[@]}"
cargo build --release --locked --quiet

clean_up
trap - INT TERM HUP
trap clean_up EXIT

echo "1. A client and a server, each in a network namespace, joined by a veth pair."
ip netns add "$server"
ip netns add "$client"
ip link add eth0 netns "$server" type veth peer name eth0 netns "$client"
ip -n "$server" address add "$address/24" dev eth0
ip -n "$client" address add 10.94.0.2/24 dev eth0
for namespace in "$server" "$client"; do
	ip -n "$namespace" link set lo up
	ip -n "$namespace" link set eth0 up
done

echo "2. The server runs $(memcached -V), as it comes from the distribution."
# Not by inside: $! would be a shell's.
nsenter "--net=/run/netns/$server" -- memcached -u nobody -l "$address" -U 11211 9<&- &
memcached=$!
for _ in {1..50}; do
	over_tcp version >/dev/null 2>&1 && break
	sleep 0.1
done

echo "3. bmc attach eth0 --unknown-ttl 60s"
bmc attach eth0 --unknown-ttl 60s

echo "4. The client stores over TCP, asks over UDP, and asks again:"
sleep 1.1 # a write that bmc did not see may be on its way until then
for pair in greeting=hello planet=earth answer=42; do
	value=${pair#*=}
	over_tcp "set ${pair%=*} 0 0 ${#value}\r\n$value" >/dev/null
done
for key in greeting planet answer; do
	ask "$key" memcached
	ask "$key" "the kernel"
done

echo "5. It writes one of them. The next answer is new, and memcached's own:"
over_tcp 'set planet 0 0 4\r\nmars' >/dev/null
ask planet memcached
ask planet "the kernel"

echo "6. bmc stats (those that are not zero):"
bmc stats | sed -n '/ 0$/!s/^/   /p'

echo "7. bmc detach"
programs=$(for pin in rx rx_tc tx flush; do
	bpftool prog show pinned "/sys/fs/bpf/bmc/demo/$pin" | sed -n 's/^\([0-9]*\):.*/\1/p'
done)
[[ -n $programs ]] || die "bmc has no programs"
bmc detach
[[ ! -e /sys/fs/bpf/bmc/demo ]] || die "its pins are left"
clean_up
sleep 0.2 # the kernel frees programs a moment later
for program in $programs; do
	! bpftool prog show id "$program" >/dev/null 2>&1 || die "program $program is left"
done
[[ -z $(leftovers) ]] || die "left behind: $(leftovers)"
echo "   Nothing is left: no program, no pinned file, no namespace."
