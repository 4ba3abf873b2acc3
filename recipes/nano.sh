#!/usr/bin/env bash
# From nothing to a packaged nano: simulate, encode, the three stages, the quick evaluation.
#
#   recipes/nano.sh [WORK]          everything goes into WORK (default runs/nano-recipe)
#
# Every step leaves WORK/done/STEP and is not repeated; a step that was interrupted goes on where it stopped. So after
# Ctrl-C, a crash or a reboot, start the same command again. Sizes come from the environment:
#
#   HOURS=2 TASK_HOURS=1            hours of conversations and of tasks to simulate
#   SHOWN_HOURS=1 SPOKEN_HOURS=2 ASKED_HOURS=4    with PRESET=nano-ears, of conversations about what is seen, without sound, and
#                                   of some in which only the agent or only the user is heard: cheap examples of what to say
#   FILM_EVERY=1                    conversations of which one has the agent's film; the others teach its words and voice
#   CODECS=DIR                      trained codecs (default: those of the built-in nano); CODECS=train trains them
#   START=AGENT                     begin from this agent (a folder or a built-in one) instead of from nothing
#   PRESET=nano                     size of the model; nano-ears has ears and eyes that are trained before it
#   EARS=DIR EYES=DIR               such ears and eyes that are there already, as 'python scripts/senses_of.py nano DIR' leaves them
#   TEXTS=DIR PEOPLE=DIR EXTRA=DIR  else ears are trained on what voices say and on recorded people (docs/hearing.md);
#                                   the model, too, writes down some of that speech
#   SPEECH_HOURS=5                  of the fast natural voices in it
#   EARS_STEPS EYES_STEPS READER_STEPS VOICE_STEPS PRETRAIN_STEPS DUPLEX_STEPS CONSISTENCY_STEPS MATCHING_STEPS WORDING_STEPS SIGHT_STEPS FLOOR_STEPS    0 skips the stage
#   NATURAL=DIR                     voices of Kokoro beside the others (scripts/fetch_kokoro.sh)
#   CLIP_UNITS=24                   units of 160 ms in a clip of conversation; models with longer windows need longer clips
#   DRAW_EVERY=1                    steps of conversation of which one learns pictures, and the others words and voice
#   DEVICE=auto                     cpu, cuda or cuda:1
#   TRAIN_FLAGS=--compile           passed to every stage that trains the model
#   DISTILL_FLAGS=                  passed to distillation, such as --grid 8
#   EVAL_FLAGS=                     passed to the evaluation, such as --limit 4
set -euo pipefail
cd "$(dirname "$0")/.."

WORK=${1:-runs/nano-recipe}
HOURS=${HOURS:-2} TASK_HOURS=${TASK_HOURS:-1} FILM_EVERY=${FILM_EVERY:-1}
CODECS=${CODECS:-wan_streamer/checkpoints/nano}
PRETRAIN_STEPS=${PRETRAIN_STEPS:-2000} DUPLEX_STEPS=${DUPLEX_STEPS:-4000}
CONSISTENCY_STEPS=${CONSISTENCY_STEPS:-1500} MATCHING_STEPS=${MATCHING_STEPS:-0}
EARS_STEPS=${EARS_STEPS:-2000} EYES_STEPS=${EYES_STEPS:-2000} READER_STEPS=${READER_STEPS:-2400} VOICE_STEPS=${VOICE_STEPS:-8000} WORDING_STEPS=${WORDING_STEPS:-1600} SIGHT_STEPS=${SIGHT_STEPS:-1500} FLOOR_STEPS=${FLOOR_STEPS:-2000} PRESET=${PRESET:-nano} EARS=${EARS-} EYES=${EYES-}
CLIP=(--clip-units "${CLIP_UNITS:-24}")
DEVICE=${DEVICE:-auto} TRAIN_FLAGS=${TRAIN_FLAGS-} DISTILL_FLAGS=${DISTILL_FLAGS-}
KOKORO=(${NATURAL:+--natural "$NATURAL"})
PATH=$PWD/.venv/bin:$PATH
mkdir -p "$WORK/done"

step() { # NAME COMMAND...: run it once
    local name=$1
    shift
    [ -e "$WORK/done/$name" ] && return
    echo "== $name"
    "$@"
    touch "$WORK/done/$name"
}

