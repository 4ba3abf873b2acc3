"""Independent tasks: exact, repeatable, and descriptions say what is there."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_scenarios import TONE_T

from wan_streamer.data.shards import check_labels, read_shard, write_shard
from wan_streamer.errors import ConfigError
from wan_streamer.simulation import simulate
from wan_streamer.simulation.face.person import HAIRS, SHIRTS, FaceIdentity, Prop
from wan_streamer.simulation.face.props import PAINTS
from wan_streamer.simulation.sound.effects import SOUNDS
from wan_streamer.simulation.tasks.describe import (
    FILM_GESTURES,
    HEARD,
    STILL_GESTURES,
    doing,
    held_still,
    person,
    sentence,
)
from wan_streamer.simulation.tasks.episodes import (
    MOST_TASKS,
    SHARD_UNITS,
    TASKS,
    UNITS,
    draw_task,
    make_task,
    shard_tasks,
)
from wan_streamer.simulation.tasks.plan import FEMALE, NATURAL_SHARE, NATURAL_TEXTS, some_sentences
from wan_streamer.simulation.tasks.say import TTS_SENTENCES, own_sentences, tts_sentences
from wan_streamer.simulation.voice.natural import NaturalVoice, belongs, natural_speakers_of
from wan_streamer.simulation.voice.speech import Speech, TimedPhoneme, TimedWord
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT

TARGETS = {
    "asr": {"transcript"}, "tts": {"response", "audio", "video"}, "caption_image": {"response"},
    "caption_audio": {"response"}, "caption_video": {"response"}, "dialogue": {"response"},
    "generate_image": {"video"}, "generate_audio": {"audio"}, "generate_video": {"video"},
    "generate_av": {"audio", "video"},
}  # fmt: skip
"""Every task that needs no natural voices."""


class Tone:
    """The agent's voice for tests: a tone of 0.25 s per word."""

    def speak(self, text: str, rng: np.random.Generator) -> Speech:
        words = text.split()
        spans = [(0.25 * i + 0.02, 0.25 * i + 0.25) for i in range(len(words))]
        audio_T = TONE_T[: round(0.25 * len(words) * SAMPLE_RATE)]
        timed = tuple(TimedWord(word, *span) for word, span in zip(words, spans, strict=True))
        return Speech(text, audio_T, timed, tuple(TimedPhoneme("a", *span) for span in spans))


def task(name: str, index: int = 0, pictures: bool = False, seed: int = 5, split: str = "train"):
    return make_task(seed, split, index, Tone(), name=name, pictures=pictures)


def events(labels: dict, kind: str, side: str) -> list[dict]:
    return [event for event in labels["events"] if (event["type"], event["side"]) == (kind, side)]


@pytest.mark.parametrize("name", TARGETS)
def test_labels_are_valid_and_say_what_is_trained(name):
    for index in range(3):
        made = task(name, index)
        labels = check_labels(json.loads(json.dumps(made.labels)), name)
        assert labels["task"] == name
        assert set(labels["targets"]) == TARGETS[name]
        assert UNITS[0] <= made.units <= UNITS[1]
        assert len(made.user_audio) == len(made.agent_audio) == made.units * SAMPLES_PER_UNIT
        typed = events(labels, "typed", "user")
        assert [event["label"] for event in typed] == ([labels["prompt"]] if name != "asr" else [])
        assert len(events(labels, "written", "agent")) == (TARGETS[name] == {"response"})


@pytest.mark.parametrize("name", ["asr", "caption_image", "generate_av"])
def test_same_seed_gives_the_same_task(name):
    first, again, other = (task(name, index, pictures=True) for index in (3, 3, 4))
    assert json.dumps(first.labels) == json.dumps(again.labels) != json.dumps(other.labels)
    for stream in ("user_audio", "agent_audio", "agent_video"):
        assert getattr(first, stream).tobytes() == getattr(again, stream).tobytes()


def test_the_drawn_task_is_the_same_with_and_without_pictures():
    drawn = make_task(5, "train", 11, Tone(), pictures=False)
    whole = make_task(5, "train", 11, Tone())
    assert drawn.labels == whole.labels
    assert len(whole.agent_video) == whole.units * FRAMES_PER_UNIT
    assert drawn.agent_video is None
    assert (whole.user_video is not None) == whole.labels["user"]["camera"]


def test_every_task_is_drawn():
    rng = np.random.default_rng(0)
    assert {draw_task(rng, natural=False) for _ in range(400)} == set(TARGETS)
    assert {draw_task(rng, natural=True) for _ in range(400)} == set(TASKS) == {*TARGETS, "asr_natural"}
    with pytest.raises(ConfigError, match="fetch_kokoro"):
        task("asr_natural")
    with pytest.raises(ConfigError, match="expected one of asr, "):
        task("sing")


