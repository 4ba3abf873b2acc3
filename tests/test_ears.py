"""The ears: any chunking gives the same, the future changes nothing, streams never end; corpus, streams and scores."""

import dataclasses
import gzip
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_streamer.config import EarsConfig
from wan_streamer.errors import CheckpointError, ConfigError, DataError, ShapeError
from wan_streamer.perception.ears import Ears, load_ears, rotate, save_ears, turns
from wan_streamer.perception.resampling import Resampler
from wan_streamer.training.ears.corpus import CorpusWriter, load_corpus, read_clip, read_index, save_heard
from wan_streamer.training.ears.data import StreamConfig, StreamMaker, stretch
from wan_streamer.training.ears.score import normal_words, slots_right, with_noise, words_wrong
from wan_streamer.training.ears.speakers import SOURCES, Folders, human_split, kokoro_voices, make_corpus, whole_plan
from wan_streamer.training.ears.texts import for_test, load_sentences
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT

SMALL = EarsConfig(width=32, wide=1, layers=2, heads=4, rotary=4, feed=2, window=21, piece=6)
UNITS = 14


@pytest.fixture(scope="module")
def ears() -> Ears:
    torch.manual_seed(0)
    return Ears(SMALL).eval().requires_grad_(False)


def sound(units: int, seed: int = 0, rows: int = 1) -> torch.Tensor:
    """Noise whose level goes up and down by 40 dB."""
    generator = torch.Generator().manual_seed(seed)
    level = 10 ** (2 * torch.rand(rows, units, 1, generator=generator) - 2.5)
    return (torch.randn(rows, units, SAMPLES_PER_UNIT, generator=generator) * level).flatten(1)


def in_pieces(ears: Ears, audio_BT: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    state, pieces = None, []
    for piece_BT in audio_BT.split([size * SAMPLES_PER_UNIT for size in sizes], dim=1):
        features_BTD, state = ears(piece_BT, state)
        pieces.append(features_BTD)
    return torch.cat(pieces, dim=1)


# ---------------------------------------------------------------- the encoder


def test_shape_of_the_default_encoder():
    config = EarsConfig()
    assert (config.samples, config.frames, config.coarse, config.hop) == (2688, 7, 42, 384)
    features_BTD, _ = Ears()(torch.zeros(2, 2 * SAMPLES_PER_UNIT))
    assert features_BTD.shape == (2, 14, 288)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=6), st.integers(0, 99))
def test_chunked_is_whole(ears, sizes, seed):
    audio_BT = sound(sum(sizes), seed, rows=2)
    whole_BTD, _ = ears(audio_BT)
    torch.testing.assert_close(in_pieces(ears, audio_BT, sizes), whole_BTD, atol=2e-5, rtol=0)


def test_many_units_at_once_are_those_of_one_step(ears):
    """`piece` bounds the memory and changes nothing."""
    at_once = Ears(dataclasses.replace(SMALL, piece=1000)).eval()
    at_once.load_state_dict(ears.state_dict())
    audio_BT = sound(40)
    torch.testing.assert_close(at_once(audio_BT)[0], ears(audio_BT)[0], atol=2e-5, rtol=0)


def test_a_stream_beyond_the_window_is_the_whole(ears):
    audio_BT = sound(60)
    whole_BTD, state = ears(audio_BT)
    torch.testing.assert_close(in_pieces(ears, audio_BT, [1] * 60), whole_BTD, atol=2e-5, rtol=0)
    assert {k.shape[2] for k in (*state.keys, *state.values)} == {SMALL.window}


def test_features_do_not_depend_on_the_age_of_the_stream():
    """What repeats gives the same features in every round, however long ago the stream began."""
    torch.manual_seed(1)
    ears = Ears(dataclasses.replace(SMALL, decay=0.5)).eval().requires_grad_(False)
    audio_BT = sound(10).repeat(1, 40)
    rounds = ears(audio_BT)[0].unflatten(1, (40, -1))
    torch.testing.assert_close(rounds[:, 39], rounds[:, 12], atol=2e-5, rtol=0)
    assert (rounds[:, 12] - rounds[:, 12].roll(SMALL.frames, 1)).abs().max() > 0.1  # the units of a round do differ


