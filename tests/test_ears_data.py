"""What ears are trained on: the corpus, its texts, and the streams made from it."""

import dataclasses
import gzip

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_ears import small_corpus, tone

from wan_streamer.data.cluster import Engine
from wan_streamer.errors import ConfigError, DataError, ShapeError
from wan_streamer.training.ears.corpus import (
    Clip,
    CorpusWriter,
    load_corpus,
    pieces,
    read_clip,
    read_index,
    save_heard,
)
from wan_streamer.training.ears.data import StreamConfig, StreamMaker, stretch
from wan_streamer.training.ears.heard import align
from wan_streamer.training.ears.speakers import (
    SOURCES,
    Folders,
    Part,
    human_split,
    kokoro_voices,
    make_corpus,
    make_plan,
    whole_plan,
)
from wan_streamer.training.ears.texts import for_test, load_sentences
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT

# ---------------------------------------------------------------- corpus and texts


@pytest.fixture
def corpus(tmp_path):
    return small_corpus(tmp_path)


def test_a_corpus_gives_back_what_was_put_in(tmp_path):
    audio_T = np.linspace(-0.9, 0.9, 5000, dtype=np.float32)
    CorpusWriter(tmp_path, "a").add(audio_T, "v", "one two", "train")
    CorpusWriter(tmp_path, "a").add(-audio_T, "w", "", "train", "two")
    first, second = load_corpus(tmp_path, "train")
    np.testing.assert_allclose(read_clip(tmp_path, first), audio_T, atol=2e-5)
    np.testing.assert_allclose(read_clip(tmp_path, second), -audio_T, atol=2e-5)
    assert (second.voice, second.text, second.slots) == ("w", "", "two")
    known = {str(first.start): (("one", 0.0, 0.1), ("two", 0.1, 0.2)), str(second.start): (("heard", 0.05, 0.2),)}
    save_heard(tmp_path, "a", known)
    both = load_corpus(tmp_path, "train", heard=True)
    assert [clip.text for clip in both] == ["one two", "heard"]
    assert [clip.words for clip in both] == list(known.values())
    (tmp_path / "a.heard.json").write_text('{"0": "words without times"}')
    with pytest.raises(DataError, match="words heard"):
        load_corpus(tmp_path, "train", heard=True)


@given(st.lists(st.tuples(st.floats(0, 0.6), st.floats(0.02, 1.2)), min_size=1, max_size=12), st.floats(0.5, 4))
def test_pieces_hold_whole_words_in_their_places(spans, longest_s):
    words, at = [], 0.0
    for number, (gap, length) in enumerate(spans):
        words.append((f"w{number}", at + gap, at + gap + length))
        at += gap + length
    clip = Clip("a", 777, round((at + 0.3) * SAMPLE_RATE), "v", "said", "train", words=tuple(words))
    longest = round(longest_s * SAMPLE_RATE)
    made = pieces(clip, longest)
    if clip.samples <= longest:
        assert made == [clip]
        return
    end, found = clip.start, []
    for piece in made:
        assert end <= piece.start
        assert 0 < piece.samples <= longest
        end = piece.start + piece.samples
        assert end <= clip.start + clip.samples
        assert piece.text == " ".join(word for word, _, _ in piece.words)
        for word, a, b in piece.words:
            late = (piece.start - clip.start) / SAMPLE_RATE
            found.append((word, pytest.approx(a + late, abs=1e-4), pytest.approx(b + late, abs=1e-4)))
    assert [word for word in words if word in found] == [word for word in words if word[0] in {w for w, _, _ in found}]
    fits = [word for word, (gap, length) in zip(words, spans, strict=True) if gap + length + 0.61 < longest_s]
    assert {word for word, _, _ in fits} <= {word for word, _, _ in found}


def test_a_long_recording_is_cut_where_it_pauses():
    words = (("a", 0.0, 1.0), ("b", 1.0, 2.0), ("c", 2.4, 3.0), ("d", 3.0, 4.0), ("e", 4.0, 5.0))
    clip = Clip("a", 0, 5 * SAMPLE_RATE, "v", "a b c d e", "train", words=words)
    assert [piece.text for piece in pieces(clip, 3 * SAMPLE_RATE)] == ["a b", "c d e"]
    assert pieces(dataclasses.replace(clip, words=()), 3 * SAMPLE_RATE) == []


