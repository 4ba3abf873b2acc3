"""What frozen ears and eyes made of a conversation, kept in place of its sound and pictures."""

import dataclasses
from pathlib import Path

import pytest
import senses_of
import torch
from tiny import TALKER, tiny_text, tiny_weights
from tiny_world import make_episode, save_codecs
from typer.testing import CliRunner

from wan_streamer.cli.app import app
from wan_streamer.codecs.folder import codec_hash
from wan_streamer.config import EarsConfig
from wan_streamer.data.latents import LatentStore, encode_shards
from wan_streamer.data.shards import read_shard, write_shard
from wan_streamer.errors import ConfigError, DataError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.layout import Latents
from wan_streamer.model.pretrained import find_checkpoint, load_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.perception.ears import Ears, load_ears, save_ears
from wan_streamer.perception.senses import Senses, load_senses
from wan_streamer.perception.video import VideoPerception, load_eyes, save_eyes, scale_frames
from wan_streamer.training.examples.clips import ClipReader
from wan_streamer.training.loop.parallel import join
from wan_streamer.training.stages.duplex import CONFIG, DuplexStage
from wan_streamer.training.stages.run import RunOptions, run

UNITS = 12
EARS = EarsConfig(width=32, wide=1, layers=2, heads=4, rotary=4, feed=2, window=21, piece=6)
PERCEPTION = dataclasses.replace(TALKER.perception, hearing="ears", seeing="eyes", ears=EARS)
CONFIG_EARS = dataclasses.replace(TALKER, perception=PERCEPTION)


def streamer(seed: int = 0) -> Streamer:
    torch.manual_seed(seed)
    return Streamer(CONFIG_EARS).eval()


def senses(model: Streamer) -> Senses:
    return Senses(model.hearing, model.seeing)  # type: ignore[arg-type]


def encode(folder: Path, split: str, own: Senses, targets: tuple[str, ...] | None = None, units: int = UNITS) -> Path:
    """Two conversations; with `targets`, the second teaches these streams alone."""
    weights, episodes = tiny_weights(), [make_episode(i, units, split) for i in range(2)]
    shards = folder / "shards" / split
    if targets:
        labels = episodes[1].labels | {"targets": list(targets)}
        episodes[1] = dataclasses.replace(episodes[1], labels=labels)
    write_shard(shards / "shard-00000.tar", episodes)
    encode_shards(shards, folder / split, weights.audio_vae, weights.video_vae, PERCEPTION, senses=own)
    save_codecs(weights.audio_vae, weights.video_vae, folder)
    return folder / split


def stage(folder: Path, model: Streamer, **options: int) -> DuplexStage:
    config = dataclasses.replace(CONFIG, steps=20, batch=2, clip_units=8, **options)
    return DuplexStage(model, tiny_text(), folder, config)


def open_store(folder: Path) -> LatentStore:
    weights = tiny_weights()
    return LatentStore(folder, codec_hash(weights.audio_vae, weights.video_vae), PERCEPTION)


@pytest.mark.parametrize("kept", [("ears", "eyes"), ("ears",), ("eyes",)])
def test_a_model_reads_them_as_it_hears_and_sees_a_call(kept: tuple[str, ...], tmp_path: Path) -> None:
    model = streamer()
    own = Senses(**{name: getattr(senses(model), name) for name in kept})
    clip = ClipReader(open_store(encode(tmp_path, "train", own)), CONFIG_EARS, tiny_text(), 8).read(0, 0).clips
    assert clip.user_audio.ndim == (4 if "ears" in kept else 2)
    assert clip.user_video.ndim == (4 if "eyes" in kept else 5)
    sound = torch.from_numpy(make_episode(0, UNITS).user_audio).unflatten(0, (UNITS, -1))
    frames = scale_frames(next(iter(read_shard(tmp_path / "shards/train/shard-00000.tar"))).user_video, PERCEPTION)
    past = Latents(torch.zeros_like(clip.video_BKNP[:, 1:]), torch.zeros_like(clip.audio_BKTC[:, 1:]))
    for microphone, camera in ((True, True), (True, False), (False, True)):
        if microphone and "ears" not in kept:
            continue  # before a clip of sound there is some silence, before a call there is nothing
        flags = {"microphone_BK": torch.full((1, 8), microphone), "camera_BK": torch.full((1, 8), camera)}
        with torch.no_grad():
            asked = dataclasses.replace(clip, **flags)
            read = model(asked, past, torch.zeros(1, 8, 2), None, torch.zeros(1, 8, 2))[1]
            live, called = model.open(), []
            for k in range(8):
                seen = frames[4 * k : 4 * k + 4] if camera else None
                heard = sound[k] if microphone else None
                called.append(model.observe(live, model.silence(), heard, seen, clip.user_text_BKS[0, k]))
                for slot, tokens in enumerate(clip.slot_BKSL[0, k]):
                    model.speak(live, slot, tokens)
        torch.testing.assert_close(read[0, :, 0], torch.stack(called), atol=2e-2, rtol=0)


