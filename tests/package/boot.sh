#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
# boot.sh <name> <directory>: boots this machine's own systemd in namespaces of
# its own, on a copy of its root that is gone afterwards, with <directory> as
# /packages. The network is the caller's. Ends with the systemd.
set -euo pipefail

if [[ $1 != --inside ]]; then
	work=$(mktemp -d)
	mkdir "$work/cgroup" "$work/machine"
	# systemd must find a control group that it may take for the root.
	setpriv --pdeathsig KILL unshare --mount --propagation private bash -c '
		set -e
		mount -t cgroup2 cgroup2 "$1/cgroup"
		mkdir "$1/cgroup/$2"
		(
			echo "$BASHPID" >"$1/cgroup/$2/cgroup.procs"
			exec setpriv --pdeathsig KILL unshare --mount --pid --ipc --uts --cgroup --fork \
				--kill-child "$0" --inside "$1/machine" "$3"
		) || true
		sleep 0.1
		find "$1/cgroup/$2" -depth -type d -exec rmdir {} +' "$0" "$work" "$1" "$2"
	rm -r "$work"
	exit
fi

machine=$2
packages=$3
mount -t tmpfs tmpfs "$machine"
root=$machine/root
mkdir "$machine/upper" "$machine/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$machine/upper,workdir=$machine/work" "$root"
mount -t proc proc "$root/proc"
mount --bind -o ro /proc/sys "$root/proc/sys"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t bpf -o mode=0700 bpf "$root/sys/fs/bpf"
for directory in run tmp dev; do
	mount -t tmpfs -o mode=0755 tmpfs "$root/$directory"
done
for device in null zero full random urandom tty; do
	touch "$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/packages" "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
cp "$packages"/* "$root/packages"
# What would change more than this copy of the machine.
mkdir -p "$root/run/systemd/system"
for unit in sysctl binfmt modules-load remount-fs tmpfiles-setup-dev udevd udev-trigger \
	udevd-control.socket udevd-kernel.socket random-seed timesyncd networkd; do
	[[ $unit == *.socket ]] || unit+=.service
	ln -s /dev/null "$root/run/systemd/system/systemd-$unit"
done
ln -s /dev/null "$root/run/systemd/system/proc-sys-fs-binfmt_misc.automount"
cd "$root"
pivot_root . mnt
umount --lazy /mnt
exec env -i container=bmc PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --unit=basic.target --log-target=journal --show-status=no
