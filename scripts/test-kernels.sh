#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
# Runs the tests that need a kernel in Debian's kernels 6.1 (filters of clsact)
# and 6.12 (tcx), each in a virtual machine that qemu emulates, so that it takes
# neither KVM nor root. The machine's root is this one's, read-only under an
# overlay; nothing that a test does there is kept.
#
#   scripts/test-kernels.sh [KERNEL]... [-- TARGET...]
#
# runs all kernels, or those named (6.1, 6.12); verifier and workers, or what is named as
# `cargo test --test` does: datapath, lifecycle and e2e take 12, 9 and 40 minutes a
# kernel. Kernels are fetched once, into target/kernels/; remove that to fetch the
# newest ones. What the tests print is there too.
#
# The numbers of random operations are as scripts/test.sh documents them, smaller.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/need.sh

# Where Debian has them: the suite of a kernel.
declare -A suites=([6.1]=bookworm [6.12]=bookworm-backports)
# A machine emulated is some twenty times slower: what is drawn at random is less.
export BMC_FUZZ_RUNS=${BMC_FUZZ_RUNS-3000}
export BMC_E2E_GETS=${BMC_E2E_GETS-2000}
export BMC_E2E_LIFE=${BMC_E2E_LIFE-20}
export BMC_STRESS_OPS=${BMC_STRESS_OPS-4000}
export BMC_TRANSPARENT_COMMANDS=${BMC_TRANSPARENT_COMMANDS-1000}
export BMC_KILLS=${BMC_KILLS-2}
# Of each target at most, in seconds.
limit=3600

root=$PWD
kernels=$root/target/kernels

die() {
	echo "test-kernels: $*" >&2
	exit 1
}

# --- inside the machine: this script is its init, and ends with it -------------

# inside <results>: runs what <results>/targets lists, a name and a program each.
inside() {
	local out=$1 name program start status
	mount -t tmpfs tmpfs /run
	mount -t bpf bpf /sys/fs/bpf
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	ip link set lo up
	ulimit -n 65536
	source "$out/environment"
	while read -r name program; do
		start=$SECONDS status=0
		timeout --kill-after=10 "$limit" "$program" >"$out/$name.log" 2>&1 </dev/null || status=$?
		echo "$name $status $((SECONDS - start))" >>"$out/done"
	done <"$out/targets"
	busybox poweroff -f
}

if [[ ${1-} == --inside ]]; then
	inside "$2"
fi

# --- outside -------------------------------------------------------------------

