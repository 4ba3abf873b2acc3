"""Recordings are found and paired, transcripts become timed words, cuts fall between words, speech is found."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from wan_streamer.data.recordings.labels import SHORTEST_UNITS, count_cut, plan_episodes
from wan_streamer.data.recordings.prepare import choose_split
from wan_streamer.data.recordings.sources import find_items
from wan_streamer.data.recordings.transcripts import read_speech, read_transcript, share_words
from wan_streamer.data.voice_activity import EnergyMeter, find_speech
from wan_streamer.errors import DataError
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT, UNIT_S


def tree(folder: Path, names: str) -> Path:
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_pairs_in_one_folder_and_in_folders(tmp_path):
    names = "ann.user.mp4 ann.agent.MKV ann.user.json ann.user.srt ann.notes.txt mon/bob/user.webm mon/bob/agent.wav"
    found = find_items(tree(tmp_path, names), skip=tmp_path / "out")
    assert [(item.name, item.kind) for item in found.items] == [("ann", "pair"), ("mon/bob", "pair")]
    ann, bob = found.items
    assert (ann.user.sound, ann.user.picture) == (tmp_path / "ann.user.mp4",) * 2
    assert ann.user.words == (tmp_path / "ann.user.json", tmp_path / "ann.user.srt")
    assert ann.agent.picture == tmp_path / "ann.agent.MKV"
    assert (bob.agent.sound, bob.agent.picture) == (tmp_path / "mon/bob/agent.wav", None)
    assert found.ignored == {".txt": 1}
    assert found.unusable == {}


def test_a_side_may_be_a_film_and_a_sound_file(tmp_path):
    side = find_items(tree(tmp_path, "a.user.mp4 a.user.wav a.agent.mp4")).items[0].user
    assert (side.sound.name, side.picture.name) == ("a.user.wav", "a.user.mp4")


def test_dual_channel_files_and_their_transcripts(tmp_path):
    found = find_items(tree(tmp_path, "talk.mp4 talk.agent.vtt b/call.wav"), user_channel=1, split_picture=True)
    assert [item.name for item in found.items] == ["b/call", "talk"]
    call, talk = found.items
    assert (call.user.channel, call.agent.channel) == (1, 0)
    assert (talk.user.half, talk.agent.half) == (0, 1)
    assert talk.agent.words == (tmp_path / "talk.agent.vtt",)
    assert (call.user.half, call.user.picture) == (None, None)
    assert find_items(tmp_path).items[1].user.picture is None, "one picture of two people is nobody's without the split"


LAYOUTS = [
    "{k}/{s}/0000/0005/{i}.mp4 {k}/{s}/0000/0005/{i}.wav {k}/{s}/0000/0005/{i}.json",
    "{k}/{s}/video/{i}.mp4 {k}/{s}/audio/{i}.wav {k}/{s}/metadata/vad/{i}.jsonl "
    "{k}/{s}/metadata/transcript/{i}.jsonl {k}/{s}/annotations/1P-IS/{i}.json",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_seamless_interaction(tmp_path, layout):
    ids = ["V00_S0809_I00000582_P0947", "V00_S0809_I00000582_P0059A", "V00_S0809_I00000583_P0947"]
    for i in ids:
        tree(tmp_path, layout.format(k="improvised", s="dev", i=i))
    found = find_items(tmp_path)
    (item,) = found.items
    assert (item.name, item.group, item.split) == ("V00_S0809_I00000582", "V00_S0809", "valid")
    assert item.user.sound.stem.endswith("P0059A")
    assert (item.agent.sound.suffix, item.agent.picture.suffix) == (".wav", ".mp4")
    assert [path.suffix for path in item.agent.words] == [".jsonl" if "vad" in layout else ".json"]
    assert (item.agent.speech is not None) == ("vad" in layout)
    assert "no partner" in found.unusable["V00_S0809_I00000583"]
    assert "P0947" in found.unusable["V00_S0809_I00000583"]


def test_what_cannot_be_used_is_named(tmp_path):
    names = "a.user.mp4 b.agent.wav c.user.mp4 c.user.mkv c.agent.mp4 data.tar x.user.json .hidden.mp4 out/y.wav"
    found = find_items(tree(tmp_path, names), skip=tmp_path / "out")
    assert found.items == []
    assert {name: reason.split(",")[0].split(";")[0] for name, reason in found.unusable.items()} == {
        "a": "no partner: there is nothing of the agent",
        "b": "no partner: there is nothing of the user",
        "c": "user: expected one film or sound file",
        "data.tar": "an archive",
    }
    assert found.ignored == {".json": 1}
    with pytest.raises(DataError, match="expected a folder"):
        find_items(tmp_path / "a.user.mp4")


def test_links_to_folders_are_followed_once(tmp_path):
    tree(tmp_path, "far/a.user.mp4 far/a.agent.mp4 src/.keep")
    (tmp_path / "src" / "near").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "loop").symlink_to(tmp_path / "src")
    assert [item.name for item in find_items(tmp_path / "src").items] == ["near/a"]


def test_caption_times_are_shared_by_length():
    words = share_words("a bbb  cc", 1.0, 2.2)
    assert [w["text"] for w in words] == ["a", "bbb", "cc"]
    assert np.allclose([(w["start"], w["end"]) for w in words], [(1.0, 1.2), (1.2, 1.8), (1.8, 2.2)])


VTT = """WEBVTT