@pytest.mark.parametrize("changed", [1, 2, 7, UNITS - 1])
def test_the_future_changes_nothing_bit_by_bit(ears, changed):
    """Nor does its level, which the normalisation looks at."""
    audio_BT = sound(UNITS)
    other_BT = audio_BT.clone()
    other_BT[:, changed * SAMPLES_PER_UNIT :] = 30 * sound(UNITS, 5)[:, changed * SAMPLES_PER_UNIT :]
    ours_BTD, theirs_BTD = ears(audio_BT)[0], ears(other_BT)[0]
    edge = changed * SMALL.frames
    assert torch.equal(ours_BTD[:, :edge], theirs_BTD[:, :edge])
    assert (ours_BTD[:, edge:] - theirs_BTD[:, edge:]).abs().max() > 0.1


def test_a_unit_hears_all_of_itself(ears):
    """Its first frame attends to its last samples: block-causal, not causal."""
    audio_BT = sound(3)
    other_BT = audio_BT.clone()
    other_BT[:, -SAMPLES_PER_UNIT // 4 :] *= -1
    change_T = (ears(audio_BT)[0] - ears(other_BT)[0]).abs().amax((0, 2))
    assert change_T[: 2 * SMALL.frames].max() == 0
    assert change_T[2 * SMALL.frames] > 1e-3


def test_nothing_older_than_the_window_is_seen():
    """One layer sees `window` frames; what the first convolutions and the level still know is made to fade."""
    torch.manual_seed(2)
    ears = Ears(dataclasses.replace(SMALL, layers=1, decay=1e-12)).eval().requires_grad_(False)
    audio_BT = sound(UNITS)
    other_BT = audio_BT.clone()
    other_BT[:, :SAMPLES_PER_UNIT] = sound(1, 9)
    change_T = (ears(audio_BT)[0] - ears(other_BT)[0]).abs().amax((0, 2))
    last = 2 + SMALL.window // SMALL.frames  # by the convolutions, the third unit still holds a little of the first
    assert change_T[last * SMALL.frames] > 1e-5
    assert change_T[(last + 1) * SMALL.frames :].max() == 0


def test_state_is_explicit_and_never_changed(ears):
    first_BT, second_BT = sound(3), sound(2, 1)
    _, state = ears(first_BT)
    before = [value.clone() for value in (state.sound_BT, state.level_B3, *state.keys)]
    once, _ = ears(second_BT, state)
    twice, _ = ears(second_BT, state)
    assert torch.equal(once, twice)
    assert all(map(torch.equal, before, (state.sound_BT, state.level_B3, *state.keys)))
    assert not torch.equal(ears(second_BT)[0], once)


def test_rows_of_a_batch_are_streams_of_their_own(ears):
    audio_BT = sound(4, rows=3)
    for row in range(3):
        torch.testing.assert_close(ears(audio_BT)[0][row], ears(audio_BT[row : row + 1])[0][0], atol=2e-5, rtol=0)


def test_silence_between_does_not_thin_the_level(ears):
    """The level of speech stands after three seconds of near silence."""
    _, spoken = ears(sound(10))
    _, later = ears(3e-4 * torch.randn(1, 20 * SAMPLES_PER_UNIT), spoken)
    level = [state.level_B3[0, 1] / state.level_B3[0, 0] for state in (spoken, later)]
    assert level[1] == pytest.approx(level[0].item(), rel=0.02)


def test_a_quarter_of_the_precision_is_near(ears):
    half = Ears(SMALL).to(torch.bfloat16).eval()
    half.load_state_dict(ears.state_dict())
    audio_BT = sound(8)
    near = torch.nn.functional.cosine_similarity(half(audio_BT)[0].float(), ears(audio_BT)[0], dim=2)
    assert near.mean() > 0.99


def test_layers_end_in_the_features(ears):
    layers, _ = ears.layered(sound(2))
    assert len(layers) == SMALL.layers
    assert torch.equal(layers[-1], ears(sound(2))[0])


def test_rotation_is_relative():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator) for _ in range(2))

    def product(at: int, other: int) -> float:
        turned = [rotate(x, turns(1, SMALL, place)) for x, place in ((q, at), (k, other))]
        return (turned[0] * turned[1]).sum().item()

    assert product(3, 1) == pytest.approx(product(40, 38), abs=1e-4)
    assert product(3, 1) != pytest.approx(product(3, 2), abs=1e-3)