def test_a_clip_is_a_part_of_the_whole_conversation(tmp_path: Path) -> None:
    """Heard and seen from the first unit on, as in a call, wherever the clip begins."""
    model, store = streamer(), open_store(encode(tmp_path, "train", senses(streamer())))
    whole, part = store.read(0, 0, UNITS), store.read(0, 7, 3, lead=9)
    for name in ("user_audio", "user_video"):
        assert torch.equal(whole[name][7:10], part[name])
    sound = torch.from_numpy(make_episode(0, UNITS).user_audio)
    with torch.no_grad():
        heard, _ = model.hearing(sound[None])
    torch.testing.assert_close(whole["user_audio"].flatten(0, 1), heard[0], atol=3e-3, rtol=0)


def test_conversations_without_a_film_teach_words_and_sound(tmp_path: Path) -> None:
    model = streamer()
    encode(tmp_path, "train", senses(model), ("response", "transcript", "audio"))
    encode(tmp_path, "valid", Senses())
    training = stage(tmp_path, model, draw_every=2)
    training.check_senses()
    for step in range(4):
        batch = training.batch(step, range(40))
        loss, numbers = training.loss(training.batch(step, range(2)), step, RowNoise(0, step, range(2)))
        assert ("video" in numbers) == (step % 2 == 0)
        assert numbers["audio"] > 0
        assert loss.isfinite()
        assert batch.audio_BK.any(1).all()
        assert batch.video_BK.any(1).float().mean() == (1 if step % 2 == 0 else pytest.approx(0.5, abs=0.3))
    encode(tmp_path / "text", "train", senses(model), ("response", "transcript"))
    (tmp_path / "text/train/shard-00000-ep000000.safetensors").unlink()
    encode(tmp_path / "text", "valid", Senses())
    with pytest.raises(DataError, match="expected a conversation with the agent's film"):
        stage(tmp_path / "text", model)


def test_other_ears_and_eyes_are_refused(tmp_path: Path) -> None:
    model, other = streamer(), streamer(1)
    encode(tmp_path, "train", senses(other))
    encode(tmp_path, "valid", Senses())
    options = RunOptions(tmp_path / "run", clip_units=8, steps=1)
    with pytest.raises(DataError, match=r"heard with ears .*, expected .*; make the data again"):
        run(stage(tmp_path, model), options, join("cpu"))
    stage(tmp_path, other).check_senses()
    encode(tmp_path / "other", "train", Senses())
    encode(tmp_path / "other", "valid", senses(other))
    with pytest.raises(DataError, match="valid: expected sound and pictures"):
        stage(tmp_path / "other", other).check_senses()


def test_one_folder_was_perceived_in_one_way(tmp_path: Path) -> None:
    encode(tmp_path, "train", senses(streamer()))
    encode(tmp_path / "raw", "train", Senses())
    stray = tmp_path / "train/shard-00000-ep000009.safetensors"
    (tmp_path / "raw/train/shard-00000-ep000001.safetensors").rename(stray)
    with pytest.raises(DataError, match="heard with ears none, expected"):
        open_store(tmp_path / "train")
    again = encode(tmp_path, "train", senses(streamer(1)))  # others make it stale
    stray.unlink()
    assert open_store(again).senses == senses(streamer(1)).fingerprints


def test_what_does_not_fit_the_preset_is_refused(tmp_path: Path) -> None:
    save_ears(Ears(EARS), tmp_path / "ears")
    save_eyes(VideoPerception(PERCEPTION), tmp_path / "eyes")
    loaded = load_senses(tmp_path / "ears", tmp_path / "eyes", PERCEPTION)
    assert set(loaded.fingerprints) == {"ears", "eyes"}
    assert "none" not in loaded.fingerprints.values()
    with pytest.raises(ConfigError, match="ears: expected a preset that hears"):
        load_senses(tmp_path / "ears", None, TALKER.perception)
    with pytest.raises(ConfigError, match="eyes: expected a preset with eyes"):
        load_senses(None, tmp_path / "eyes", dataclasses.replace(PERCEPTION, video_grid=(3, 3)))
    line = ["simulate", str(tmp_path / "out"), "--hours", "1", "--ears", str(tmp_path / "ears")]
    with pytest.raises(ConfigError, match="go with --encode"):
        CliRunner().invoke(app, line, catch_exceptions=False)


def test_ears_and_eyes_come_out_of_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `scripts/senses_of.py` writes is what the shipped agent hears and sees with."""
    monkeypatch.setattr("sys.argv", ["senses_of.py", "nano", str(tmp_path)])
    senses_of.main()
    streamer = load_weights(find_checkpoint("nano")).streamer
    for mine, its in (
        (load_ears(tmp_path / "ears"), streamer.hearing), (load_eyes(tmp_path / "eyes"), streamer.seeing)
    ):  # fmt: skip
        theirs = its.state_dict()
        assert mine.state_dict().keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name].float()) for name, value in mine.state_dict().items())