class Choir:
    """Natural voices for tests."""

    def sample(self, rng: np.random.Generator, split: str) -> NaturalVoice:
        return NaturalVoice(str(rng.choice(natural_speakers_of(split))), self)

    def rendering(self, voice: str, text: str) -> Speech:
        return Tone().speak(text, np.random.default_rng(0))


def test_natural_voices_read_few_sentences_of_their_own():
    for index in range(4):
        labels = make_task(5, "valid", index, Tone(), Choir(), "asr_natural", pictures=False).labels
        voice = labels["user"]["voice"]
        assert voice["engine"] == "kokoro"
        assert voice["name"] in natural_speakers_of("valid")
        text = " ".join(word["text"] for word in labels["words"]["user"])
        assert text in some_sentences("valid", NATURAL_TEXTS, 64)
        assert belongs(voice["name"], text, NATURAL_SHARE)
        assert labels["targets"] == ["transcript"]


def test_a_voice_fits_the_face_that_speaks():
    engines = set()
    for index in range(12):
        labels = make_task(5, "train", index, Tone(), Choir(), "generate_av", pictures=False).labels
        voice, shown = labels["agent"]["voice"], labels["agent"]["shown"]
        engines.add(voice.get("engine"))
        female = voice["name"][1] == "f" if "engine" in voice else voice["variant"] in FEMALE
        assert shown["feminine"] == female == ("woman" in labels["prompt"].split(" with ")[0])
    assert engines == {"kokoro", None}


def test_streams_that_are_no_targets_stay_idle():
    for name, targets in TARGETS.items():
        made = task(name, 1)
        assert ("audio" in targets) == bool(np.abs(made.agent_audio).max() > 0.01), name
        assert ("shown" in made.labels["agent"]) == (name in ("generate_image", "generate_video", "generate_av"))
        if "video" not in targets:
            assert max(made.labels["mouth_open"]["agent"]) < 0.1


@pytest.mark.parametrize("name", ["tts", "generate_av"])
def test_what_is_to_be_said_is_said_where_the_words_are(name):
    for index in range(4):
        made = task(name, index)
        words = made.labels["words"]["agent"]
        assert made.labels["prompt"].endswith(": " + " ".join(word["text"] for word in words))
        (spoken,) = events(made.labels, "speech", "agent")
        assert spoken["start"] <= words[0]["start"]
        assert words[-1]["end"] <= spoken["end"] + 1e-3
        first, last = (round(spoken[key] * SAMPLE_RATE) for key in ("start", "end"))
        assert np.abs(made.agent_audio[: first - 2400]).max() == 0
        assert np.abs(made.agent_audio[last + 4800 :]).max() < 1e-3
        assert np.sqrt(np.mean(made.agent_audio[first:last] ** 2)) > 0.02
        mouth_T = np.array(made.labels["mouth_open"]["agent"])
        frames = slice(round(spoken["start"] * 25), round(spoken["end"] * 25))
        assert mouth_T[frames].max() > 0.15 > mouth_T[: frames.start - 3].max()


def test_written_answers_come_after_the_question_at_reading_speed():
    for name in ("caption_image", "caption_audio", "caption_video", "dialogue"):
        labels = task(name, 2).labels
        (typed,), (written,) = events(labels, "typed", "user"), events(labels, "written", "agent")
        words = labels["words"]["agent"]
        assert " ".join(word["text"] for word in words) == written["label"]
        assert written["start"] > typed["start"] + 0.16 * len(labels["prompt"]) / 6
        assert len(words) / (written["end"] - written["start"]) == pytest.approx(3.2, abs=0.05)


def prop_pixels(frame_HWC: np.ndarray, colour: str) -> int:
    """How many pixels have nearly the colour of a thing."""
    return int((np.abs(frame_HWC.astype(int) - PAINTS[colour]).max(-1) < 24).sum())


def held(name: str, side: str) -> list[tuple[int, str]]:
    """The first two tasks in which something colourful and solid is held: (index, what it is)."""
    found: list[tuple[int, str]] = []
    for index in range(60):
        for event in events(task(name, index).labels, "show", side):
            colour, thing = event["label"].split()
            if colour not in ("white", "black", "yellow") and not thing.isdigit():
                found.append((index, event["label"]))
        if len(found) == 2:
            break
    return found


def test_a_caption_names_the_thing_in_the_picture():
    found = held("caption_image", "user")
    assert len(found) == 2
    for index, thing in found:
        made = task("caption_image", index, pictures=True)
        (written,) = events(made.labels, "written", "agent")
        assert thing in written["label"]
        hands = np.concatenate([made.user_video[0][60:, :130], made.user_video[0][60:, -130:]], 1)
        assert prop_pixels(hands, thing.split()[0]) > 150
        assert (made.user_video == made.user_video[0]).all()  # a still


