#!/bin/sh
# Builds the Debian package of this tree. Needs cargo-deb (cargo install cargo-deb --locked) and dpkg-dev.
set -eu
cd "$(dirname "$0")/../../../.."
folder=${CARGO_TARGET_DIR:-target}/dist

cargo build --profile dist --locked --package rbee
# The program writes its own completions and manual pages.
rm -rf "$folder/package"
mkdir -p "$folder/package/man"
for shell in bash zsh fish; do
    "$folder/rbee" completions "$shell" >"$folder/package/rbee.$shell"
done
"$folder/rbee" man "$folder/package/man" >/dev/null
gzip --best --no-name "$folder"/package/man/*.1
cargo deb --no-build --profile dist --package rbee "$@"
