#!/usr/bin/env bash
# All of nano's training, with one command: benchmarks/reproduce_nano.sh METER PHOTOGRAPHS NYU OUT
#   METER        a clone of github.com/lorenzopapa5/METER
#   PHOTOGRAPHS  a folder of pictures of rooms
#   NYU          a folder with train and test, each with rgb/NAME.jpg and depth/NAME.png (16-bit millimetres)
#   OUT          a new folder for everything that comes of it
set -euo pipefail
[ $# -eq 4 ] || { sed -n '2,6s/^# //p' "$0"; exit 2; }
meter=$1 photographs=$2 nyu=$3 out=$4
here=$(cd "$(dirname "$0")" && pwd)
mkdir "$out"

python "$here/peers/meter.py" "$meter" label "$out/labelled" "$photographs"
mde train --preset nano --recipe "$here/nano_first_stage.toml" --root "$out/labelled" \
    --cache-features "$out/cache" --copies 1 -o "$out/start.safetensors"
mde train --preset nano --recipe nano --data nyu --root "$nyu/train" --start-from "$out/start.safetensors" \
    --validation "$nyu/test" --validate-every 10 -o "$out/nano.safetensors"
mde export "$out/nano.safetensors" --fp32 --target cpu -o "$out/nano.onnx"
mde export "$out/nano.safetensors" --fp16 --target cpu -o "$out/nano.fp16.onnx"