class LooksAt:
    """A reader that knows where in 20 frames it has to look."""

    def __init__(self, where):
        self.where = where

    def attention(self, features_TD, tokens):
        seen_NT = torch.full((len(tokens), len(features_TD)), 0.01)
        for row, (first, last) in zip(seen_NT, self.where, strict=True):
            row[first:last] = 1.0
        return seen_NT


class Letters:
    def encode(self, text):
        return [ord(letter) for letter in text]


def test_words_are_where_the_reader_looks_without_the_silence():
    """Four units are 28 frames; silence in front and in the middle."""
    audio_T = torch.ones(4 * SAMPLES_PER_UNIT)
    frame = SAMPLES_PER_UNIT / 7
    for first, last in ((0, 5), (15, 19)):
        audio_T[round(first * frame) : round(last * frame)] = 0
    reader = LooksAt([(4, 8), (8, 15), (15, 22), (22, 28)])
    words = align(reader, Letters(), torch.zeros(28, 1), "ab cd", audio_T)
    frames = [(word, round(a * 7 / 0.16), round(b * 7 / 0.16)) for word, a, b in words]
    assert frames == [("ab", 5, 15), ("cd", 19, 28)]
    assert align(reader, Letters(), torch.zeros(28, 1), " ", audio_T) == ()


def test_more_tokens_than_frames_are_no_error():
    words = align(LooksAt([(0, 7)] * 9), Letters(), torch.zeros(7, 1), "abcdefghi", torch.ones(3840))
    assert [word for word, _, _ in words] == ["abcdefghi"]


def test_a_stopped_writer_goes_on_after_the_last_whole_utterance(tmp_path):
    CorpusWriter(tmp_path, "a").add(np.full(100, 0.5, np.float32), "v", "one", "train")
    with (tmp_path / "a.pcm").open("ab") as file:
        file.write(b"half an utterance")
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"source": "a", "sta')
    assert len(read_index(tmp_path / "a.jsonl")) == 1
    writer = CorpusWriter(tmp_path, "a")
    writer.add(np.full(50, 0.25, np.float32), "v", "two", "train")
    clips = load_corpus(tmp_path, "train")
    assert [clip.text for clip in clips] == ["one", "two"]
    np.testing.assert_allclose(read_clip(tmp_path, clips[1]), 0.25, atol=2e-5)


def test_a_missing_or_short_corpus_is_told(tmp_path, corpus):
    with pytest.raises(DataError, match="found none"):
        load_corpus(corpus, "valid")
    clip = load_corpus(corpus, "train")[-1]
    (corpus / f"{clip.source}.pcm").write_bytes(b"12")
    with pytest.raises(DataError, match="make it again"):
        read_clip(corpus, clip)
    with pytest.raises(ShapeError):
        CorpusWriter(tmp_path, "b").add(np.array([np.nan], np.float32), "v", "", "train")


def test_what_a_corpus_is_made_of(tmp_path):
    assert whole_plan(Folders()) == []
    assert {part.name for part in whole_plan(Folders(people=tmp_path))} == {"reader", "orders"}
    everything = {part.name: part for part in whole_plan(Folders(tmp_path, tmp_path, tmp_path, tmp_path))}
    assert set(SOURCES) - {"flite"} <= set(everything)
    assert everything["kokoro-test"] == Part("kokoro-test", "kokoro", 4.5, "test")
    hibari = [part.minutes for part in whole_plan(Folders(tmp_path), hours=1.1) if part.source == "hibari"]
    assert hibari == [pytest.approx(66 / 7)] * 7


@pytest.fixture
def texts(tmp_path):
    """Sentences of every kind, some of them for tests."""
    things = ("sea", "wood", "town", "snow", "rain", "wind", "moon", "road", "boat", "bird", "song", "bread", "tea")
    said = [f"I like the {one}, and you like the {two}." for one in things for two in things]
    (tmp_path / "ami").mkdir()
    (tmp_path / "talk").mkdir()
    with gzip.open(tmp_path / "ami" / "words.tsv.gz", "wt") as file:
        file.write("meeting\tspeaker\tkind\ttext\n")
        for text in said:
            file.write("".join(f"m\ta\tw\t{word.strip(',.')}\n" for word in text.split()) + "m\ta\tpunc\t.\n")
    for name in ("topical.tsv.gz", "orders.tsv.gz"):
        with gzip.open(tmp_path / "talk" / name, "wt") as file:
            file.write("\n".join(["text", *said]))
    (tmp_path / "talk" / "chat.tsv").write_text("\n".join(["text", *said]))
    return Folders(texts=tmp_path)


