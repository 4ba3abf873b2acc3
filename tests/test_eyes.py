"""Eyes that are trained alone: clips and what is said about them, learning, folders, and models that see with them."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import TALKER, tiny_text, tiny_weights
from tiny_world import make_latents
from typer.testing import CliRunner

from wan_streamer import presets
from wan_streamer.cli.app import app
from wan_streamer.config import PerceptionConfig, load_config
from wan_streamer.errors import CheckpointError, ConfigError
from wan_streamer.model.pretrained import save_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.perception.video import VideoPerception, load_eyes, save_eyes, scale_frames
from wan_streamer.simulation.face.motion import HAND_GESTURES, HEAD_GESTURES
from wan_streamer.simulation.face.person import COLOURS, FINGERS, PROPS, FaceIdentity, FacePose, HandPose
from wan_streamer.simulation.face.props import PAINTS
from wan_streamer.simulation.face.renderer import FaceRenderer
from wan_streamer.training.eyes import data
from wan_streamer.training.eyes.camera import Camera
from wan_streamer.training.eyes.data import KINDS, Clip, ClipConfig, ClipMaker
from wan_streamer.training.eyes.labels import CLASSES, NONE, UNKNOWN, VALUES
from wan_streamer.training.eyes.place import head_place, palm_place, thing_place
from wan_streamer.training.eyes.stage import Clips, EyesLoss, EyesStage
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.loop.trainer import Trainer
from wan_streamer.training.stages import duplex
from wan_streamer.training.stages.adopt import adopt
from wan_streamer.training.stages.duplex import train_duplex
from wan_streamer.training.stages.run import RunOptions

SHAPE = PerceptionConfig(video_channels=(16, 32, 64), video_grid=(2, 3), video_ticks=1, video_blocks=1)
SMALL = dataclasses.replace(SHAPE, video_height=48, video_width=84)


def maker(split: str = "train", seed: int = 0, units: int = 1, **kinds: float) -> ClipMaker:
    """Clips at the size of `nano-ears`, all of some kinds of gesture; without any, as in training."""
    return ClipMaker(SHAPE, split, ClipConfig(units=units, **({"kinds": kinds} if kinds else {})), seed)  # type: ignore[arg-type]


def answers(clip: Clip, unit: int = -1) -> dict[str, str | None]:
    """What is said about a unit in words; None for what cannot be told."""
    classes = zip(CLASSES.items(), clip.classes_KA[unit].tolist(), strict=True)
    return {name: None if number == UNKNOWN else names[number] for (name, names), number in classes}


def numbers(clip: Clip) -> dict[str, float]:
    values = zip(VALUES.items(), clip.values_KA[-1].tolist(), strict=True)
    return {name: value * spread + middle for (name, (middle, spread)), value in values}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """(poses, hands, props) of every film that is drawn."""
    seen: list[tuple] = []
    film = FaceRenderer.film

    def watched(renderer: FaceRenderer, poses: list, hands: list, props: list) -> np.ndarray:
        seen.append((poses, hands, props))
        return film(renderer, poses, hands, props)

    monkeypatch.setattr(FaceRenderer, "film", watched)
    return seen


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator's camera, and nothing done to its picture."""
    monkeypatch.setattr(Camera, "sample", staticmethod(lambda rng: Camera()))
    monkeypatch.setattr(data, "developed", lambda frames, rng: frames)


# -------------------------------------------------------------------- clips


def test_a_clip_is_a_function_of_seed_step_and_row() -> None:
    first, other = maker(), maker()
    other.make(0, 5)
    rows = [(2, 0), (2, 5), (1, 5)]
    here, there = [first.make(*row) for row in rows], [other.make(*row) for row in reversed(rows)][::-1]
    for one, two in zip(here, there, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(two).values(), strict=True))
    different = [*here, maker(seed=1).make(2, 0), maker("valid").make(2, 0)]
    assert len({clip.frames_THWC.numpy().tobytes() for clip in different}) == len(different)