run() { # STAGE OUT OPTIONS...: start the stage, or go on with it
    local stage=$1 out=$2 resume=()
    shift 2
    if [ -e "$out/trainer.safetensors" ] || [ -e "$out/trainer.json" ]; then resume=(--resume); fi
    wan-streamer train "$stage" --out "$out" "$@" "${resume[@]}"
}

train() { # STAGE OUT OPTIONS...: the same for a stage of the model
    # shellcheck disable=SC2086  (TRAIN_FLAGS are words)
    run "$@" --device "$DEVICE" $TRAIN_FLAGS
}

# ---- codecs

if [ "$CODECS" = train ]; then
    step codec-data wan-streamer simulate "$WORK/codec-data" --codecs --seed 1
    step codec-audio run codec "$WORK/codec-audio" --codec audio --data "$WORK/codec-data"
    step codec-video run codec "$WORK/codec-video" --codec video --data "$WORK/codec-data"
    mkdir -p "$WORK/codecs"
    step codecs cp "$WORK"/codec-audio/audio_vae.* "$WORK"/codec-video/video_vae.* "$WORK/codecs/"
    CODECS=$WORK/codecs
fi

# ---- ears and eyes, which stay as they are in the model, and so hear and see conversations once

SENSES=(--preset "$PRESET") PERCEIVED=()
if [ "$PRESET" = nano-ears ]; then
    if [ -n "${TEXTS-}" ]; then
        step corpus wan-streamer corpus "$WORK/corpus" --texts "$TEXTS" ${PEOPLE:+--people "$PEOPLE"} \
            ${EXTRA:+--extra "$EXTRA"} --hours "${SPEECH_HOURS:-5}" "${KOKORO[@]}"
        SENSES+=(--heard "$WORK/corpus")
        if [ -z "$EARS" ] && [ "$EARS_STEPS" -gt 0 ]; then
            step ears run ears "$WORK/ears" --data "$WORK/corpus" --steps "$EARS_STEPS" --device "$DEVICE"
            EARS=$WORK/ears/ears
        fi
    fi
    if [ -z "$EYES" ] && [ "$EYES_STEPS" -gt 0 ]; then
        step eyes run eyes "$WORK/eyes" --steps "$EYES_STEPS" --device "$DEVICE"
        EYES=$WORK/eyes/eyes
    fi
    PERCEIVED=(${EARS:+--ears "$EARS"} ${EYES:+--eyes "$EYES"})
    SENSES+=("${PERCEIVED[@]}")
fi

# ---- data

tenth() { awk "BEGIN { print $1 / 10 }"; }
simulate() { # OUT OPTIONS...: what training reads, encoded at once; no films are kept
    local device=$DEVICE
    [ "$device" = auto ] && device=cpu
    wan-streamer simulate "$@" --seed 1 --encode "$CODECS" --preset "$PRESET" --device "$device" "${KOKORO[@]}"
}
step talk-train simulate "$WORK/talk/train" --hours "$HOURS" --film-every "$FILM_EVERY" "${PERCEIVED[@]}"
step talk-valid simulate "$WORK/talk/valid" --hours "$(tenth "$HOURS")" --split valid
CHEAP=()
if [ "$PRESET" = nano-ears ]; then
    SHOWN_HOURS=${SHOWN_HOURS:-1} SPOKEN_HOURS=${SPOKEN_HOURS:-10} ASKED_HOURS=${ASKED_HOURS:-4}
    step shown-train simulate "$WORK/shown/train" --shown --hours "$SHOWN_HOURS" "${PERCEIVED[@]}"
    step shown-valid simulate "$WORK/shown/valid" --shown --hours "$(tenth "$SHOWN_HOURS")" --split valid "${PERCEIVED[@]}"
    step spoken-train simulate "$WORK/spoken/train" --spoken --hours "$SPOKEN_HOURS"
    step spoken-valid simulate "$WORK/spoken/valid" --spoken --hours "$(tenth "$SPOKEN_HOURS")" --split valid
    step asked-train simulate "$WORK/asked/train" --asked --hours "$ASKED_HOURS" ${EARS:+--ears "$EARS"}
    step asked-valid simulate "$WORK/asked/valid" --asked --hours "$(tenth "$ASKED_HOURS")" --split valid ${EARS:+--ears "$EARS"}
    CHEAP+=(--written --shown "$WORK/shown" --spoken "$WORK/spoken" --asked "$WORK/asked")