def test_hibari_says_every_sentence_with_another_speaker_until_it_is_enough(tmp_path, texts):
    made = make_corpus(tmp_path / "corpus", "hibari", texts, 0.1)
    assert 0.1 <= made < 0.2
    assert make_corpus(tmp_path / "corpus", "hibari", texts, 0.1) == made
    clips = load_corpus(tmp_path / "corpus", "train")
    assert len({clip.voice for clip in clips}) == len(clips) > 1
    assert all(" ".join(word for word, _, _ in clip.words) == clip.text for clip in clips)


def test_parts_are_the_same_whoever_makes_them(tmp_path, texts):
    """In two processes, in one, and after a stop; and each says something else."""
    plan = [Part("espeak", "espeak", 0.2), Part("espeak-1", "espeak", 0.2), Part("hibari", "hibari", 0.1)]
    apart = dict(make_plan(tmp_path / "apart", plan, texts, Engine(processes=2)))
    assert {part.name: minutes > 0.99 * part.minutes for part, minutes in apart.items()} == {
        "espeak": True, "espeak-1": True, "hibari": True,
    }  # fmt: skip
    list(make_plan(tmp_path / "alone", plan[:1], texts))
    assert dict(make_plan(tmp_path / "alone", plan, texts)) == apart
    names = [f"{part.name}.{kind}" for part in plan for kind in ("pcm", "jsonl")]
    one, other = ([(tmp_path / where / name).read_bytes() for name in names] for where in ("apart", "alone"))
    assert one == other
    assert one[0] != one[2]
    kinds = {clip.kind for clip in load_corpus(tmp_path / "apart", "train")}
    assert kinds == {"espeak", "hibari"}
    stream = StreamMaker(tmp_path / "apart", "train", StreamConfig(units=60, shares={"espeak": 1.0, "hibari": 1e-9}), 0)
    placed = [one.clip.source for step in range(60) for one in stream.make(step, 0).placed]
    shares = {name: placed.count(name) / len(placed) for name in ("espeak", "espeak-1", "hibari")}
    assert min(shares["espeak"], shares["espeak-1"]) > 0.25, "a kind has its share whatever its parts are"
    assert shares["hibari"] < 0.1


def test_sources_and_folders_that_are_missing_are_told(tmp_path):
    with pytest.raises(ConfigError, match="expected one of"):
        make_corpus(tmp_path, "nobody", Folders(), 1)
    for source in ("kokoro", "orders", "reader", "extra"):
        with pytest.raises(ConfigError, match="expected a folder"):
            make_corpus(tmp_path, source, Folders(), 1)
    assert set(SOURCES) >= {"kokoro", "piper", "espeak", "orders", "reader"}


def test_voices_of_the_splits_are_apart():
    voices = [set(kokoro_voices(split)) for split in ("train", "valid", "test")]
    assert [len(v) for v in voices] == [20, 3, 5]
    assert not voices[0] & voices[1] | voices[0] & voices[2] | voices[1] & voices[2]


def test_recordings_are_split_by_their_names():
    splits = [human_split(f"clip {i}") for i in range(4000)]
    assert splits.count("test") / 4000 == pytest.approx(0.15, abs=0.02)
    assert splits.count("valid") / 4000 == pytest.approx(0.03, abs=0.01)
    assert human_split("clip 7") == splits[7]