@pytest.mark.parametrize(
    "audio",
    [
        torch.zeros(SAMPLES_PER_UNIT),
        torch.zeros(1, 100),
        torch.zeros(1, 0),
        torch.zeros(1, SAMPLES_PER_UNIT, dtype=torch.int16),
        torch.zeros(1, SAMPLES_PER_UNIT, dtype=torch.float64),
        torch.zeros(1, 1, SAMPLES_PER_UNIT),
    ],
)
def test_bad_sound_is_told(ears, audio):
    with pytest.raises(ShapeError, match="audio_BT: expected"):
        ears(audio)


def test_a_state_of_something_else_is_told(ears):
    _, state = ears(sound(1, rows=2))
    with pytest.raises(ShapeError, match="expected 1 streams"):
        ears(sound(1), state)


@pytest.mark.parametrize(
    "wrong", [{"rate": 16_000}, {"heads": 5}, {"rotary": 9}, {"window": 0}, {"kernels": (127, 2, 3)}, {"layers": 0}]
)
def test_bad_shapes_of_the_encoder_are_told(wrong):
    with pytest.raises(ConfigError):
        dataclasses.replace(SMALL, **wrong)


def test_ears_are_kept_in_a_folder(ears, tmp_path):
    save_ears(ears, tmp_path / "ears")
    audio_BT = sound(2)
    assert torch.equal(load_ears(tmp_path / "ears")(audio_BT)[0], ears(audio_BT)[0])
    (tmp_path / "ears" / "config.json").write_text(json.dumps({"width": 32, "ears": 2}))
    with pytest.raises(ConfigError, match="ears"):
        load_ears(tmp_path / "ears")
    with pytest.raises(CheckpointError):
        load_ears(tmp_path)


# ---------------------------------------------------------------- the resampler


@pytest.fixture(scope="module")
def resampler() -> Resampler:
    return Resampler(SAMPLE_RATE, 16_800)


def tone(hz: float, rate: int, count: int, late: float = 0.0) -> torch.Tensor:
    return torch.sin(2 * math.pi * hz * (torch.arange(count, dtype=torch.float64) / rate - late)).float()[None]


@pytest.mark.parametrize("hz", [60, 440, 3000, 7000])
def test_a_tone_stays_and_comes_late_by_what_is_stated(resampler, hz):
    out_BT, _ = resampler(tone(hz, SAMPLE_RATE, 2 * SAMPLES_PER_UNIT))
    wanted_BT = tone(hz, 16_800, out_BT.shape[1], late=resampler.delay_s)
    assert out_BT.shape[1] == 2 * 2688
    assert (out_BT - wanted_BT)[:, 200:].abs().max() < 5e-3
    assert resampler.delay_s < 0.003


@pytest.mark.parametrize("hz", [8500, 9500, 11_500])
def test_what_does_not_fit_the_new_rate_is_gone(resampler, hz):
    out_BT, _ = resampler(tone(hz, SAMPLE_RATE, 2 * SAMPLES_PER_UNIT))
    assert out_BT[:, 200:].square().mean().sqrt() < 10 ** (-60 / 20)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_resampling_in_pieces_is_exact(resampler, sizes):
    audio_BT = sound(1)[:, : 10 * sum(sizes)]
    past, pieces = None, []
    for piece_BT in audio_BT.split([10 * size for size in sizes], dim=1):
        out_BT, past = resampler(piece_BT, past)
        pieces.append(out_BT)
    torch.testing.assert_close(torch.cat(pieces, 1), resampler(audio_BT)[0], atol=1e-6, rtol=0)