def test_a_generated_picture_shows_the_thing_after_the_cut():
    found = held("generate_image", "agent")
    assert len(found) == 2
    for index, thing in found:
        made = task("generate_image", index, pictures=True)
        assert thing in made.labels["prompt"]
        (shown,) = events(made.labels, "shown", "agent")
        cut = round(shown["start"] * 25)
        assert cut % FRAMES_PER_UNIT == 0
        before, after = (prop_pixels(made.agent_video[i], thing.split()[0]) for i in (cut - 1, cut))
        assert after > before + 150
        assert (made.agent_video[cut:] == made.agent_video[cut]).all()
        assert (made.agent_video[cut] != made.agent_video[cut - 1]).any(-1).mean() > 0.5


def test_people_are_described_by_what_tells_them_apart():
    someone = FaceIdentity(hair=HAIRS[0], hair_style="long", shirt=SHIRTS[1], glasses=True, feminine=True)
    assert person(someone) == "a woman with long black hair, glasses and a teal shirt"
    assert person(someone, most=1) == "a woman with long black hair"
    bald = replace(someone, hair_style="bald", feminine=False, beard="full", glasses=False, clothes="hoodie")
    assert person(bald) == "a bald bearded man with a teal hoodie"
    rng = np.random.default_rng(0)
    people = [FaceIdentity.sample(rng) for _ in range(200)]
    for field, value in (("glasses", "glasses"), ("feminine", "woman")):
        assert all(getattr(p, field) == (value in person(p)) for p in people)


def test_every_gesture_and_sound_has_words_of_its_own():
    star = Prop("shape", "star", "red")
    films = {doing(kind, star, side) for kind in FILM_GESTURES for side in ("left", "right")}
    assert len(films) == len(FILM_GESTURES) + 2  # two of them have a direction
    assert len({held_still(kind, star) for kind in STILL_GESTURES}) == len(STILL_GESTURES)
    assert set(HEARD) == {*SOUNDS, "speech", ""}
    assert len(set(HEARD.values())) == len(HEARD)
    assert doing("show", Prop("digit", "7", "orange")) == "holds an orange number seven"
    assert sentence("a man", "", "waves") == "A man waves."


def test_captions_of_sounds_and_films_follow_the_labels():
    for index in range(8):
        sound, film = (task(name, index).labels for name in ("caption_audio", "caption_video"))
        kind = "".join(event["label"] for event in events(sound, "noise", "user"))
        kind = "speech" if events(sound, "speech", "user") else kind
        assert events(sound, "written", "agent")[0]["label"] == sentence(HEARD[kind])
        done = [event for event in film["events"] if event["side"] == "user" and event["type"] in FILM_GESTURES]
        answer = events(film, "written", "agent")[0]["label"]
        if done:
            prop = Prop("shape", "star", "red")  # what it is, is tested with the pictures
            assert answer.split()[2].rstrip(".") == doing(done[0]["type"], prop).split()[0]
        else:
            assert answer in ("The person talks.", "The person sits still.")
            assert (max(film["mouth_open"]["user"]) > 0.15) == ("talks" in answer)


def test_splits_share_no_sentence_and_no_voice():
    texts = {split: set(some_sentences(split, 400, 60)) for split in ("train", "valid", "test")}
    assert not texts["train"] & texts["valid"]
    assert not texts["train"] & texts["test"]
    assert {split: len(tts_sentences(split)) for split in texts} == TTS_SENTENCES
    assert all(len(text) <= 40 for text in (*own_sentences(), *tts_sentences("train")))
    voices = {s: {task("asr", i, split=s).labels["user"]["voice"]["variant"] for i in range(4)} for s in texts}
    assert not voices["train"] & voices["valid"]
    assert not voices["train"] & voices["test"]


def test_a_shard_of_tasks_can_be_read_back(tmp_path):
    tasks = [task("caption_video", 0, pictures=True), task("generate_audio", 1, pictures=True)]
    write_shard(tmp_path / "shard-00000.tar", tasks)
    for made, read in zip(tasks, read_shard(tmp_path / "shard-00000.tar"), strict=True):
        assert read.labels == made.labels
        assert np.abs(read.agent_audio - made.agent_audio).max() < 1e-4


def test_shards_are_long_enough_and_share_no_index(monkeypatch):
    made = []

    def quick(seed, split, index, *rest):
        made.append(index)
        return replace(short, labels=short.labels | {"units": UNITS[0]})

    short = task("generate_audio")
    monkeypatch.setattr("wan_streamer.simulation.tasks.episodes.make_task", quick)
    for number in (0, 1):
        units = sum(episode.units for episode in shard_tasks(1, "train", number, Tone()))
        assert SHARD_UNITS <= units < SHARD_UNITS + UNITS[1]
    assert made == list(range(made[0], made[len(made) // 2 - 1] + 1)) + list(
        range(MOST_TASKS, MOST_TASKS + len(made) // 2)
    )


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="conversations, tasks"):
        simulate(tmp_path, 0.1, 0, kind="songs")
