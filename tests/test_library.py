"""The package as a library: what it takes from callers, what it refuses and with which words, and its examples."""

import contextlib
import dataclasses
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from films import make_film
from tiny import TALKER, tiny_weights

import wan_streamer
from wan_streamer import Microphone, ReplyWriter, UserUnit, WanStreamer, read_units
from wan_streamer.data.recordings.prepare import choose_split
from wan_streamer.errors import ConfigError, MediaError, ShapeError
from wan_streamer.model.pretrained import save_weights
from wan_streamer.training.stages import duplex
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT

EXAMPLES = Path(__file__).parent.parent / "examples"
SOUND = np.linspace(-0.5, 0.5, SAMPLES_PER_UNIT, dtype=np.float32)
FRAMES = np.random.default_rng(0).integers(0, 256, (4, 30, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def agent() -> WanStreamer:
    return WanStreamer(tiny_weights(), "tiny")


def test_every_public_name_is_there() -> None:
    assert [name for name in wan_streamer.__all__ if getattr(wan_streamer, name) is None] == []


SOUNDS = {
    "tensor": torch.from_numpy(SOUND),
    "tensor with gradient": torch.from_numpy(SOUND).requires_grad_(),
    "bfloat16 tensor": torch.from_numpy(SOUND).bfloat16(),
    "float64": SOUND.astype(np.float64),
    "big-endian": SOUND.astype(">f4"),
    "list": SOUND.tolist(),
    "strided": np.repeat(SOUND, 2)[::2],
    "reversed": SOUND[::-1].copy()[::-1],
}
PICTURES = {
    "tensor": torch.from_numpy(FRAMES),
    "BGR turned round": FRAMES[..., ::-1].copy()[..., ::-1],
    "channels moved": np.moveaxis(np.moveaxis(FRAMES, -1, 1).copy(), 1, -1),
    "read-only": np.frombuffer(FRAMES.tobytes(), np.uint8).reshape(FRAMES.shape),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", SOUNDS)
def test_sound_of_every_layout(kind: str, agent: WanStreamer) -> None:
    unit = UserUnit(audio=SOUNDS[kind])
    assert (unit.audio.dtype, unit.audio.shape) == (np.float32, SOUND.shape)
    assert np.abs(unit.audio - SOUND).max() < 0.003
    agent.session().step(unit)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_of_every_layout(kind: str, agent: WanStreamer) -> None:
    unit = UserUnit(video=PICTURES[kind])
    assert np.array_equal(unit.video, FRAMES)
    agent.session().step(unit)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"audio": torch.zeros(100)}, r"float32 \[3840\], got float32 \[100\].*Microphone"),
        ({"audio": torch.zeros(1, SAMPLES_PER_UNIT)}, r"got float32 \[1, 3840\]"),
        ({"audio": torch.zeros(SAMPLES_PER_UNIT, dtype=torch.int16)}, "got int16"),
        ({"audio": "hello.wav"}, "got str"),
        ({"audio": [[0.0], [0.0, 1.0]]}, "got list"),
        ({"audio": SOUND * 32768}, r"in \[-1, 1\], got a peak of 16384"),
        ({"audio": np.full(SAMPLES_PER_UNIT, np.nan)}, "got a peak of nan"),
        ({"video": torch.from_numpy(FRAMES).permute(0, 3, 1, 2)}, r"got uint8 \[4, 3, 30, 40\].*channels last"),
        ({"video": torch.zeros(4, 30, 40, 3)}, "expected uint8 .*got float32"),
        ({"video": FRAMES[:, :0]}, r"got uint8 \[4, 0, 40, 3\]"),
        ({"text": b"hello"}, "expected a str, got bytes"),
    ],
)
def test_what_a_unit_cannot_be(bad: dict, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        UserUnit(**bad)


def test_a_session_takes_units(agent: WanStreamer) -> None:
    with pytest.raises(ShapeError, match="expected a UserUnit, got ndarray"):
        agent.session().step(SOUND)


def test_codecs_take_tensors(agent: WanStreamer) -> None:
    assert np.array_equal(agent.audio_vae.reconstruct(torch.from_numpy(SOUND)), agent.audio_vae.reconstruct(SOUND))
    frames = FRAMES[:, :16, :32]
    assert np.array_equal(agent.video_vae.reconstruct(torch.from_numpy(frames)), agent.video_vae.reconstruct(frames))


# ---- options of a session


def test_options_of_a_session(agent: WanStreamer) -> None:
    def answer(**options: float) -> list[np.ndarray]:
        session = agent.session(**options)
        return [session.step(UserUnit(audio=SOUND)).audio for _ in range(3)]

    def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
        return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    default = answer()
    assert same(default, answer(seed=0, steps=agent.default_steps, temperature=0, start_bias=0))
    for changed in ({"seed": 1}, {"steps": 5}, {"temperature": 2.0}):
        assert not same(default, answer(**changed))
    quiet = agent.session(temperature=1.0, start_bias=-1000)
    assert not any(quiet.step(UserUnit(audio=SOUND)).text for _ in range(8))
    assert agent.session().config == agent.config


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "flow.steps: expected 1 to 1000, got 0"),
        ({"steps": 2.5}, "flow.steps: expected int, got 2.5"),
        ({"temperature": -1}, "text.temperature: expected 0 to 100"),
        ({"temperature": "hot"}, "text.temperature: expected float, got 'hot'"),
        ({"start_bias": float("nan")}, "text.start_bias: expected -1000 to 1000, got nan"),
        ({"seed": -1}, "flow.seed: expected 0 to"),
        ({"seed": "a"}, "flow.seed: expected int"),
    ],
)
def test_options_out_of_range(options: dict, words: str, agent: WanStreamer) -> None:
    with pytest.raises(ConfigError, match=words):
        agent.session(**options)


