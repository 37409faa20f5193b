#!/bin/sh
# The whole way on data that comes with scikit-learn: nothing is downloaded.
set -eu
out=artifacts/demo
rm -rf $out

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

run featx extract digits: --backbone tiny -o $out/features.h5
run featx train-head $out/features.h5 -o $out/head.safetensors
run featx export $out/head.safetensors --onnx $out/model.onnx
python tools/digit_images.py $out/features.h5 $out/images
run featx predict $out/model.onnx $out/images

cat <<END

Made in $out:
  features.h5        what the backbone saw in each image, extracted once
  head.safetensors   the linear head, trained in seconds
  model.onnx         preprocessing + backbone + head in one file, proven on real images

Try next:
  . .venv/bin/activate
  featx info $out/model.onnx
  featx extract your-photos/ && featx train-head && featx export --onnx
END