def test_a_length_that_does_not_fit_is_told(resampler):
    with pytest.raises(ShapeError, match="multiple of 10"):
        resampler(torch.zeros(1, 15))


# ---------------------------------------------------------------- corpus and texts


@pytest.fixture
def corpus(tmp_path):
    rng = np.random.default_rng(0)
    for source, voice in (("people", "anna"), ("piper", "joe")):
        writer = CorpusWriter(tmp_path, source)
        for i in range(12):
            audio_T = 0.1 * rng.standard_normal(20_000 + 3_000 * i, np.float32)
            writer.add(audio_T, voice, f"{voice} says {i}", "test" if i == 0 else "train")
    return tmp_path


def test_a_corpus_gives_back_what_was_put_in(tmp_path):
    audio_T = np.linspace(-0.9, 0.9, 5000, dtype=np.float32)
    CorpusWriter(tmp_path, "a").add(audio_T, "v", "one two", "train")
    CorpusWriter(tmp_path, "a").add(-audio_T, "w", "", "train", "two")
    first, second = load_corpus(tmp_path, "train")
    np.testing.assert_allclose(read_clip(tmp_path, first), audio_T, atol=2e-5)
    np.testing.assert_allclose(read_clip(tmp_path, second), -audio_T, atol=2e-5)
    assert (second.voice, second.text, second.slots) == ("w", "", "two")
    save_heard(tmp_path, "a", {str(second.start): "heard"})
    assert [clip.text for clip in load_corpus(tmp_path, "train", heard=True)] == ["one two", "heard"]


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
    assert whole_plan(Folders()) == {}
    assert set(whole_plan(Folders(people=tmp_path))) == {"reader", "orders"}
    everything = whole_plan(Folders(tmp_path, tmp_path, tmp_path, tmp_path))
    assert set(SOURCES) - {"flite"} <= set(everything)
    assert everything["kokoro-test"] == ("kokoro", 4.5, "test")


def test_hibari_says_every_sentence_with_another_speaker_until_it_is_enough(tmp_path):
    (tmp_path / "ami").mkdir()
    (tmp_path / "talk").mkdir()
    header = "meeting\tspeaker\tkind\ttext\n"
    with gzip.open(tmp_path / "ami" / "words.tsv.gz", "wt") as file:
        file.write(header + "".join(f"m\ta\tw\t{word}\n" for word in ["we", "meet", "here"]) + "m\ta\tpunc\t.\n")
    for name in ("topical", "orders"):
        with gzip.open(tmp_path / "talk" / f"{name}.tsv.gz", "wt") as file:
            file.write("text\nI like the sea. Do you like it too? It is very blue.\n")
    (tmp_path / "talk" / "chat.tsv").write_text("text\nNice weather today. Is it not?\n")
    texts = Folders(texts=tmp_path)
    made = make_corpus(tmp_path / "corpus", "hibari", texts, 0.1)
    assert 0.1 <= made < 0.2
    assert make_corpus(tmp_path / "corpus", "hibari", texts, 0.1) == made
    clips = load_corpus(tmp_path / "corpus", "train")
    assert len({clip.voice for clip in clips}) == len(clips) > 1
    assert all(" ".join(word for word, _, _ in clip.words) == clip.text for clip in clips)


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


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize(
    ("said", "heard", "wrong"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "a c", 1),
        ("a b c", "a x c", 1),
        ("a b c", "a b b c", 1),
        ("a b c", "", 3),
        ("a b", "c d e f g", 2),
        ("a b c d", "b c d a", 2),
    ],
)
def test_words_wrong(said, heard, wrong):
    assert words_wrong(said.split(), heard.split()) == wrong


def test_words_are_compared_without_marks():
    assert normal_words("It\u2019s 2 o'clock, Well-known!") == ["it's", "two", "o'clock", "well", "known"]
    assert slots_right("triple shot Soy-Milk", normal_words("A triple shot with milk")) == 3


def test_noise_has_the_level_that_was_asked_for():
    audio_T = tone(300, SAMPLE_RATE, SAMPLE_RATE)[0].numpy()
    noise_T = with_noise(audio_T, 15, 0) - audio_T
    assert 20 * np.log10(audio_T.std() / noise_T.std()) == pytest.approx(15, abs=0.2)