def test_sentences_are_those_that_can_be_said(tmp_path):
    (tmp_path / "ami").mkdir()
    (tmp_path / "talk").mkdir()
    rows = [("w", "So"), ("w", "we"), ("w", "begin"), ("punc", "."), ("w", "It"), ("w", "costs"), ("disfmarker", "")]
    table = "meeting\tspeaker\tstart_s\tend_s\tkind\ttext\n"
    table += "".join(f"M\tA\t0\t0\t{kind}\t{text}\n" for kind, text in [*rows, ("w", "much"), ("punc", ".")])
    import gzip

    (tmp_path / "ami" / "words.tsv.gz").write_bytes(gzip.compress(table.encode()))
    typed = "dialogue\tspeaker\ttext\n1\tuser\tOne tall latte please. It is 4 pm now! NASA is a big agency.\n"
    for name in ("topical", "orders"):
        (tmp_path / "talk" / f"{name}.tsv.gz").write_bytes(gzip.compress(typed.encode()))
    (tmp_path / "talk" / "chat.tsv").write_text(typed)
    sentences = load_sentences(tmp_path)
    assert sentences["meetings"] == ["So we begin."]
    assert sentences["orders"] == ["One tall latte please."]
    (tmp_path / "talk" / "chat.tsv").write_text("speaker\n1\n")
    with pytest.raises(DataError, match="columns"):
        load_sentences(tmp_path)


def test_texts_of_the_test_are_a_fixed_small_part():
    chosen = [for_test(f"sentence {i}", 0.1) for i in range(5000)]
    assert sum(chosen) / 5000 == pytest.approx(0.1, abs=0.015)
    assert all(for_test(f"sentence {i}", 0.3) for i in range(5000) if chosen[i])


# ---------------------------------------------------------------- streams


def test_a_stream_is_a_pure_function(corpus):
    maker = StreamMaker(corpus, "train", StreamConfig(units=30), seed=3)
    again = StreamMaker(corpus, "train", StreamConfig(units=30), seed=3)
    ours, theirs = maker.make(5, 1), again.make(5, 1)
    np.testing.assert_array_equal(ours.audio_T, theirs.audio_T)
    assert not np.array_equal(ours.audio_T, maker.make(5, 2).audio_T)
    assert not np.array_equal(ours.audio_T, maker.make(6, 1).audio_T)


def test_clips_of_a_stream_are_apart_and_fit(corpus):
    maker = StreamMaker(corpus, "train", StreamConfig(units=40), seed=0)
    seen = set()
    for step in range(20):
        stream = maker.make(step, 0)
        assert stream.audio_T.shape == (40 * SAMPLES_PER_UNIT,)
        assert np.abs(stream.audio_T).max() <= 1
        assert stream.placed
        end = 0
        for one in stream.placed:
            assert one.first >= end
            assert one.clip.split == "train"
            assert len(one.clean_T) % SAMPLES_PER_UNIT == 0
            end = one.first + one.units
            seen.add(one.clip.source)
        assert end <= 40
    assert seen == {"people", "piper"}


def test_a_stream_holds_its_clips(corpus):
    """Undisturbed, the ears' sound is the teacher's, but for the level."""
    quiet = StreamConfig(
        units=30, degraded=0.0, noisy=0.0, equalised=0.0, babble=0.0, echo=0.0, gain_db=(0, 0), level_db=(0, 0)
    )
    maker = StreamMaker(corpus, "train", quiet, seed=0)
    for one in (stream := maker.make(0, 0)).placed:
        heard_T = stream.audio_T[one.first * SAMPLES_PER_UNIT :][: len(one.clean_T)]
        assert np.corrcoef(heard_T, one.clean_T)[0, 1] > 0.8


def test_a_growing_corpus_joins(corpus):
    maker = StreamMaker(corpus, "train", StreamConfig(units=30), seed=0)
    CorpusWriter(corpus, "new").add(np.ones(20_000, np.float32) / 9, "v", "more", "train")
    before = len(maker.clips)
    maker.reload()
    assert len(maker.clips) == before + 1


def test_streams_without_clips_are_told(corpus):
    with pytest.raises(DataError, match="fit 2 units"):
        StreamMaker(corpus, "train", StreamConfig(units=2), seed=0)
    with pytest.raises(ConfigError):
        StreamMaker(corpus, "train", StreamConfig(units=0), seed=0)


def test_faster_is_shorter_and_higher():
    fast_T = stretch(tone(500, SAMPLE_RATE, SAMPLE_RATE)[0].numpy(), 1.1)
    assert len(fast_T) == pytest.approx(SAMPLE_RATE / 1.1, abs=2)
    hz = np.abs(np.fft.rfft(fast_T)).argmax() * SAMPLE_RATE / len(fast_T)
    assert hz == pytest.approx(550, abs=2)
