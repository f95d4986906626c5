#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
# Builds the Debian package, with what is in scripts/deb, and prints its path.
#
#   package.sh [VERSION]    VERSION instead of Cargo.toml's, as in 0.1.0-2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/need.sh

need "${build_needs[@]}" dpkg-dev
if ! cargo deb --version >/dev/null 2>&1; then
	[[ -z ${BMC_NO_INSTALL-} ]] || {
		echo "package: cargo-deb is not installed" >&2
		exit 1
	}
	cargo install --quiet --locked --version "^3" cargo-deb >&2
fi
cargo build --release --locked --quiet

release=${CARGO_TARGET_DIR:-target}/release
bmc=$release/bmc
rm -rf "$release/package"
mkdir -p "$release/package/man"
"$bmc" man >"$release/package/man/bmc.1"
for command in $("$bmc" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p'); do
	"$bmc" man "$command" >"$release/package/man/bmc-$command.1"
done
for shell in bash zsh fish; do
	"$bmc" completions "$shell" >"$release/package/$shell"
done
gzip --best --no-name "$release"/package/man/*
cargo deb --no-build --quiet --locked ${1:+--deb-version "$1"}