# ---------------------------------------------------------------- with the teacher


@pytest.mark.moonshine
def test_the_teacher_is_the_original():
    import onnxruntime

    from wan_streamer.training.ears.moonshine import _folder
    from wan_streamer.training.ears.teacher import Teacher

    session = onnxruntime.InferenceSession(str(_folder() / "encoder_model.ort"))
    wave_BT = 0.3 * tone(200, 16_000, 48_000) * (1 + tone(3, 16_000, 48_000)) + 0.02 * sound(13)[:, :48_000]
    given = {"input_values": wave_BT.numpy(), "attention_mask": np.ones(wave_BT.shape, np.int64)}
    theirs_BTD = torch.from_numpy(session.run(None, given)[0])
    ours_BTD = Teacher().encode(wave_BT)[-1]
    assert theirs_BTD.shape == ours_BTD.shape
    assert torch.nn.functional.cosine_similarity(ours_BTD, theirs_BTD, dim=2).mean() > 0.99


def test_the_teacher_hears_clips_of_a_batch_as_if_alone(ears):
    from wan_streamer.training.ears.teacher import Teacher

    teacher = Teacher(ears.state_dict(), ears.config)
    long_BT, short_BT = sound(5), sound(2, seed=3)
    batch_BT = torch.cat([long_BT, torch.nn.functional.pad(short_BT, (0, long_BT.shape[1] - short_BT.shape[1]))])
    together = teacher(batch_BT, torch.tensor([5, 2]))
    for row, alone_BT in enumerate((long_BT, short_BT)):
        for layer, alone_BTD in zip(together, teacher(alone_BT), strict=True):
            torch.testing.assert_close(layer[row, : alone_BTD.shape[1]], alone_BTD[0], rtol=1e-4, atol=1e-4)


@pytest.mark.moonshine
def test_the_vocabulary_goes_there_and_back():
    from wan_streamer.training.ears.moonshine import Tokenizer

    tokenizer = Tokenizer()
    for text in ("One tall latte, please.", "It's \u00e9t\u00e9 \u2014 okay?", "Mm-hmm."):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("please")) == 1


@pytest.mark.moonshine
def test_reading_with_a_cache_is_reading_at_once():
    """Greedy tokens, read step by step, are the likeliest at once."""
    from wan_streamer.training.ears.reader import load_reader, padded_texts

    reader = load_reader()
    features_BTD = torch.randn(2, 40, 288, generator=torch.Generator().manual_seed(0))
    frames_B = torch.tensor([40, 25])
    texts = reader.transcribe(features_BTD, frames_B)
    assert all(texts)
    best = reader.cross_entropy(features_BTD[1:, :25], frames_B[1:], padded_texts([texts[1]]))
    torch.testing.assert_close(reader.cross_entropy(features_BTD[1:], frames_B[1:], padded_texts([texts[1]])), best)
    worse = reader.cross_entropy(features_BTD[1:], frames_B[1:], padded_texts([[token + 1 for token in texts[1]]]))
    assert worse > best


@pytest.mark.moonshine
def test_training_resumes_as_if_it_had_not_stopped(corpus, tmp_path):
    from wan_streamer.tensors import load_tensors
    from wan_streamer.training.ears.stage import CONFIG, FOLDER, EarsStage
    from wan_streamer.training.loop.trainer import Trainer

    config = dataclasses.replace(CONFIG, batch=1, warmup=1, steps=4)

    def trainer(name: str, steps: int) -> Trainer:
        stage = EarsStage(corpus, dataclasses.replace(config, steps=steps), streams=StreamConfig(units=20))
        return Trainer(stage, tmp_path / name)

    trainer("whole", 4).run()
    first = trainer("parts", 4)
    first.run(minutes=0.0)
    assert 0 < first.step < 4
    second = trainer("parts", 4)
    second.resume()
    second.run()
    ours, theirs = (load_tensors(tmp_path / name / FOLDER / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
