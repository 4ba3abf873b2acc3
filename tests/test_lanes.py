"""Timed words become lane tokens: examples worked out by hand. One letter is one token; a unit is 160 ms, 2 slots."""

import dataclasses

import numpy as np

from wan_streamer.codecs.text import END, HOLD, SILENCE
from wan_streamer.config import TextConfig
from wan_streamer.data.lanes import conversation_lanes, fill_lane

HI_JOE = [{"text": "hi", "start": 0.50, "end": 0.60}, {"text": "Joe", "start": 0.70, "end": 0.95}]
SPEECH = [{"start": 0.48, "end": 1.00}]


class Letters:
    """Stands in for the tokenizer."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def show(lane: np.ndarray) -> str:
    """One character per slot: . silence, - hold, | end of turn; units are separated by blanks."""
    marks = {SILENCE: ".", HOLD: "-", END: "|", ord(" "): "_"}
    return " ".join("".join(marks.get(int(token), chr(token)) for token in unit) for unit in lane)


def test_response_leads_its_sound() -> None:
    """ "hi" sounds in unit 3, "Joe" in unit 4: with a lead of one unit their tokens begin in units 2 and 3."""
    lane = fill_lane(HI_JOE, SPEECH, 8, 2, Letters(), -1, "start")
    assert show(lane) == ".. .. hi _J oe -- |. .."


def test_transcript_comes_after_the_word_was_heard() -> None:
    """ "hi" ends in unit 3, "Joe" in unit 5: they are written from units 4 and 6 on, then the turn ends."""
    lane = fill_lane(HI_JOE, SPEECH, 10, 2, Letters(), 1, "end")
    assert show(lane) == ".. .. .. .. hi -- _J oe |. .."


def test_no_word_is_lost_when_text_is_slower_than_speech() -> None:
    words = [{"text": "quick", "start": 0.0, "end": 0.1}, {"text": "words", "start": 0.1, "end": 0.2}]
    lane = fill_lane(words, [{"start": 0.0, "end": 0.2}], 9, 2, Letters(), 1, "end")
    assert show(lane) == ".. qu ic k_ wo rd s| .. .."


def test_lead_stops_at_the_first_unit() -> None:
    lane = fill_lane(
        [{"text": "a", "start": 0.05, "end": 0.3}], [{"start": 0.05, "end": 0.3}], 3, 2, Letters(), -1, "start"
    )
    assert show(lane) == "a- |. .."


def test_interrupted_speech_ends_where_it_was_cut() -> None:
    """The user breaks in: "three" (from 1.44 s) is never said, and the turn ends in unit 8, where the sound does."""
    times = (("one", 0.16, 0.30), ("two", 0.80, 0.95), ("three", 1.44, 1.70))
    words = [{"text": text, "start": start, "end": end} for text, start, end in times]
    lane = fill_lane(words, [{"start": 0.16, "end": 1.30}], 11, 2, Letters(), -1, "start")
    assert show(lane) == "on e- -- -- _t wo -- -- |. .. .."


def test_turns_that_touch_keep_their_ends() -> None:
    words = [*HI_JOE, {"text": "so", "start": 1.02, "end": 1.1}]
    speech = [*SPEECH, {"start": 1.02, "end": 1.1}]
    assert show(fill_lane(words, speech, 9, 2, Letters(), -1, "start")) == ".. .. hi _J oe -- |s o| .."


def test_recording_that_ends_in_mid_word() -> None:
    assert show(fill_lane(HI_JOE, SPEECH, 7, 2, Letters(), 1, "end")) == ".. .. .. .. hi -- _|"
    assert show(fill_lane(HI_JOE, SPEECH, 4, 2, Letters(), 1, "end")) == ".. .. .. .."


def test_speech_without_words_is_silence() -> None:
    assert show(fill_lane([], [{"start": 0.0, "end": 0.3}], 3, 2, Letters(), 1, "end")) == ".. .. .."


LABELS = {
    "units": 10,
    "words": {"user": HI_JOE, "agent": [{"text": "yo", "start": 1.15, "end": 1.30}]},
    "events": [
        {"type": "speech", "side": "user", "start": 0.48, "end": 1.00},
        {"type": "nod", "side": "user", "start": 0.0, "end": 1.60},
        {"type": "speech", "side": "agent", "start": 1.12, "end": 1.30},
    ],
}
TEXT = TextConfig(lead_units=2)


def test_conversation() -> None:
    text, lanes = conversation_lanes(LABELS, TEXT, Letters())
    assert show(text) == " ".join([".."] * 10)
    assert show(lanes[..., 0]) == ".. .. .. .. .. yo -- -- |. .."
    assert show(lanes[..., 1]) == ".. .. .. .. hi -- _J oe |. .."


def test_words_are_written_down_later_where_the_model_listens_longer() -> None:
    _, lanes = conversation_lanes(LABELS, dataclasses.replace(TEXT, heard_units=2), Letters())
    assert show(lanes[..., 1]) == ".. .. .. .. .. hi -- _J oe |."


def test_typed_conversation() -> None:
    """What would be heard is typed instead: nothing is transcribed and the gaps between words are empty."""
    text, lanes = conversation_lanes(LABELS, TEXT, Letters(), typed=True)
    assert show(text) == ".. .. .. .. hi .. _J oe |. .."
    assert show(lanes[..., 0]) == ".. .. .. .. .. yo -- -- |. .."
    assert show(lanes[..., 1]) == " ".join([".."] * 10)
