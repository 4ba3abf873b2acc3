"""The metrics of the face on tracks made by hand."""

import math

import numpy as np
import pytest

from wan_streamer.evaluation.axes import face as face
from wan_streamer.evaluation.records import Case, Observation
from wan_streamer.units import FPS, SAMPLE_RATE

FRAMES = 250
TALK = [{"type": "speech", "side": "user", "start": 2.0, "end": 8.0, "label": ""}]


def bump(times: list[float], length: float, height: float) -> np.ndarray:
    """A track of smooth bumps that begin at `times`."""
    track = np.zeros(FRAMES, np.float32)
    at = (np.arange(FRAMES) + 0.5) / FPS
    for time in times:
        phase = np.clip((at - time) / length, 0, 1)
        track += (height * np.sin(np.pi * phase) ** 2).astype(np.float32)
    return track


def observed(
    blinks: list[float], nods: list[float], still: bool = False, stage_ms: float | None = None, **changed: float
) -> Observation:
    rng = np.random.default_rng(0)
    tracks = {
        "mouth": np.zeros(FRAMES, np.float32),
        "blink": bump(blinks, 0.2, 1.0),
        "pitch": bump(nods, 0.44, 0.9),
        "gaze_x": np.zeros(FRAMES, np.float32),
        "gaze_y": np.zeros(FRAMES, np.float32),
        "head_x": np.zeros(FRAMES) if still else np.cumsum(rng.normal(0, 0.01, FRAMES)),
        "head_y": np.zeros(FRAMES) if still else np.cumsum(rng.normal(0, 0.01, FRAMES)),
        "likeness": np.full(FRAMES, 0.95, np.float32),
        "brightness": np.full(FRAMES, 0.4, np.float32),
        "change": np.zeros(FRAMES) if still else np.full(FRAMES, 0.004),
    }
    tracks |= {name: np.full(FRAMES, value, np.float32) for name, value in changed.items()}
    stages = {} if stage_ms is None else {"solve": [stage_ms] * 62}
    nothing = np.zeros(FRAMES * SAMPLE_RATE // FPS, np.int16)
    return Observation(10.0, [], [], "", "", np.zeros(FRAMES, np.float32), tracks, nothing, stages)


def case(seen: Observation, truth: Observation | None = None, events: list[dict] = TALK) -> Case:
    labels = {"events": events, "words": {"user": [], "agent": []}, "scenarios": []}
    return Case("case", "listening", labels, seen, truth or observed([1, 4, 7], [3.0, 5.0]))


def test_a_lively_listener_and_a_photograph() -> None:
    lively = face.listening([case(observed([1, 4, 7], [3.0, 5.0]))])
    photo = face.listening([case(observed([], [], still=True))])
    assert (lively["frozen_share"].value, photo["frozen_share"].value) == (0.0, 1.0)
    assert lively["motion_distance"].value == pytest.approx(0, abs=1e-6)
    assert photo["motion_distance"].value > 0.005
    assert lively["blink_rate_error"].value == pytest.approx(0)
    assert photo["blink_rate_error"].value == pytest.approx(18)  # 3 blinks in 10 s


def test_nods_must_answer_this_partner() -> None:
    early = [{"type": "speech", "side": "user", "start": 0.5, "end": 3.0, "label": ""}]
    late = [{"type": "speech", "side": "user", "start": 6.0, "end": 9.0, "label": ""}]
    listens = [case(observed([], [1.5]), events=early), case(observed([], [7.0]), events=late)]
    ignores = [case(observed([], [1.5]), events=early), case(observed([], [1.5]), events=late)]
    assert face.listening(listens)["nods_that_answer"].value == 1.0
    assert face.listening(ignores)["nods_that_answer"].value == 0.0


def test_gaze_off_the_camera() -> None:
    away = face.listening([case(observed([], [], gaze_x=0.6, gaze_y=0.8))])
    assert away["gaze_off_camera"].value == pytest.approx(1.0)
    nobody = face.listening([case(observed([], [], gaze_x=math.nan, gaze_y=math.nan))])
    assert nobody["gaze_off_camera"].value == 1.0  # no face is no attention


def test_picture_faults() -> None:
    black = face.picture([case(observed([], [], brightness=0.01, likeness=0.1))])
    assert (black["black_share"].value, black["likeness"].value) == (1.0, pytest.approx(0.1))
    flashing = face.picture([case(observed([], [], change=0.5))])
    assert (flashing["flash_share"].value, flashing["frozen_share"].value) == (1.0, 0.0)
    assert face.picture([case(observed([], [], still=True))])["frozen_share"].value == 1.0


def test_drift_over_a_long_conversation() -> None:
    steady = [case(observed([], [], stage_ms=80.0)) for _ in range(6)]
    fading = [
        case(observed([], [], likeness=0.9 - 0.1 * k, brightness=0.4 + 0.02 * k, stage_ms=80.0 + 8 * k))
        for k in range(6)
    ]
    assert face.horizon(steady)["likeness_change"].value == 0
    assert face.horizon(steady)["cost_growth"].value == 0
    drifted = face.horizon(fading)
    assert drifted["likeness_change"].value == pytest.approx(-0.4)  # last two against the first two
    assert drifted["brightness_drift"].value == pytest.approx(0.08)
    assert drifted["cost_growth"].value == pytest.approx(116 / 84 - 1)


def test_nothing_to_see() -> None:
    blind = Observation(10.0, [], [], "", "", np.zeros(FRAMES, np.float32), {}, np.zeros(0, np.int16))
    for axis in (face.sync, face.listening, face.picture, face.horizon):
        for metric in axis([case(blind, blind)]).values():
            assert metric.n == 0 or not math.isfinite(metric.value) or metric.value == 0