NOTE a comment

1
00:01.000 --> 00:02.000 align:start
<v Ann>Hello</v> <i>you</i>

00:00:03.000 --> 00:00:02.000
backwards
"""
SRT = "1\r\n00:00:01,000 --> 00:00:01,500\r\nHello\r\nyou\r\n\r\n2\r\n01:00:00,000 --> 01:00:01,000\r\nbye\r\n"


def test_captions(tmp_path):
    (tmp_path / "a.vtt").write_text(VTT)
    (tmp_path / "a.srt").write_text(SRT, encoding="utf-8-sig")
    vtt, srt = read_transcript(tmp_path / "a.vtt"), read_transcript(tmp_path / "a.srt")
    assert [(w["text"], round(w["start"], 3), round(w["end"], 3)) for w in vtt.words] == [
        ("Hello", 1.0, 1.625), ("you", 1.625, 2.0),
    ]  # fmt: skip
    assert vtt.left_out == 1
    assert [w["text"] for w in srt.words] == ["Hello", "you", "bye"]
    assert srt.words[-1]["start"] == 3600


def test_word_lists(tmp_path):
    path = tmp_path / "a.json"
    rows = [
        {"text": "b", "start": 2, "end": 3},
        {"text": "a", "start": 1.0, "end": 1.5},
        {"text": "c", "start": 3, "end": 2},
        {"text": "d", "start": None, "end": 2},
        {"text": " ", "start": 3, "end": 4},
        {"start": 1, "end": 2},
        7,
    ]
    path.write_text(json.dumps(rows)[:-1] + ', {"text": "e", "start": NaN, "end": 1e999}]')
    found = read_transcript(path)
    assert [word["text"] for word in found.words] == ["a", "b"]
    assert found.left_out == 6


def test_seamless_words_and_speech(tmp_path):
    timed = {"word": "Nice.", "start": 1.0, "end": 1.4, "score": 0.5}
    also = {"word": "one", "start": 1.5, "end": 1.6}
    segments = [
        {"words": [timed, also], "start": 1.0, "end": 1.6, "transcript": "Nice. one"},
        {"words": [{"word": "12"}, timed], "start": 3.0, "end": 4.0, "transcript": "12 yes"},
    ]  # fmt: skip
    vad = [{"start": 0.9, "end": 1.7}, {"start": 3.0, "end": 4.0}]
    whole, lines, speech = tmp_path / "a.json", tmp_path / "a.jsonl", tmp_path / "vad.jsonl"
    whole.write_text(json.dumps({"id": "x", "metadata:transcript": segments, "metadata:vad": vad}))
    lines.write_text("\n".join(json.dumps(row) for row in segments))
    speech.write_text("\n".join(json.dumps(row) for row in vad))
    found = read_transcript(whole)
    assert [word["text"] for word in found.words] == ["Nice.", "one", "12", "yes"]
    assert found.words[2]["start"] == 3.0
    assert found.words[3]["end"] == 4.0
    assert found.speech == [(0.9, 1.7), (3.0, 4.0)] == read_speech(speech)
    assert read_transcript(lines).words == found.words


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"{"), ("a.json", b'"words"'), ("a.json", b'{"a": 1}'), ("a.json", b"\xff\xfe\x00"),
        ("a.srt", b"no times here"), ("a.jsonl", b'{"a": 1}\nnot json'), ("a.json", b"[" * 100_000),
    ],
)  # fmt: skip
def test_a_broken_transcript_is_a_data_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_transcript(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        read_transcript(tmp_path / "missing.json")


def test_cuts_fall_between_words():
    rng = np.random.default_rng(0)
    for _ in range(20):
        starts = np.cumsum(rng.uniform(0.3, 0.9, 200))
        words = [
            {"text": "w", "start": s, "end": s + d} for s, d in zip(starts, rng.uniform(0.05, 0.5, 200), strict=True)
        ]
        first, last, longest = int(rng.integers(0, 5)), int(starts[-1] / UNIT_S), int(rng.integers(30, 120))
        plan = plan_episodes(first, last, longest, words)
        assert plan[0][0] == first
        assert all(a[1] == b[0] for a, b in pairwise(plan))
        assert all(SHORTEST_UNITS <= end - begin <= longest for begin, end in plan)
        assert sum(count_cut(words, end) for _, end in plan) == 0
        assert last - plan[-1][1] < SHORTEST_UNITS + 5


def test_cuts_without_words_and_with_a_word_that_leaves_no_room():
    assert plan_episodes(0, 100, 40, []) == [(0, 40), (40, 80), (80, 100)]
    assert plan_episodes(0, 92, 40, []) == [(0, 40), (40, 80)]  # 1.92 s are left
    assert plan_episodes(3, 15, 40, []) == []
    assert plan_episodes(0, 60, 40, [{"text": "w", "start": 0.0, "end": 9.0}]) == [(0, 40), (40, 60)]


def test_splits_are_8_1_1_and_stable():
    names = [choose_split(f"recording {i}") for i in range(2000)]
    assert [round(names.count(split) / 2000, 1) for split in ("train", "valid", "test")] == [0.8, 0.1, 0.1]
    assert [choose_split(name) for name in ("a", "b", "c")] == [choose_split(name) for name in ("a", "b", "c")]


def voiced(seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Sound like speech: harmonics of a moving pitch in syllables, with soft edges of 20 ms."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * time)) / SAMPLE_RATE
    sound = sum(np.sin(n * pitch) / n for n in range(1, 25))
    syllables = 0.25 + 0.75 * np.abs(np.sin(2 * np.pi * 2 * time + rng.uniform(0, 3)))
    return 0.1 * sound * syllables * np.minimum(1, np.minimum(time, seconds - time) / 0.02)


@pytest.mark.parametrize("noise_dbfs", [-90, -65, -50])
def test_speech_is_found_in_noise(noise_dbfs):
    rng = np.random.default_rng(1)
    truth = [(1.0, 1.6), (3.2, 5.2), (6.5, 6.9), (9.0, 12.0)]
    sound = 10 ** (noise_dbfs / 20) * rng.standard_normal(14 * SAMPLE_RATE)
    for start, end in truth:
        piece = voiced(end - start, rng)
        sound[round(start * SAMPLE_RATE) :][: len(piece)] += piece
    sound[round(8 * SAMPLE_RATE)] += 0.5  # a click is not speech
    meter = EnergyMeter()
    for first in range(0, len(sound), SAMPLES_PER_UNIT):
        meter.add(sound[first : first + SAMPLES_PER_UNIT].astype(np.float32))
    spans = find_speech(meter.levels())
    assert np.allclose(spans, truth, atol=0.04)


def test_pieces_of_any_size_give_the_same_levels_and_silence_has_no_speech():
    sound = np.random.default_rng(2).standard_normal(SAMPLE_RATE).astype(np.float32) * 0.1
    whole, pieces = EnergyMeter(), EnergyMeter()
    whole.add(sound)
    for piece in np.split(sound, [0, 1, 239, 241, 5000, 20_000]):
        pieces.add(piece)
    np.testing.assert_allclose(whole.levels(), pieces.levels(), atol=1e-3)
    assert len(whole.levels()) == 100
    assert find_speech(np.full(500, -90.0)) == find_speech(np.full(500, -55.0)) == find_speech(np.zeros(0)) == []


@pytest.mark.slow
def test_speech_of_the_simulated_world():
    """Median error of the onsets against the truth of the simulator: 40 ms at most."""
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("piper")
    from wan_streamer.simulation.conversation.partners import make_episode
    from wan_streamer.simulation.generate import default_cache
    from wan_streamer.simulation.voice.users import AgentVoice

    voice = AgentVoice(default_cache(), variants=1)  # a sentence is the same from any cache
    episode = make_episode(11, "valid", 4, voice, pictures=False)  # eight turns of each side
    errors, missed = [], 0
    for side, audio_T in (("user", episode.user_audio), ("agent", episode.agent_audio)):
        meter = EnergyMeter()
        meter.add(audio_T)
        spans = find_speech(meter.levels())
        for event in (e for e in episode.labels["events"] if e["type"] == "speech" and e["side"] == side):
            inside = [start for start, end in spans if start < event["end"] and end > event["start"]]
            missed += not inside
            errors += [abs(inside[0] - event["start"])] if inside else []
    assert len(errors) >= 10
    assert missed <= 0.1 * len(errors)
    assert np.median(errors) <= 0.04
