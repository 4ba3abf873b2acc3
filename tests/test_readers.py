"""Readers of faces and things: what they read is what was drawn, and what cannot be read is NaN."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wan_streamer.data.shards import Episode
from wan_streamer.errors import ShapeError
from wan_streamer.evaluation.readers.face import (
    MOUTH_PIXELS,
    READ,
    blink_times,
    nod_times,
    read_face,
    read_prop,
    validate_readers,
)
from wan_streamer.evaluation.readers.pictures import delayed_correlation
from wan_streamer.simulation.face.motion import Gesture, Motion, gesture_tracks, pose_track
from wan_streamer.simulation.face.person import AGENT_IDENTITY, FaceIdentity, FacePose, HandPose, Prop
from wan_streamer.simulation.face.renderer import FaceRenderer
from wan_streamer.simulation.voice.speech import TimedPhoneme
from wan_streamer.units import FPS

FRAMES = 250
SOUNDS = tuple(TimedPhoneme(s, 0.3 + 0.12 * i, 0.42 + 0.12 * i) for i, s in enumerate("mapabɪmawaɪatiʃolumasten"))
#            correlation, mean error: somewhat worse than measured on this film
BARS = {
    "mouth": (0.99, 0.4), "blink": (0.98, 0.05), "gaze_x": (0.97, 0.06), "gaze_y": (0.93, 0.07),
    "head_x": (0.96, 0.05), "head_y": (0.95, 0.05), "roll": (0.99, 0.015), "yaw": (0.985, 0.03), "pitch": (0.97, 0.05),
}  # fmt: skip


@pytest.fixture(scope="module")
def motion() -> Motion:
    return pose_track(FRAMES, SOUNDS, [(0.3, 3.2)], [(3.6, 9.6)], np.random.default_rng(43))


@pytest.fixture(scope="module")
def film(motion) -> np.ndarray:
    hands, _ = gesture_tracks(FRAMES, [Gesture("wave", 1.0, 2.8)], np.random.default_rng(0))
    return FaceRenderer(AGENT_IDENTITY).film(motion.poses, hands)


@pytest.fixture(scope="module")
def tracks(film) -> dict[str, np.ndarray]:
    return read_face(film)


def truth(motion: Motion, name: str) -> np.ndarray:
    if name == "mouth":
        return MOUTH_PIXELS * truth(motion, "mouth_open")
    return np.array([getattr(pose, name) for pose in motion.poses])


def blurred(film: np.ndarray, size: int) -> np.ndarray:
    """Seen through a coarser grid, `size` times as coarse."""
    frames = torch.from_numpy(film).permute(0, 3, 1, 2).float()
    small = F.interpolate(frames, scale_factor=1 / size, mode="area")
    back = F.interpolate(small, film.shape[1:3], mode="bilinear", align_corners=False)
    return back.round().byte().permute(0, 2, 3, 1).numpy()


def hue_turned(film: np.ndarray, degrees: float) -> np.ndarray:
    """Colours turned about the grey axis."""
    angle = np.radians(degrees)
    cross = np.array(((0, -1, 1), (1, 0, -1), (-1, 1, 0))) / np.sqrt(3)
    turn = np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) / 3 + np.sin(angle) * cross
    return np.clip(film @ turn.T, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", READ)
def test_every_track_follows_the_truth_without_delay(motion, tracks, name):
    got, want = tracks[name], truth(motion, name)
    assert got.dtype == np.float32
    least, most = BARS[name]
    seen = truth(motion, "blink") < 0.5 if name.startswith("gaze") else np.ones(FRAMES, bool)
    assert np.corrcoef(got[seen], want[seen])[0, 1] > least
    assert np.abs(got - want)[seen].mean() < most
    if not name.startswith("head"):  # which drifts so slowly that 80 ms hardly change the correlation
        assert delayed_correlation(got, want)[1] == 0


def test_blinks_and_nods_are_found_and_nothing_else(motion, tracks):
    got, want = blink_times(tracks["blink"]), blink_times(truth(motion, "blink"))
    assert len(got) == len(want) >= 2
    np.testing.assert_allclose(got, want, atol=2 / FPS)
    got, want = nod_times(tracks["pitch"]), motion.nods
    assert len(want) >= 3
    assert len(got) == len(want)
    np.testing.assert_allclose(got, want, atol=0.1)


def test_a_blurred_darker_noisy_film_is_read_too(motion, film):
    noise = np.random.default_rng(0).normal(0, 6, film[:100].shape)
    worn = np.clip(0.93 * blurred(film[:100], 3) + noise, 0, 255).astype(np.uint8)
    got = read_face(worn)
    for name, least in (("mouth", 0.98), ("blink", 0.95), ("gaze_x", 0.9), ("yaw", 0.97), ("head_x", 0.9)):
        assert np.corrcoef(got[name], truth(motion, name)[:100])[0, 1] > least, name


def test_likeness_knows_the_agent_from_others(film, tracks):
    assert tracks["likeness"].min() > 0.8
    rng = np.random.default_rng(1)
    for split in ("test", "train") * 8:
        frame = FaceRenderer(FaceIdentity.sample(rng, split)).render(FacePose(yaw=rng.normal(0, 0.2)))
        assert read_face(frame[None])["likeness"] < 0.6
    for change in ({"hair_style": "crop"}, {"glasses": True}, {"shirt": (156, 62, 66)}, {"hair": (214, 170, 104)}):
        frame = FaceRenderer(replace(AGENT_IDENTITY, **change)).render(FacePose())
        assert read_face(frame[None])["likeness"] < 0.8, change


@pytest.mark.parametrize("spoil", [
    lambda film, step: hue_turned(film, 20 * step),
    lambda film, step: blurred(film, 4 * step),
    lambda film, step: (film * (1 - 0.07 * step)).astype(np.uint8),
])  # fmt: skip
def test_likeness_falls_steadily_as_the_picture_drifts(film, spoil):
    means = [read_face(film[::50])["likeness"].mean()]
    means += [read_face(spoil(film[::50], step))["likeness"].mean() for step in (1, 2, 4)]
    assert (np.diff(means) < 0).all()
    assert means[1] > 0.8
    assert means[-1] < 0.5


def test_pictures_without_a_face_are_nan_and_raise_nothing():
    rng = np.random.default_rng(0)
    blobs = F.interpolate(torch.from_numpy(rng.uniform(0, 255, (4, 3, 6, 10))), (192, 336), mode="bicubic")
    for film in (
        np.zeros((3, 192, 336, 3), np.uint8),
        np.full((1, 192, 336, 3), 128, np.uint8),
        np.full((1, 192, 336, 3), 255, np.uint8),
        rng.integers(0, 256, (3, 192, 336, 3)).astype(np.uint8),
        blobs.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy(),
        np.full((2, 1, 1, 3), 90, np.uint8),
    ):
        got = read_face(film)
        assert all(np.isnan(got[name]).all() and len(got[name]) == len(film) for name in READ)
        assert got["likeness"].max() < 0.1
        np.testing.assert_allclose(got["brightness"], film.mean((1, 2, 3)) / 255, atol=0.02)
        assert (blink_times(got["blink"]), nod_times(got["pitch"])) == ([], [])


def test_read_face_takes_films_and_nothing_else(film):
    for wrong in (film[0], film.astype(np.float32), film[..., :2], film[:0]):
        with pytest.raises(ShapeError, match=r"uint8 \[T, H, W, 3\]"):
            read_face(wrong)


def test_pieces_of_a_film_are_read_as_the_whole(film, tracks):
    parts = [read_face(film[start : start + 37]) for start in range(0, FRAMES, 37)]
    for name, whole in tracks.items():
        np.testing.assert_allclose(np.concatenate([part[name] for part in parts]), whole, atol=1e-4, err_msg=name)


def test_other_sizes_of_picture_give_the_same(film, tracks):
    frames = torch.from_numpy(film[:20]).permute(0, 3, 1, 2).float()
    large = F.interpolate(frames, (360, 640), mode="bilinear").byte().permute(0, 2, 3, 1).numpy()
    got = read_face(large)
    for name, most in (("mouth", 1.0), ("head_x", 0.15), ("yaw", 0.1), ("blink", 0.15), ("likeness", 0.1)):
        np.testing.assert_allclose(got[name], tracks[name][:20], atol=most, err_msg=name)


@pytest.mark.parametrize(("kind", "name", "colour", "side"), [
    ("shape", "star", "red", "left"), ("object", "key", "green", "right"), ("object", "umbrella", "purple", "right"),
    ("digit", "8", "black", "left"), ("shape", "circle", "white", "right"), ("object", "apple", "blue", "left"),
])  # fmt: skip
def test_held_things_are_read_whoever_holds_them(kind, name, colour, side):
    rng = np.random.default_rng(len(name))
    out = 1 if side == "right" else -1
    hand = HandPose("hold", out * rng.uniform(0.47, 0.67), 0.46, out * 0.1, side)
    frame = FaceRenderer(FaceIdentity.sample(rng, "test")).render(FacePose(), hand, Prop(kind, name, colour))
    assert read_prop(frame[None]) == (colour, name)


def test_no_thing_is_read_where_there_is_none():
    for seed, hand in enumerate((None, HandPose("open", 0.6, 0.1), HandPose("thumb", 0.55, 0.4), HandPose("hold"))):
        renderer = FaceRenderer(FaceIdentity.sample(np.random.default_rng(seed), "test"))
        assert read_prop(renderer.render(FacePose(), hand)[None]) is None
    assert read_prop(np.zeros((2, 192, 336, 3), np.uint8)) is None
    assert read_prop(np.zeros((0, 192, 336, 3), np.uint8)) is None


def test_things_need_most_of_a_clip():
    renderer = FaceRenderer(AGENT_IDENTITY)
    with_, without = renderer.film([FacePose()] * 2, [HandPose("hold"), None], [Prop("object", "cup", "red"), None])
    assert read_prop(np.stack([with_] * 4 + [without])) == ("red", "cup")
    assert read_prop(np.stack([with_] + [without] * 4)) is None


def test_events_of_plain_tracks():
    blink_T = np.array([0, 0, 0.6, 1, 0.2, 0, 1, 1, 0, np.nan, 1])
    np.testing.assert_allclose(blink_times(blink_T), [2.5 / FPS, 6.5 / FPS, 10.5 / FPS])
    bump = np.sin(np.pi * np.arange(12) / 11) ** 2
    pitch_T = np.zeros(60)
    pitch_T[10:22] += 0.8 * bump
    pitch_T[20:32] += 0.4 * bump  # the same nod goes on
    pitch_T[40:52] += 0.3 * bump  # a stressed word
    np.testing.assert_allclose(nod_times(pitch_T), [10 / FPS], atol=0.06)
    assert nod_times(np.where(np.arange(60) == 18, np.nan, pitch_T)) == []
    assert nod_times(np.zeros(0)) == blink_times(np.zeros(0)) == []


def test_validation_measures_the_readers_against_the_labels(motion, film):
    user = FaceRenderer(FaceIdentity.sample(np.random.default_rng(0), "test"))
    hands, props = gesture_tracks(
        FRAMES, [Gesture("show", 1.0, 4.0, Prop("object", "cup", "red"))], np.random.default_rng(0)
    )
    labels = {
        "agent": {"camera": True},
        "face": {"agent": {name: list(truth(motion, name)) for name in READ if name != "mouth"}},
        "mouth_open": {"agent": list(truth(motion, "mouth_open"))},
        "events": [{"type": "nod", "side": "agent", "start": at, "end": at + 0.44, "label": ""} for at in motion.nods]
        + [{"type": "show", "side": "user", "start": 1.0, "end": 4.0, "label": "red cup"}],
    }
    silence = np.zeros(0, np.float32)
    episode = Episode("ep000000", silence, silence, user.film([FacePose()] * FRAMES, hands, props), film, labels)
    report = validate_readers([episode], films=1, frames=FRAMES)
    assert {name: report["mouth"][name] for name in ("delay_frames", "n_frames")} == {
        "delay_frames": 0, "n_frames": FRAMES,
    }  # fmt: skip
    assert report["mouth"]["r"] > 0.99
    for name in ("blink", "nod"):
        assert (report[name]["precision"], report[name]["recall"]) == (1, 1)
    assert report["likeness"]["auc"] == 1
    for name in ("prop_found", "prop_colour", "prop_what", "prop_none"):
        assert report[name] == {"accuracy": 1, "n": 1}
    late = {"agent": np.roll(film, 2, axis=0)}
    report = validate_readers([replace(episode, user_video=None, agent_video=late["agent"])], 1, FRAMES)
    assert report["mouth"]["delay_frames"] == 2
    assert np.isnan(report["prop_what"]["accuracy"])
    assert validate_readers([], 1, 1)["nod"]["n"] == 0
