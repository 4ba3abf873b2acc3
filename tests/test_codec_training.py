"""The codec stages keep to their device, and show what they have learned without changing the run."""

import contextlib
import dataclasses
import itertools
import math
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import TALKER, tiny_weights
from tiny_world import make_codec_arrays, save_codecs

from wan_streamer import presets
from wan_streamer.codecs.folder import load_codec, load_codecs, load_light
from wan_streamer.codecs.video_vae import frames_to_video
from wan_streamer.config import VideoDecoderConfig
from wan_streamer.device import find_device
from wan_streamer.errors import CheckpointError, ConfigError, DataError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.training.codecs.audio import AudioCodecStage, _stretch
from wan_streamer.training.codecs.run import STAGES, train_codec
from wan_streamer.training.codecs.samples import ERROR_GAIN, FILM_FRAMES, SHOWN, SILENCE, SOUND_SECONDS
from wan_streamer.training.codecs.stage import load_array
from wan_streamer.training.codecs.video import VideoCodecStage
from wan_streamer.training.loop.parallel import World
from wan_streamer.training.loop.stage import Stage, TrainConfig
from wan_streamer.training.loop.trainer import Trainer
from wan_streamer.units import SAMPLE_RATE

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # "Mean of empty slice" and its like

both_stages = pytest.mark.parametrize("stage_class", [AudioCodecStage, VideoCodecStage])


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: TALKER)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_codec_arrays(tmp_path_factory.mktemp("arrays"))


def small_run(stage_class: type, arrays: Path, out: Path, device: str = "cpu") -> Trainer:
    config = TrainConfig(steps=4, lr=1e-3, muon_lr=1e-3, batch=2, warmup=2, validate_every=2)
    return Trainer(stage_class("tiny", arrays, config), out, World(torch.device(device)))


# ---- the device


@both_stages
def test_loss_stays_on_the_device(
    stage_class: type, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device: what is left on the CPU does not mix with it, and a step that reads a value fails."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # meta has none
    monkeypatch.setattr("wan_streamer.training.codecs.audio.ADVERSARIAL_PART", 0.5)
    trainer = small_run(stage_class, arrays, tmp_path, "meta")
    batch = trainer.stage.batch(3, range(2))
    media = batch[0] if isinstance(batch, tuple) else batch
    assert media.device.type == "cpu"
    loss, numbers = trainer.stage.loss(batch, 3, RowNoise(0, 3, range(2)))  # with the critic
    assert "critic" in numbers or stage_class is VideoCodecStage
    loss.backward()
    for value in (loss, *numbers.values(), *(p.grad for p in trainer.named.values()), *trainer.ema.values.values()):
        assert isinstance(value, torch.Tensor)
        assert value.device.type == "meta"


def test_cuda_gets_the_batch_through_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: moved.append("pinned") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *to, **how: moved.append((*to, how)) or tensor)
    stage = VideoCodecStage.__new__(VideoCodecStage)
    stage.device = torch.device("cuda:1")
    stage.move(torch.zeros(1))
    assert moved == ["pinned", (torch.device("cuda:1"), {"non_blocking": True})]


def test_find_device() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:99", "meta", "toaster", ""):
        with pytest.raises(ConfigError, match=r"expected auto, cpu, cuda or cuda:N"):
            find_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="device 'cuda'"):
        find_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@both_stages
def test_a_run_moves_between_devices(stage_class: type, arrays: Path, tmp_path: Path) -> None:
    small_run(stage_class, arrays, tmp_path, "cuda").run(minutes=0)
    trainer = small_run(stage_class, arrays, tmp_path, "cpu")
    trainer.resume()
    trainer.run(minutes=0)
    trainer = small_run(stage_class, arrays, tmp_path, "cuda")
    trainer.resume()
    assert trainer.step == 2
    assert all(np.isfinite(value) for value in trainer.run().values())


# ---- samples


