#!/bin/sh
# Install what tests/clients runs exported files with under Node. Where that cannot be, say so and go
# on: those tests skip.
set -eu
cd "$(dirname "$0")/../tests/clients"

skip() {
    echo "The tests of onnxruntime-web will skip: $1." >&2
    exit 0
}

command -v node >/dev/null && command -v npm >/dev/null ||
    skip "Node or npm is not installed; make system installs both, as root"
npm install --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error >/dev/null ||
    skip "npm could not install what package.json names"
touch node_modules/.ready
