"""Timed words -> the tokens of a text lane, unit by unit.

Response lane: a word's tokens stand `lead_units` before its sound, so that text leads speech. Transcript lane:
`heard_units` after the word's end. Between the words of an utterance the slots hold HOLD, at its end END, elsewhere
SILENCE.
"""

from collections.abc import Sequence

import numpy as np

from wan_streamer.codecs.text import END, HOLD, SILENCE, TextCodec
from wan_streamer.config import TextConfig
from wan_streamer.units import UNIT_S

HEARD = ("speech", "backchannel", "written")  # events whose words belong to a lane


def fill_lane(
    words: Sequence[dict], speech: Sequence[dict], units: int, slots: int, codec: TextCodec, shift: int, at: str
) -> np.ndarray:
    """Tokens [units, slots] of one lane.

    words   [{"text", "start", "end"}] in seconds;  speech  [{"start", "end"}], the utterances that hold them
    at      which end of a word releases it ("start" or "end"), moved by `shift` units
    """
    lane = np.full((units, slots), SILENCE, np.int64)
    flat = lane.reshape(-1)
    free = 0  # first slot after the last utterance
    for utterance in speech:
        inside = [w for w in words if utterance["start"] - 0.05 <= w["start"] < utterance["end"]]
        first = slot = max(free, (int(inside[0][at] / UNIT_S) + shift) * slots) if inside else len(flat)
        if slot >= len(flat):
            continue
        tokens: dict[int, int] = {}
        for number, word in enumerate(inside):
            slot = max(slot, (int(word[at] / UNIT_S) + shift) * slots)
            for token in codec.encode((" " if number else "") + word["text"]):
                tokens[slot] = token
                slot += 1
        last = min(len(flat) - 1, max(slot, (int(utterance["end"] / UNIT_S) + max(0, shift)) * slots))
        flat[first:last] = HOLD
        for slot, token in tokens.items():
            if slot < last:  # the recording ends before the others
                flat[slot] = token
        flat[last] = END
        free = last + 1
    return lane


def conversation_lanes(
    labels: dict, config: TextConfig, codec: TextCodec, typed: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(user text [units, slots], lanes [units, slots, 2] of response and transcript) of a labelled conversation.

    User text is what the user typed (events of type "typed"). With `typed`, the user's spoken words arrive as text
    too, while they would be spoken, and nothing is heard. Side talk is not written down.
    """
    units, slots, words = labels["units"], config.slots, labels["words"]
    speech = {
        side: [e for e in labels["events"] if e["type"] in HEARD and e["side"] == side] for side in ("user", "agent")
    }
    response = fill_lane(words["agent"], speech["agent"], units, slots, codec, -config.lead_units, "start")
    heard = fill_lane(words["user"], speech["user"], units, slots, codec, config.heard_units, "end")
    messages = [e for e in labels["events"] if e["type"] == "typed"]
    letters = [{"text": e["label"], "start": e["start"], "end": e["end"]} for e in messages]
    user = fill_lane(letters, messages, units, slots, codec, 0, "start")
    if typed:
        user, heard = np.where(user == SILENCE, heard, user), np.full_like(heard, SILENCE)
    return np.where(user == HOLD, SILENCE, user), np.stack([response, heard], axis=-1)