fi
step task-train simulate "$WORK/task/train" --tasks --hours "$TASK_HOURS" "${PERCEIVED[@]}"
step task-valid simulate "$WORK/task/valid" --tasks --hours "$(tenth "$TASK_HOURS")" --split valid

# ---- stages

AGENT=${START-}
if [ "$PRETRAIN_STEPS" -gt 0 ]; then
    step pretrain train pretrain "$WORK/pretrain" --data "$WORK/task" --talks "$WORK/talk" \
        --steps "$PRETRAIN_STEPS" "${SENSES[@]}" ${AGENT:+--from "$AGENT"}
    AGENT=$WORK/pretrain
fi
if [ "$PRESET" = nano-ears ] && [ -n "${TEXTS-}" ] && [ -n "$AGENT" ] && [ "$READER_STEPS" -gt 0 ]; then
    step reader run reader "$WORK/reader" --data "$WORK/corpus" --talks "$WORK/asked" --talks "$WORK/talk" --from "$AGENT" \
        --steps "$READER_STEPS" --device "$DEVICE"
    AGENT=$WORK/reader/agent
fi
if [ "$PRESET" = nano-ears ] && [ -n "$AGENT" ] && [ "$VOICE_STEPS" -gt 0 ]; then
    step voice run voice "$WORK/voice" --data "$WORK/spoken" --from "$AGENT" --steps "$VOICE_STEPS" --device "$DEVICE"
    AGENT=$WORK/voice/agent
fi
step duplex train duplex "$WORK/duplex" --data "$WORK/talk" --tasks "$WORK/task" \
    --steps "$DUPLEX_STEPS" "${CLIP[@]}" --draw-every "${DRAW_EVERY:-1}" "${SENSES[@]}" "${CHEAP[@]}" ${AGENT:+--from "$AGENT"}
AGENT=$WORK/duplex
# shellcheck disable=SC2086
if [ "$CONSISTENCY_STEPS" -gt 0 ]; then
    step consistency train distill "$WORK/consistency" --method consistency --data "$WORK/talk" \
        --teacher "$WORK/duplex" --steps "$CONSISTENCY_STEPS" "${CLIP[@]}" $DISTILL_FLAGS
    AGENT=$WORK/consistency
fi
# shellcheck disable=SC2086
if [ "$MATCHING_STEPS" -gt 0 ]; then
    step matching train distill "$WORK/matching" --method matching --data "$WORK/talk" \
        --teacher "$WORK/duplex" --from "$AGENT" --steps "$MATCHING_STEPS" "${CLIP[@]}" $DISTILL_FLAGS
    AGENT=$WORK/matching
fi

if [ "$PRESET" = nano-ears ] && [ "$WORDING_STEPS" -gt 0 ]; then
    step wording run wording "$WORK/wording" --from "$AGENT" --steps "$WORDING_STEPS" --device "$DEVICE"
    AGENT=$WORK/wording/agent
    step sight run sight "$WORK/sight" --from "$AGENT" --steps "$SIGHT_STEPS" --device "$DEVICE"
    AGENT=$WORK/sight/agent
fi
if [ "$PRESET" = nano-ears ] && [ "$FLOOR_STEPS" -gt 0 ]; then
    step floor run floor "$WORK/floor" --data "$WORK/asked" --data "$WORK/talk" --shown "$WORK/shown" --from "$AGENT" \
        --steps "$FLOOR_STEPS" --device "$DEVICE"
    AGENT=$WORK/floor/agent
fi

# ---- package and measure

step package python scripts/pack_agent.py "$AGENT" "$WORK/nano"
# shellcheck disable=SC2086
step eval wan-streamer eval --checkpoint "$WORK/nano" --json "$WORK/eval.json" --html "$WORK/eval.html" ${EVAL_FLAGS-}
echo "the agent is in $WORK/nano, its evaluation in $WORK/eval.html; try: wan-streamer serve --checkpoint $WORK/nano"