def read_png(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return next(file.decode(video=0)).to_ndarray(format="rgb24")


@both_stages
def test_samples_do_not_change_the_run(
    stage_class: type, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = small_run(stage_class, arrays, tmp_path / "shown")
    shown.run()
    names = {path.name for path in (tmp_path / "shown" / "samples").iterdir()}
    endings = (".png", ".wav") if stage_class is AudioCodecStage else (".png",)
    assert names == {f"step-{step:06d}{ending}" for step in (2, 4) for ending in endings}

    monkeypatch.setattr(stage_class, "write_samples", Stage.write_samples)
    small_run(stage_class, arrays, tmp_path / "plain").run()
    assert not (tmp_path / "plain" / "samples").exists()
    left, right = (load_file(tmp_path / name / "trainer.safetensors") for name in ("shown", "plain"))
    assert all(torch.equal(left[key], right[key]) for key in left.keys() | right.keys())


@both_stages
def test_samples_draw_no_random_numbers(stage_class: type, arrays: Path, tmp_path: Path) -> None:
    stage = small_run(stage_class, arrays, tmp_path).stage
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    stage.write_samples(tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    stage.write_samples(tmp_path / "b")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_sheet_of_films(arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = small_run(VideoCodecStage, arrays, tmp_path).stage
    monkeypatch.setattr(stage.vae, "reconstruct", lambda frames: (frames // 2 + 60).astype(np.uint8))
    stage.write_samples(tmp_path / "sheet")
    film = np.load(arrays / "other_frames_valid.npy")[:FILM_FRAMES]
    height, width = film.shape[1:3]
    sheet = read_png(tmp_path / "sheet.png")
    assert sheet.shape == (6 * height, len(SHOWN) * width, 3)
    assert any(b == a + 1 and b % 4 == 0 for a, b in itertools.pairwise(SHOWN))  # units meet
    for column, frame in enumerate(SHOWN):
        cells = sheet[3 * height :, column * width : (column + 1) * width].reshape(3, height, width, 3).astype(int)
        assert np.array_equal(cells[0], film[frame])
        assert np.array_equal(cells[1], cells[0] // 2 + 60)
        assert np.array_equal(cells[2], np.minimum(ERROR_GAIN * np.abs(cells[0] - cells[1]), 255))


def test_sound_and_its_picture(arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = small_run(AudioCodecStage, arrays, tmp_path).stage
    monkeypatch.setattr(stage.vae, "reconstruct", lambda audio: audio * 0)
    stage.write_samples(tmp_path / "sound")
    with wave.open(str(tmp_path / "sound.wav")) as file:
        assert (file.getframerate(), file.getnchannels()) == (SAMPLE_RATE, 1)
        played = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    voice, pause = SOUND_SECONDS * SAMPLE_RATE, round(SILENCE * SAMPLE_RATE)
    assert len(played) == 4 * (voice + pause)  # the agent before and after, another before and after
    original = np.load(arrays / "agent_audio_valid.npy")[:voice].astype(int)
    assert np.abs(played[:voice] - original).max() <= 1
    assert not played[voice : 2 * voice + 2 * pause].any()
    sheet = read_png(tmp_path / "sound.png")
    row = (sheet.shape[0] + 4) // 4
    assert sheet[: row - 4].mean() > 10
    assert sheet[row : 2 * row - 4].max() == 0


# ---- from another codec


def begun_from(start: Path, stage_class: type, arrays: Path, out: Path, decoder_only: bool) -> Stage:
    config = TrainConfig(steps=3, lr=1e-2, muon_lr=1e-2, batch=2, warmup=1, validate_every=3)
    trainer = Trainer(stage_class("tiny", arrays, config, str(start), decoder_only), out)
    trainer.run()
    return trainer.stage


@both_stages
def test_the_decoder_alone(stage_class: type, arrays: Path, tmp_path: Path) -> None:
    """Latents before and after are the same, bit for bit; the decoder is another."""
    small_run(stage_class, arrays, tmp_path / "first").run()
    begun_from(tmp_path / "first", stage_class, arrays, tmp_path / "second", decoder_only=True)
    name = f"{stage_class.kind}_vae.safetensors"
    before, after = (load_file(tmp_path / run / name) for run in ("first", "second"))
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert {key for key in before if key.startswith(("enc_", "stats"))} <= same
    assert {"dec_in.weight", "dec_out.weight", "dec_out.bias"} & same == set()


def small_decoder(blocks: tuple[int, int, int] = (1, 1, 1)) -> VideoDecoderConfig:
    return VideoDecoderConfig(channels=(4, 6, 8, 8), blocks=blocks)


@pytest.fixture
def small_light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_streamer.training.codecs.video.VideoDecoderConfig", small_decoder)


def light_stage(arrays: Path, start: Path) -> VideoCodecStage:
    config = TrainConfig(steps=3, lr=1e-2, muon_lr=1e-2, batch=2, warmup=1, validate_every=3)
    return VideoCodecStage("tiny", arrays, config, str(start), light=True)


@pytest.mark.usefixtures("small_light")
def test_a_light_decoder(arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes what fits, learns from latents that are encoded once, and joins all agents with that encoder."""
    small_run(VideoCodecStage, arrays, tmp_path / "first").run()
    stage = light_stage(arrays, tmp_path / "first")
    before = load_file(tmp_path / "first" / "video_vae.safetensors")
    begun = stage.vae.state_dict()
    assert torch.equal(begun["dec_in.weight"], before["dec_in.weight"])
    assert begun["dec_blocks.2.0.conv1.weight"].shape != before["dec_blocks.2.0.conv1.weight"].shape

    frames, latents = stage.batch(0, range(2))
    assert latents is not None
    assert stage.latents is not None
    whole = frames_to_video(torch.from_numpy(np.array(stage.train_data[0][:40]))[None], torch.device("cpu"))
    expected, _ = stage.vae.encode_raw(whole)
    assert torch.equal(torch.from_numpy(np.array(stage.latents[0][:10])), expected[0].half())
    at = next(i for i in range(len(stage.train_data[0])) if np.array_equal(stage.train_data[0][i : i + 12], frames[0]))
    assert torch.equal(latents[0], torch.from_numpy(np.array(stage.latents[0][at // 4 : at // 4 + 3])))
    monkeypatch.setattr(VideoCodecStage, "_encoded", lambda *_: pytest.fail("they were encoded already"))
    Trainer(light_stage(arrays, tmp_path / "first"), tmp_path / "second").run()

    full = load_codec(tmp_path / "first", "video")
    assert load_light(tmp_path / "first", full) is None
    light = load_light(tmp_path / "second", full)
    assert light is not None
    assert light.config.decoder == small_decoder()
    latent, _ = full.encode(whole[:, :8])
    assert torch.equal(light.encode(whole[:, :8])[0], latent)
    drawn, (plain, _) = light.decode(latent)[0], full.decode(latent)
    assert drawn.shape == plain.shape
    assert not torch.equal(drawn, plain)
    with pytest.raises(CheckpointError, match="belongs to encoder"):
        load_light(tmp_path / "second", tiny_weights().video_vae)


def test_refuses_what_has_no_light_decoder(arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="light: expected the codec for video"):
        train_codec("audio", "tiny", arrays, tmp_path, light=True)
    small_run(VideoCodecStage, arrays, tmp_path).run()
    video_vae = dataclasses.replace(TALKER.video_vae, channels=(4, 8, 8, 16))
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: dataclasses.replace(TALKER, video_vae=video_vae))
    with pytest.raises(CheckpointError, match="expected an encoder of the same shape, but enc_"):
        light_stage(arrays, tmp_path)


@both_stages
def test_latents_of_the_agent_are_held(
    stage_class: type, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias shifts one channel, so how far the latents moved is known; the other rows may move as they like."""
    small_run(stage_class, arrays, tmp_path).run()
    stage = stage_class("tiny", arrays, TrainConfig(steps=9, lr=1e-3, batch=4), str(tmp_path))
    batch, channels = stage.batch(0, range(4)), len(stage.vae.stats.std_C)

    def loss_and_moved() -> tuple[float, float]:
        total, numbers = stage.loss(batch, 0, RowNoise(0, 0, range(4)))
        return total.item(), numbers["moved"].item()

    assert loss_and_moved()[1] == 0
    with torch.no_grad():
        stage.vae.enc_out.bias[0] += stage.vae.stats.std_C[channels - len(stage.vae.enc_out.bias)]
    held, moved = loss_and_moved()
    assert moved == pytest.approx(1 / channels, rel=0.1)  # latents are bfloat16
    monkeypatch.setattr(f"wan_streamer.training.codecs.{stage_class.kind}.ANCHOR", 0.0)
    assert held - loss_and_moved()[0] == pytest.approx(5 * moved, rel=0.02)


def test_other_voices_are_played_at_other_speeds() -> None:
    tone = np.sin(2 * np.pi * 50 * np.arange(1200) / 1200).astype(np.float32)  # 50 periods
    for length in (1000, 1200, 1400):
        spectrum = np.abs(np.fft.rfft(_stretch(tone, length)))
        assert spectrum.argmax() == 50
        assert spectrum.max() * 2 / length == pytest.approx(1, abs=1e-3)


def test_refuses_a_start_that_is_not_there(arrays: Path, tmp_path: Path) -> None:
    config = TrainConfig(steps=1, lr=1e-3, batch=2)
    with pytest.raises(ConfigError, match="name one with --from"):
        AudioCodecStage("tiny", arrays, config, None, True)
    with pytest.raises(CheckpointError, match="expected a codec for audio"):
        AudioCodecStage("tiny", arrays, config, str(tmp_path / "nowhere"))


# ---- what is learned


@pytest.mark.parametrize(
    ("stage_class", "steps", "score", "better"),
    [(AudioCodecStage, 20, "agent_mel", -1.0), (VideoCodecStage, 40, "agent_psnr", 2.0)],
)
def test_codec_learns(stage_class: type, steps: int, score: str, better: float, arrays: Path, tmp_path: Path) -> None:
    """A few steps (the last third of the audio codec's with its critic) improve the held-out score."""
    config = TrainConfig(steps=steps, lr=1e-2, batch=2, warmup=2, ema=0.8)
    trainer = Trainer(stage_class("tiny", arrays, config), tmp_path)
    before = trainer.validate()
    after = trainer.run()
    assert (after[score] - before[score]) / better > 1, (before, after)
    assert all(math.isfinite(value) for value in after.values())


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_exported_codec_is_what_was_trained(
    kind: str, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage_class, config = STAGES[kind]
    monkeypatch.setitem(STAGES, kind, (stage_class, dataclasses.replace(config, batch=1)))
    weights = tiny_weights()
    save_codecs(weights.audio_vae, weights.video_vae, tmp_path)  # the other one comes from an earlier run
    train_codec(kind, "tiny", arrays, tmp_path, steps=2)
    scores = train_codec(kind, "tiny", arrays, tmp_path, steps=3, resume=True)
    assert scores
    vae = load_codecs(TALKER, tmp_path)[kind == "video"]
    assert (vae.stats.std_C != 1).all()
    stored = load_file(tmp_path / f"{kind}_vae.safetensors")
    ema = load_file(tmp_path / "trainer.safetensors")
    name = next(name for name in stored if name.endswith("conv.weight"))
    assert torch.equal(stored[name], ema[f"ema.vae.{name}"])


def test_codec_stage_refuses(arrays: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown codec 'smell'"):
        train_codec("smell", "tiny", arrays, tmp_path)
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("pickled", "missing"):
        with pytest.raises(DataError, match=f"{name}.npy"):
            load_array(tmp_path, name)
