"""Faces, hands and held things: the picture says what the pose says, and always in the same bytes."""

from itertools import pairwise

import numpy as np
import pytest

from wan_streamer.errors import ConfigError, ShapeError
from wan_streamer.simulation.face.motion import Gesture, gesture_tracks, pose_track
from wan_streamer.simulation.face.person import (
    AGENT_IDENTITY,
    COLOURS,
    HAND_SHAPES,
    PROPS,
    FaceIdentity,
    FacePose,
    HandPose,
    Prop,
)
from wan_streamer.simulation.face.renderer import FaceRenderer
from wan_streamer.simulation.voice.speech import TimedPhoneme
from wan_streamer.units import FPS

SOUNDS = tuple(TimedPhoneme(s, 0.3 + 0.12 * i, 0.42 + 0.12 * i) for i, s in enumerate("mapabɪmawaɪatiʃolumasten"))
STAR = Prop("shape", "star", "red")


def mouth_gap(frame: np.ndarray, still: FacePose) -> int:
    """Height in pixels of what is seen between the lips of the agent: teeth, tongue, the dark behind them.

    Reads one column through the middle of the mouth, whose place follows from the head of the pose. Skin and lips are
    neither dark nor grey nor as red as the tongue.
    """
    x = round(168 + still.head_x * 9 + still.yaw * 11)
    y = round(99 + still.head_y * 5 + still.breath * 0.9 + (35 + still.pitch * 5) * AGENT_IDENTITY.scale)
    column_T = frame[y - 9 : y + 18, x - 2 : x + 3].astype(int).mean(axis=1)
    red, green, blue = column_T.T
    dark = red < 125
    teeth = (red - blue < 24) & (red > 195)
    tongue = (red - green > 88) & (red > 140)
    return int(np.sum(dark | teeth | tongue))