def test_splits_share_no_face() -> None:
    faces = {}
    for split in ("train", "valid", "test"):
        people = [maker(split).person(0, number).identity for number in range(60)]
        faces[split] = {(who.skin, who.hair, who.hair_style) for who in people}
        assert len(faces[split]) > 20
    assert sum(map(len, faces.values())) == len(set().union(*faces.values()))


def test_shapes_and_units() -> None:
    clip = maker(units=2).make(0, 0)
    assert clip.frames_THWC.shape == (9, 96, 168, 3)
    assert clip.frames_THWC.dtype == torch.uint8
    assert clip.classes_KA.shape == (2, len(CLASSES))
    assert clip.values_KA.shape == (2, len(VALUES))
    with pytest.raises(ConfigError, match="units"):
        maker(units=0)


def test_everything_that_can_be_asked_about_is_there() -> None:
    assert set(CLASSES["thing"]) == {NONE}.union(*PROPS.values())
    assert CLASSES["colour"] == COLOURS
    assert set(KINDS) == {*HAND_GESTURES, *HEAD_GESTURES, "count", ""}


# -------------------------------------------------------------------- the truth


def test_nothing_held_is_nothing(drawn: list[tuple]) -> None:
    clips = maker(**{"": 1.0})
    for row in range(4):
        said = answers(clips.make(0, row))
        assert (said["thing"], said["colour"], said["hand"], said["waves"]) == (NONE, None, NONE, "no")
        assert not any([*drawn[-1][1], *drawn[-1][2]])


def test_what_is_held_is_said(drawn: list[tuple]) -> None:
    clips, told = maker(show=1.0), 0
    for row in range(16):
        said, (_, hands, props) = answers(clips.make(0, row)), drawn[-1]
        if said["thing"] not in (None, NONE):
            assert (said["thing"], said["colour"]) == (props[-1].name, props[-1].colour)
            assert said["hand"] in (None, hands[-1].shape)  # a hand may be half below the picture
            told += 1
    assert told >= 10


def test_the_colour_that_is_said_is_in_the_picture(plain: None, drawn: list[tuple]) -> None:
    clips, right = maker(show=1.0), 0
    for row in range(40):
        clip = clips.make(1, row)
        said, hand, prop = answers(clip), drawn[-1][1][-1], drawn[-1][2][-1]
        if said["thing"] in (None, NONE) or prop.kind != "shape":
            continue
        x, y = thing_place(hand)
        pixel = clip.frames_THWC[-1, round((y + 1) * 48), round((x + 1) * 84)].float()
        nearest = min(PAINTS, key=lambda name: (pixel - torch.tensor(PAINTS[name])).square().sum().item())
        assert nearest == said["colour"], prop
        right += 1
    assert right >= 5


@pytest.mark.parametrize(("shape", "fingers"), FINGERS.items())
def test_fingers_are_counted(shape: str, fingers: int, plain: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "COUNTING", (shape,))
    clips = ClipMaker(SHAPE, "train", ClipConfig(kinds={"count": 1.0}, moving=0.0), 0)
    said = answers(clips.make(0, fingers))
    assert (said["hand"], said["thing"], said["waves"]) == (shape, NONE, "no")


def test_hands_that_count_show_that_many_fingers() -> None:
    """The upper edge of a hand rises to every tip and falls after it."""
    renderer, pose = FaceRenderer(FaceIdentity(), 768, 1344), FacePose()  # four times as large
    for shape in ("point", "two", "three", "four"):
        seen_HW = (renderer.render(pose, HandPose(shape, 0.6, 0.0)) != renderer.render(pose)).any(-1)
        edge_W = np.where(seen_HW.any(0), seen_HW.argmax(0), 768)
        steps = np.diff(np.minimum(edge_W, 384 - 24 * 4))  # what is lower than that is no finger
        steps = np.sign(steps[steps != 0])
        assert ((steps[:-1] < 0) & (steps[1:] > 0)).sum() == FINGERS[shape], shape