# fetch <kernel>: Debian's package of it, unpacked into target/kernels/<kernel>/.
fetch() {
	local kernel=$1 at=$kernels/$1 mirror package
	[[ ! -e $at/initrd ]] || return 0
	rm -rf "$at"
	mkdir -p "$at/apt/lists/partial" "$at/apt/archives/partial"
	# With lists of its own, from the mirror that the others come from.
	# shellcheck disable=SC2016
	mirror=$(apt-get indextargets --format '$(REPO_URI)' \
		'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | sort -u | head -n 1)
	[[ -n $mirror ]] || die "apt knows no Debian mirror"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
		"$mirror ${suites[$kernel]} main" >"$at/apt/sources.list"
	local apt=(-qq -o APT::Sandbox::User="$(id -un)" -o Dir::Etc::SourceList="$at/apt/sources.list"
		-o Dir::Etc::SourceParts=- -o Dir::State::Lists="$at/apt/lists" -o Dir::Cache="$at/apt")
	apt-get "${apt[@]}" update
	package=$(apt-cache "${apt[@]}" depends linux-image-amd64 |
		sed -n "s/.*Depends: \(linux-image-${kernel//./\\.}\..*\)/\1/p" | head -n 1)
	[[ -n $package ]] || die "${suites[$kernel]} has no linux-image $kernel"
	echo "fetching $package" >&2
	(cd "$at/apt" && apt-get "${apt[@]}" download "$package")
	dpkg-deb --fsys-tarfile "$at"/apt/linux-image-*.deb |
		tar -x -C "$at" --exclude ./usr ./boot ./lib
	mv "$at"/boot/vmlinuz-* "$at/vmlinuz"
	rm -r "$at/apt" "$at/boot"
	make_initrd "$at"
}

# make_initrd <directory>: what mounts this machine's root, and goes on there.
make_initrd() {
	local at=$1 release tree=$1/initrd.tree module kind number=100
	release=$(basename "$at"/lib/modules/*)
	/sbin/depmod -b "$at" "$release"
	mkdir -p "$tree"/{bin,modules,host,results,over,root}
	cp "$(command -v busybox)" "$tree/bin/"
	while read -r kind module; do
		[[ $kind == insmod ]] || continue
		number=$((number + 1))
		case $module in
			*.xz) xz -dc "$module" ;;
			*) cat "$module" ;;
		esac >"$tree/modules/$number.ko"
	done < <(/sbin/modprobe -d "$at" -S "$release" -a --show-depends \
		virtio_pci 9pnet_virtio 9p overlay | awk '!seen[$0]++')
	cat >"$tree/init" <<-'INIT'
		#!/bin/busybox sh
		set -e
		script=$1 results=$2 modules=$3
		export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
		for module in /modules/*; do busybox insmod "$module"; done
		nine=trans=virtio,version=9p2000.L,msize=524288
		busybox mount -t 9p -o "ro,cache=loose,$nine" host /host
		busybox mount -t tmpfs tmpfs /over
		busybox mkdir /over/upper /over/work
		busybox mount -t overlay \
			-o lowerdir=/host,upperdir=/over/upper,workdir=/over/work overlay /root
		busybox mount -t 9p -o "$nine" results "/root$results"
		busybox mkdir -p /root/lib/modules
		busybox mount --bind "/root$modules" /root/lib/modules
		busybox mount -t proc proc /root/proc
		busybox mount -t sysfs sysfs /root/sys
		busybox mount -t devtmpfs devtmpfs /root/dev
		exec busybox switch_root /root "$script" --inside "$results"
	INIT
	chmod +x "$tree/init"
	(cd "$tree" && find . | cpio --quiet -o -H newc | gzip) >"$at/initrd.new"
	rm -r "$tree"
	mv "$at/initrd.new" "$at/initrd"
}

# build <target>...: the test binaries, once, into $kernels/targets: the name of each
# and where it is. The verifier's are those of every clang; all else has the newest's.
build() {
	local clang target version
	: >"$kernels/targets"
	for target in "$@"; do
		[[ $target == verifier ]] || continue
		for version in 14 16 19; do
			clang=$(command -v "clang-$version") || continue
			cp "$(BMC_CLANG=$clang binary verifier)" "$kernels/verifier-clang-$version"
			echo "verifier-clang-$version $kernels/verifier-clang-$version"
		done >>"$kernels/targets"
	done
	for target in "$@"; do
		[[ $target == verifier ]] || echo "$target $(binary "$target")"
	done >>"$kernels/targets"
}

# binary <target>: builds it; where it is.
binary() {
	cargo test --locked --no-run --message-format=json --test "$1" |
		sed -n 's/.*"kind":\["test"\].*"executable":"\([^"]*\)".*/\1/p'
}

# boot <kernel>: runs the targets in it, and waits for its end.
boot() {
	local at=$kernels/$1 out=$kernels/$1/results
	rm -rf "$out"
	mkdir "$out"
	cp "$kernels/targets" "$out/"
	export -p | grep ' BMC_' >"$out/environment"
	qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 4G -nodefaults \
		-display none -no-reboot -serial "file:$out/console" \
		-virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
		-virtfs "local,path=$out,mount_tag=results,security_model=none" \
		-kernel "$at/vmlinuz" -initrd "$at/initrd" -append "console=ttyS0 loglevel=4 panic=-1 \
			mitigations=off -- $root/scripts/test-kernels.sh $out $at/lib/modules"
}

# report <kernel>: a line of the table for each target; fails if one has failed.
report() {
	local out=$kernels/$1/results name status seconds log verdict=0
	while read -r name _; do
		log=$out/$name.log
		read -r _ status seconds < <(grep "^$name " "$out/done" || echo "$name - -")
		printf '%-6s %-20s %6s %6s %7s %5s  %s\n' "$1" "$name" \
			"$(tally passed "$log")" "$(tally failed "$log")" \
			"$(grep -c '^skipped' "$log" || true)" "$seconds" \
			"$(case $status in 0) ;; 124) echo "too slow" ;; -) echo "not reached" ;; *) echo FAILED ;; esac)"
		[[ $status == 0 ]] || verdict=1
	done <"$out/targets"
	return "$verdict"
}

# tally <passed|failed> <log>
tally() {
	local found
	found=$(sed -n "s/^test result: .* \([0-9]*\) $1.*/\1/p" "$2" 2>/dev/null)
	echo "${found:--}"
}

chosen=()
targets=()
while [[ $# -gt 0 ]]; do
	case $1 in
	--)
		targets=("${@:2}")
		break
		;;
	*)
		[[ -n ${suites[$1]-} ]] || die "no such kernel: $1; there are: ${!suites[*]}"
		chosen+=("$1")
		;;
	esac
	shift
done
[[ ${#chosen[@]} -gt 0 ]] || chosen=(6.1 6.12)
[[ ${#targets[@]} -gt 0 ]] || targets=(verifier workers)

need "${build_needs[@]}" "${network_needs[@]}" clang-16 clang-14 \
	qemu-system-x86 busybox-static kmod cpio xz-utils debian-archive-keyring
mkdir -p "$kernels"
for kernel in "${chosen[@]}"; do
	fetch "$kernel"
done
build "${targets[@]}"
failed=()
for kernel in "${chosen[@]}"; do
	boot "$kernel"
done
printf '%-6s %-20s %6s %6s %7s %5s\n' kernel target passed failed skipped "s"
for kernel in "${chosen[@]}"; do
	report "$kernel" || failed+=("$kernel")
done
if [[ ${#failed[@]} -gt 0 ]]; then
	echo "FAILED: ${failed[*]}; what the tests said is in $kernels/*/results"
	exit 1
fi
echo "PASSED: ${chosen[*]}"