def changed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which pixels differ clearly, [H, W]."""
    return np.abs(a.astype(int) - b).max(axis=2) > 10


@pytest.fixture(scope="module")
def joe() -> FaceRenderer:
    return FaceRenderer(AGENT_IDENTITY)


def test_measured_mouth_follows_mouth_open_without_delay(joe):
    poses = pose_track(90, SOUNDS, [(0.3, 3.2)], [], np.random.default_rng(2)).poses
    gaps = np.array([mouth_gap(frame, pose) for frame, pose in zip(joe.film(poses), poses, strict=True)], float)
    opens = np.array([pose.mouth_open for pose in poses])
    scores = {lag: np.corrcoef(gaps[4 + lag : 86 + lag], opens[4:86])[0, 1] for lag in range(-3, 4)}
    assert scores[0] >= 0.9
    assert max(scores, key=scores.__getitem__) == 0


def test_two_renderers_give_the_same_bytes_whatever_was_drawn_before(joe):
    pose, hand = FacePose(mouth_open=0.4, yaw=0.3, lean=0.5), HandPose("hold", 0.5, 0.4, 0.1)
    joe.render(FacePose(blink=1.0), HandPose("open", -0.6, 0.0, side="left"))
    first = joe.render(pose, hand, STAR)
    joe.render(FacePose())
    assert first.tobytes() == joe.render(pose, hand, STAR).tobytes()
    assert first.tobytes() == FaceRenderer(AGENT_IDENTITY).render(pose, hand, STAR).tobytes()


def test_film_is_the_frames_in_one_array(joe):
    poses = [FacePose(mouth_open=0.2 * i) for i in range(4)]
    hands, props = [None, HandPose(), HandPose("hold"), None], [None, None, STAR, None]
    film = joe.film(poses, hands, props)
    assert film.shape == (4, 192, 336, 3)
    assert film.dtype == np.uint8
    assert film.flags.c_contiguous
    for frame, *what in zip(film, poses, hands, props, strict=True):
        np.testing.assert_array_equal(frame, joe.render(*what))
        np.testing.assert_array_equal(frame, joe._pixels[..., :3])  # all channels where Skia put them
    with pytest.raises(ShapeError, match="4 poses"):
        joe.film(poses, hands[:2])


def test_the_agent_looks_as_the_trained_checkpoint_knows_him(joe):
    """Colours and places that were measured when the first checkpoint was trained."""
    known = {
        (20, 168): (106, 76, 57), (60, 168): (247, 211, 186), (90, 148): (38, 38, 44), (86, 185): (147, 151, 158),
        (125, 168): (223, 183, 157), (150, 150): (190, 148, 127), (180, 100): (82, 129, 140),
        (185, 168): (238, 197, 170), (10, 30): (236, 219, 198), (150, 300): (220, 192, 163),
    }  # fmt: skip
    frame = joe.render(FacePose())
    for (y, x), colour in known.items():  # hair, forehead, pupil, white of the eye, upper lip, chin, shirt, neck, room
        np.testing.assert_allclose(frame[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1)), colour, atol=3)
    tongue = joe.render(FacePose(mouth_open=0.9))[142:145, 167:170]
    np.testing.assert_allclose(tongue.mean(axis=(0, 1)), (108, 37, 45), atol=3)
    eyes = changed(frame, joe.render(FacePose(blink=1.0)))
    rows, columns = np.flatnonzero(eyes.any(axis=1)), np.flatnonzero(eyes.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (81, 93, 137, 198)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shape", HAND_SHAPES)
def test_a_hand_is_on_its_side_and_never_floats(joe, shape, side):
    x = 0.6 if side == "right" else -0.6
    seen = changed(joe.render(FacePose(), HandPose(shape, x, 0.1, side=side)), joe.render(FacePose()))
    outside = seen[:, :200] if side == "right" else seen[:, 136:]
    assert outside.sum() == 0
    assert seen[40:130].sum() > 900
    rows = np.flatnonzero(seen.any(axis=1))
    assert rows[-1] == 191
    assert len(rows) == rows[-1] - rows[0] + 1


def test_every_thing_in_every_colour_looks_different_at_half_size(joe):
    """Seen with 96 x 168 pixels, as the model sees the user."""
    pose, hand = FacePose(), HandPose("hold", 0.57, 0.46)
    bare = joe.render(pose, hand)
    tiles = {}
    for kind, names in PROPS.items():
        for name in names:
            for colour in COLOURS:
                frame = joe.render(pose, hand, Prop(kind, name, colour))
                if colour == "red":
                    rows, columns = (np.flatnonzero(changed(frame, bare).any(axis=axis)) for axis in (1, 0))
                    assert 34 <= np.ptp(rows) <= 76, name
                    assert columns[0] > 215, name  # beside the face, so that the mouth stays free
                small = frame[70:150, 224:304].reshape(40, 2, 40, 2, 3).astype(float).mean(axis=(1, 3))
                tiles[kind, name, colour] = small.ravel()
    table_ND = np.stack(list(tiles.values()))
    square_N = (table_ND**2).sum(axis=1)
    distance_NN = np.sqrt(np.maximum(square_N[:, None] + square_N - 2 * table_ND @ table_ND.T, 0))
    distance_NN[np.diag_indices_from(distance_NN)] = np.inf
    assert distance_NN.min() > 250  # about 40 pixels that differ by 25 in every channel


def test_lean_moves_head_and_shoulders_together(joe):
    middle = [
        np.flatnonzero(changed(joe.render(FacePose(lean=v)), joe.render(FacePose(lean=v, blink=1.0))).any(0)).mean()
        for v in (-1, 0, 1)
    ]
    assert middle[0] + 8 < middle[1] < middle[2] - 8


def test_wave_comes_from_below_swings_and_leaves():
    hands, props = gesture_tracks(100, [Gesture("wave", 1.0, 3.0)], np.random.default_rng(0))
    there = [i for i, hand in enumerate(hands) if hand]
    assert (there[0], there[-1]) == (25, 74)
    assert len(there) == 50
    assert props == [None] * 100
    track = [hands[i] for i in there]
    assert track[0].y > 1.4
    assert track[-1].y > 1.4
    assert max(hand.y for hand in track[9:-9]) < 0.4
    assert max(abs(a.y - b.y) for a, b in pairwise(track)) < 0.35
    angle = np.array([hand.angle for hand in track])
    spectrum = np.abs(np.fft.rfft(angle - angle.mean()))
    assert abs(np.fft.rfftfreq(len(angle), 1 / FPS)[spectrum.argmax()] - 2.0) < 0.3


def test_shown_thing_is_held_all_the_time_and_gestures_share_no_hand():
    show = Gesture("show", 0.5, 2.5, STAR, "left")
    hands, props = gesture_tracks(80, [show, Gesture("nod", 1.0, 2.0)], np.random.default_rng(0))
    assert [hand is not None for hand in hands] == [prop is not None for prop in props]
    assert {(hand.shape, hand.side) for hand in hands if hand} == {("hold", "left")}
    assert all(hand.x < -0.45 for hand in hands if hand)
    with pytest.raises(ConfigError, match="one hand at a time"):
        gesture_tracks(80, [show, Gesture("wave", 2.0, 3.0)], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("kind", "column", "least"),
    [("nod", "pitch", 0.5), ("shake", "yaw", 0.5), ("look_away", "gaze_x", 0.5), ("big_smile", "smile", 0.3)],
)
def test_head_gestures_move_the_head_in_their_time_only(kind, column, least):
    plain, moved = (
        pose_track(100, (), [], [], np.random.default_rng(3), gestures=gestures).poses
        for gestures in ((), (Gesture(kind, 1.0, 2.5),))
    )
    delta = np.array([getattr(b, column) - getattr(a, column) for a, b in zip(plain, moved, strict=True)])
    assert np.abs(delta[25:63]).max() > least
    assert np.abs(delta[:24]).max() == 0
    assert np.abs(delta[64:]).max() == 0


def test_posture_shifts_but_nobody_jumps():
    lean = np.array([pose.lean for pose in pose_track(1500, (), [], [], np.random.default_rng(0)).poses])
    assert lean.std() > 0.15
    assert np.abs(lean).max() <= 1.0
    assert np.abs(np.diff(lean)).max() < 0.12


def test_people_in_all_splits_can_hold_things():
    for split in ("train", "valid", "test"):
        renderer = FaceRenderer(FaceIdentity.sample(np.random.default_rng(1), split))
        assert changed(renderer.render(FacePose(), HandPose("hold"), STAR), renderer.render(FacePose())).sum() > 1500


def test_mistakes_are_named():
    for make, match in (
        (lambda: HandPose("claw"), "HandPose.shape"),
        (lambda: HandPose(side="top"), "HandPose.side"),
        (lambda: HandPose(x=float("nan")), "HandPose.x"),
        (lambda: Prop("shape", "cup", "red"), "circle"),
        (lambda: Prop("object", "cup", "pink"), "Prop.colour"),
        (lambda: Prop("letter", "a", "red"), "Prop.kind"),
        (lambda: Gesture("dance", 0, 1), "Gesture.kind"),
        (lambda: Gesture("wave", 1, 1), "Gesture.end"),
        (lambda: Gesture("show", 0, 1), "Gesture.prop"),
        (lambda: Gesture("wave", 0, 1, STAR), "Gesture.prop"),
    ):
        with pytest.raises(ConfigError, match=match):
            make()


def test_a_thing_needs_a_hand_that_holds_it(joe):
    for hand in (None, HandPose("open")):
        with pytest.raises(ConfigError, match="hold"):
            joe.render(FacePose(), hand, STAR)