def test_half_a_hand_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    at = {"y": 0.3}
    real = data.gesture_tracks

    def low(*arguments: object) -> tuple[list, list]:
        hands, props = real(*arguments)  # type: ignore[arg-type]
        return [hand and dataclasses.replace(hand, y=at["y"]) for hand in hands], props

    monkeypatch.setattr(data, "gesture_tracks", low)
    monkeypatch.setattr(Camera, "sample", staticmethod(lambda rng: Camera()))
    clips = ClipMaker(SHAPE, "train", ClipConfig(kinds={"thumb_up": 1.0}, moving=0.0), 0)
    for at["y"], hand in ((0.3, "thumb"), (1.2, None), (1.8, NONE)):
        assert answers(clips.make(0, 0))["hand"] == hand


def test_a_wave_is_one_while_the_hand_is_up(drawn: list[tuple]) -> None:
    waving, still = maker(wave=1.0), maker(touch_face=1.0)
    said = [answers(waving.make(0, row))["waves"] for row in range(12)]
    assert "yes" in said
    assert said.count("yes") >= 7
    assert {answers(still.make(0, row))["waves"] for row in range(6)} == {"no"}


def test_the_person_is_described() -> None:
    clips, known = maker(), set()
    for row in range(0, 80, 4):
        who, said = clips.person(0, row // data.ROWS).identity, answers(clips.make(0, row))
        assert (said["hair_style"], said["beard"]) == (who.hair_style, who.beard)
        assert said["glasses"] == ("yes" if who.glasses else "no")
        assert (said["hair"] is None) == (who.hair_style == "bald")
        known.add((said["shirt"], who.shirt))
    assert len(known) == len({shirt for shirt, _ in known}) == len({colour for _, colour in known})


def test_numbers_are_those_of_the_last_frame(plain: None, drawn: list[tuple]) -> None:
    clip = maker(units=2).make(0, 1)
    pose, said = drawn[-1][0][-1], numbers(clip)
    for name in ("smile", "mouth_open", "blink", "gaze_x", "brow", "yaw", "pitch"):
        assert said[name] == pytest.approx(getattr(pose, name), abs=1e-5)
    assert said["brightness"] == pytest.approx(clip.frames_THWC[-1].float().mean().item() / 255, abs=1e-5)


@pytest.mark.parametrize("pose", [FacePose(), FacePose(head_x=1, head_y=-1, lean=0.9), FacePose(lean=-1, roll=0.5)])
def test_the_head_is_where_it_is_said_to_be(pose: FacePose) -> None:
    """Eyes that close are as far above the middle of the face as they are drawn."""
    who = FaceIdentity()
    renderer = FaceRenderer(who)
    moved = (renderer.render(pose) != renderer.render(dataclasses.replace(pose, blink=1.0))).any(-1)
    rows, columns = np.nonzero(moved)
    x, y, tilt = head_place(pose)
    up = 9.5 * who.scale
    turn = np.radians(tilt)
    assert columns.mean() == pytest.approx(168 + x * 168 + up * np.sin(turn), abs=1.5)
    assert rows.mean() == pytest.approx(96 + y * 96 - up * np.cos(turn), abs=1.5)


@pytest.mark.parametrize("camera", [Camera(turn=5.0), Camera(zoom=1.1, x=0.05), Camera(-4.0, 0.9, -0.06, 0.08)])
def test_a_moved_camera_knows_where_things_are(camera: Camera) -> None:
    frames_THWC = torch.zeros(1, 96, 168, 3, dtype=torch.uint8)
    place = palm_place(HandPose("open", 0.5, 0.4))
    row, column = round((place[1] + 1) * 48), round((place[0] + 1) * 84)
    frames_THWC[:, row - 2 : row + 2, column - 2 : column + 2] = 255
    weight = camera.moved(frames_THWC)[0, ..., 0].double()
    rows, columns = torch.arange(96) + 0.5, torch.arange(168) + 0.5
    x, y = camera.place(column / 84 - 1, row / 48 - 1, 168 / 96)
    assert (weight.sum(0) @ columns.double() / weight.sum()).item() == pytest.approx((x + 1) * 84, abs=0.3)
    assert (weight.sum(1) @ rows.double() / weight.sum()).item() == pytest.approx((y + 1) * 48, abs=0.3)


def test_half_the_size_is_an_area_average() -> None:
    frames_THWC = np.random.default_rng(0).integers(0, 256, (3, 192, 336, 3), np.uint8)
    slow = scale_frames(torch.from_numpy(frames_THWC), SHAPE)
    assert torch.equal(scale_frames(frames_THWC, SHAPE), slow)


# -------------------------------------------------------------------- learning


class Pool(EyesStage):
    """Goes over the same few clips again and again: drawing takes most of the time."""

    def batch(self, step: int, rows: range) -> Clips:
        if not hasattr(self, "pool"):
            self.pool = [self.train_clips.make(0, row) for row in range(192)]
        return self.clips([self.pool[(step * self.config.batch + row) % len(self.pool)] for row in rows])


def test_eyes_learn_to_tell_whether_something_is_held(plain: None, tmp_path: Path) -> None:
    config = TrainConfig(steps=70, lr=2e-3, muon_lr=8e-3, batch=16, warmup=5, ema=0.8)
    clips = ClipConfig(kinds={"show": 0.5, "": 0.5}, moving=0.0, painted=0.0, freed=0.0)
    parts = EyesLoss({"thing": 1.0, "hand": 1.0, "values": 0.5}, other=0.0)
    stage = Pool(config, SMALL, clips=clips, parts=parts, validated=64)
    before = stage.validate()
    first = {name: value.clone() for name, value in stage.eyes.state_dict().items()}
    losses: list[float] = []
    real = stage.loss
    stage.loss = lambda *a: (lambda got: (losses.append(got[0].item()), got)[1])(real(*a))  # type: ignore[method-assign]
    after = Trainer(stage, tmp_path).run()
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    held = torch.cat([batch.classes_BKA[..., 0] > 0 for batch in stage.validated]).float().mean().item()
    assert after["right/held"] > max(held, 1 - held) + 0.15, (before, after)
    assert after["known/brightness"] > 0.5 > before["known/brightness"]
    assert set(after) == {f"right/{name}" for name in (*CLASSES, "held")} | {f"known/{name}" for name in VALUES}
    made = load_eyes(tmp_path / "eyes").state_dict()
    assert made.keys() == first.keys()
    assert not any(torch.equal(made[name], first[name]) for name in first if name.endswith("weight"))


def test_rows_add_up_to_a_batch() -> None:
    stage = EyesStage(TrainConfig(steps=1, lr=1e-3, batch=4), SMALL, validated=1)
    whole = stage.loss(stage.batch(0, range(4)), 0, None)[0]  # type: ignore[arg-type]
    parts = [stage.loss(stage.batch(0, rows), 0, None)[0] for rows in (range(2), range(2, 4))]  # type: ignore[arg-type]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


# -------------------------------------------------------------------- folders


def test_a_folder_holds_the_same_eyes(tmp_path: Path) -> None:
    eyes = VideoPerception(SMALL)
    save_eyes(eyes, tmp_path)
    again = load_eyes(tmp_path)
    assert (again.grid, again.ticks, again.config.video_channels) == (eyes.grid, eyes.ticks, SMALL.video_channels)
    for name, value in eyes.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    frames_BTHWC = torch.randint(0, 256, (1, 4, 48, 84, 3), dtype=torch.uint8)
    assert torch.equal(again(frames_BTHWC)[0], eyes(frames_BTHWC)[0])
    (tmp_path / "eyes.safetensors").unlink()
    with pytest.raises(CheckpointError):
        load_eyes(tmp_path)
    (tmp_path / "config.json").write_text('{"video_sights": 3}')
    with pytest.raises(ConfigError, match="video_sights"):
        load_eyes(tmp_path)


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The preset "tiny", and a folder of eyes for it."""
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: TALKER)
    monkeypatch.setattr(duplex, "VALIDATION", (1, 2))
    save_eyes(VideoPerception(TALKER.perception), tmp_path / "eyes")
    return tmp_path / "eyes"


def test_a_model_sees_with_them_and_leaves_them_alone(seeing: Path, tmp_path: Path) -> None:
    latents, run = make_latents(tmp_path / "latents", units=8), tmp_path / "run"
    train_duplex(latents, RunOptions(run, "tiny", steps=2, batch=2, clip_units=6, eyes=seeing), "cpu")
    config, eyes = load_config(run / "config.json"), load_eyes(seeing).state_dict()
    assert config.perception.seeing == "eyes"

    def kept() -> None:
        state = load_file(run / "trainer.safetensors")
        assert not [name for name in state if "seeing." in name and not name.startswith("buffer.")]
        for name, value in eyes.items():
            assert torch.equal(state[f"buffer.streamer.seeing.{name}"], value)
        assert not torch.equal(state["model.streamer.user_video_in.weight"], first)

    first = Streamer(config).user_video_in.weight
    kept()
    train_duplex(latents, RunOptions(run, "tiny", steps=3, batch=2, clip_units=6, resume=True), "cpu")
    kept()


def test_other_senses_are_taken_over(seeing: Path, tmp_path: Path) -> None:
    """From an agent that hears alike and sees with other eyes, all but its eyes."""
    save_weights(tiny_weights(), tmp_path / "agent")
    perception = dataclasses.replace(TALKER.perception, seeing="eyes")
    model = Streamer(dataclasses.replace(TALKER, perception=perception))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adopt(model, tmp_path / "agent", tiny_text())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"hearing.project.weight", "user_audio_in.weight", "video_in.weight"} <= changed
    assert not [name for name in changed if name.startswith(("seeing.", "user_video_in."))]


def test_eyes_of_another_shape_are_refused(seeing: Path, tmp_path: Path) -> None:
    save_eyes(VideoPerception(SMALL), tmp_path / "other")
    latents = make_latents(tmp_path / "latents", units=8)
    with pytest.raises(ConfigError, match="--preset"):
        train_duplex(latents, RunOptions(tmp_path / "run", "tiny", eyes=tmp_path / "other"), "cpu")
    with pytest.raises(ConfigError, match="seeing"):
        dataclasses.replace(SMALL, seeing="both")


def test_a_bad_folder_is_told_in_one_line(tmp_path: Path) -> None:
    latents = make_latents(tmp_path / "latents", units=8)
    (tmp_path / "bad").mkdir()
    words = ["train", "duplex", "--data", str(latents), "--out", str(tmp_path / "out"), "--eyes", str(tmp_path / "bad")]
    done = subprocess.run([sys.executable, "-m", "wan_streamer", *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "train eyes" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = EyesStage.__init__

    def small(stage: EyesStage, config: TrainConfig, **more: object) -> None:
        real(stage, config, SMALL, validated=4, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(EyesStage, "__init__", small)
    out, run = str(tmp_path / "run"), CliRunner().invoke
    line = ["train", "eyes", "--out", out, "--batch", "2", "--device", "cpu"]
    first = run(app, [*line, "--steps", "1"], catch_exceptions=False)
    assert first.exit_code == 0
    assert "right/thing" in first.output
    assert f"--eyes {out}/eyes" in first.output.replace("\n", "")
    assert run(app, [*line, "--steps", "2", "--resume"], catch_exceptions=False).exit_code == 0
    assert isinstance(run(app, [*line, "--steps", "2"]).exception, ConfigError)
    again = [*line[:3], str(tmp_path / "more"), *line[4:], "--steps", "1", "--from", f"{out}/eyes"]
    assert run(app, again, catch_exceptions=False).exit_code == 0
