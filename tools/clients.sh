#!/bin/sh
# Install what tests/clients runs exported files with under Node. Where that cannot be, say so and go
# on: those tests skip.
set -eu
cd "$(dirname "$0")/../tests/clients"

skip() {
    echo "The tests of onnxruntime-web will skip: $1." >&2
    exit 0
}

if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || skip "install Node and npm to run them"
    echo "Installing Node and npm"
    { apt-get update && apt-get install --yes --no-install-recommends nodejs npm; } >/dev/null 2>&1 ||
        skip "apt-get could not install Node and npm"
fi
npm install --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error >/dev/null ||
    skip "npm could not install what package.json names"
touch node_modules/.ready
