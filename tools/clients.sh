#!/bin/sh
# Install onnxruntime-web: for tests/clients, which runs exported files with it under Node, and for
# the page that runs a model in the browser, which is part of the package. Where that cannot be, say so and go
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
web=../../featx/reporting/web
mkdir -p "$web"
cp node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs "$web/ort.mjs"
cp node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm "$web/ort.wasm"
touch node_modules/.ready
