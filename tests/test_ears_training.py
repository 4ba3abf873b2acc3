"""Scores of ears, their teacher, and a training that goes on."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_ears import small_corpus, small_ears, sound, tone

from wan_streamer.training.ears.data import StreamConfig
from wan_streamer.training.ears.score import normal_words, slots_right, with_noise, words_wrong
from wan_streamer.units import SAMPLE_RATE


@pytest.fixture(scope="module")
def ears():
    return small_ears()


@pytest.fixture
def corpus(tmp_path):
    return small_corpus(tmp_path)


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
