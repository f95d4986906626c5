# SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
# Sourced by the other scripts.
# shellcheck shell=bash

# need <package>...: installs those Debian packages that are missing. Without
# root or apt-get it only says so. BMC_NO_INSTALL=1 installs nothing.
need() {
	local missing=() package
	for package in "$@"; do
		[[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
			missing+=("$package")
	done
	[[ ${#missing[@]} -gt 0 ]] || return 0
	if [[ $EUID -ne 0 || -n ${BMC_NO_INSTALL-} ]] || ! command -v apt-get >/dev/null; then
		echo "not installed: ${missing[*]}" >&2
		return 0
	fi
	echo "installing ${missing[*]}" >&2
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq >&2
	# One by one: a package that a release lacks must not keep the others out.
	for package in "${missing[@]}"; do
		apt-get install -y -qq --no-install-recommends "$package" >/dev/null ||
			echo "not available: $package" >&2
	done
}

# What it takes to build, and to run in network namespaces.
build_needs=(gcc libc6-dev make pkg-config libelf-dev zlib1g-dev clang-19)
network_needs=(memcached iproute2 ethtool bpftool util-linux)