# ---- a microphone


@pytest.mark.parametrize(
    ("length", "rate"), [(1, SAMPLE_RATE), (479, SAMPLE_RATE), (3840, SAMPLE_RATE), (50_000, SAMPLE_RATE), (97, 44_100)]
)
def test_a_microphone_cuts_pieces_of_any_length(length: int, rate: int) -> None:
    time = np.arange(rate // 2) / rate
    tone = (0.5 * np.sin(2 * np.pi * 300 * time)).astype(np.float32)
    microphone = Microphone(rate)
    units = [unit for start in range(0, len(tone), length) for unit in microphone.push(tone[start : start + length])]
    units += microphone.finish()
    assert len(units) == 4  # 0.5 s
    sound = np.concatenate([unit.audio for unit in units])
    truth = 0.5 * np.sin(2 * np.pi * 300 * np.arange(12_000) / SAMPLE_RATE)
    assert np.abs(sound[50:11_900] - truth[50:11_900]).max() < 0.01
    assert not sound[12_050:].any()
    assert microphone.finish() == []


def test_a_microphone_takes_what_recorders_give() -> None:
    for samples in (
        np.tile(SOUND[:, None], (1, 2)),
        (SOUND[:, None] * 32768).astype(np.int16),
        torch.from_numpy(SOUND),
        SOUND.tolist(),
    ):
        (unit,) = Microphone().push(samples)
        assert np.abs(unit.audio - SOUND).max() < 1e-4
    assert Microphone().push([]) == []


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros((2, 480)), r"up to 8 channels\], got float64 \[2, 480\]"),
        (np.zeros(480, np.int32), "got int32"),
        (np.full(480, np.inf), "finite"),
        (None, "got NoneType"),
    ],
)
def test_what_a_microphone_cannot_take(samples: object, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        Microphone().push(samples)
    with pytest.raises(ShapeError, match="rate"):
        Microphone(0)


def test_a_reader_takes_paths() -> None:
    with pytest.raises(MediaError, match="expected the path of a file, got Tensor"):
        read_units(torch.zeros(3))


def test_a_writer_is_closed_or_leaves_nothing(tmp_path: Path, agent: WanStreamer) -> None:
    out = agent.session().step(UserUnit())
    with ReplyWriter(tmp_path / "reply.mp4", *agent.frame_size) as film:
        film.write(UserUnit(), out)
    with contextlib.suppress(RuntimeError), ReplyWriter(tmp_path / "broken.mp4", *agent.frame_size) as film:
        film.write(UserUnit(), out)
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["reply.mp4"]


# ---- the examples, as a user runs them


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_weights(tiny_weights(), tmp_path / "tiny")
    return tmp_path / "tiny"


def test_example_film(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    me, reply = make_film(tmp_path / "me.mp4", seconds=0.8), tmp_path / "reply.mp4"
    run(monkeypatch, "film.py", me, reply, checkpoint)
    with read_units(reply) as units:
        assert len(list(units)) == 5
    assert str(reply) in capsys.readouterr().out


def test_example_microphone(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "microphone.py", checkpoint, 0.5)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_example_finetune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(TALKER, video_vae=dataclasses.replace(TALKER.video_vae, height=192, width=336))
    save_weights(tiny_weights(config=config), tmp_path / "tiny")
    monkeypatch.setattr(duplex, "VALIDATION", (1, 2))
    monkeypatch.setattr(duplex, "CONFIG", dataclasses.replace(duplex.CONFIG, clip_units=6, batch=1))
    (tmp_path / "mine").mkdir()
    for split in ("train", "valid"):
        name = next(name for name in map(str, range(1000)) if choose_split(name) == split)
        for side in ("user", "agent"):
            make_film(tmp_path / "mine" / f"{name}.{side}.mp4", seconds=2.2, layout="mono")
    run(monkeypatch, "finetune.py", tmp_path / "mine", tmp_path / "out", tmp_path / "tiny", 2)
    assert WanStreamer.from_pretrained(tmp_path / "out" / "agent").config == config
