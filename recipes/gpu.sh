#!/usr/bin/env bash
# The recipe on a machine with a GPU that is at hand for minutes at a time, and without a network.
#
#   recipes/gpu.sh WORK [OUT]       go on for LIMIT seconds; the weights that are finished come into OUT
#
# Call it again until it says "done": each call takes the next steps of recipes/nano.sh, whose variables it takes, too. It
# stops them as Ctrl-C does, so nothing is lost but the work since the last conversation, the last shard of tasks or the
# last step of training; what does not stop within 40 seconds, such as a validation on a slow machine, is killed.
#
#   LIMIT=510                       seconds
#   PART=15M                        weights go into OUT in parts of this size: cat model.part* > model.safetensors
#   BATCH=64                        clips of a step
set -euo pipefail
cd "$(dirname "$0")/.."

WORK=${1:-runs/gpu} OUT=${2-}
export DEVICE=${DEVICE:-cuda} PRESET=${PRESET:-nano-ears} TRAIN_FLAGS=${TRAIN_FLAGS---batch ${BATCH:-64}}

status=0
timeout --signal=INT --kill-after=40 "${LIMIT:-510}" recipes/nano.sh "$WORK" || status=$?
case $status in
    0) echo "done: the agent is in $WORK/nano" ;;
    124 | 130 | 137) echo "go on with the same command" ;;
    *) exit "$status" ;;
esac
[ -n "$OUT" ] || exit 0
mkdir -p "$OUT"
for run in ears eyes pretrain reader voice duplex consistency matching wording sight floor nano; do
    [ -d "$WORK/$run" ] || continue
    mkdir -p "$OUT/$run"
    cp "$WORK/$run"/{config.json,log.jsonl,tokenizer.json} "$OUT/$run/" 2>/dev/null || true
    weights=$(find "$WORK/$run" -maxdepth 2 -name model.safetensors | head -1)
    [ -z "$weights" ] || split -b "${PART:-15M}" -d "$weights" "$OUT/$run/model.part"
done
