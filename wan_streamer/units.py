"""The unit of time and what goes in and comes out in one.

`UserUnit`   what the user did in 160 ms          (goes in)
`AgentUnit`  what the agent does in 160 ms        (comes out)

Axis legend for tensor suffixes, used in the whole package; a module that needs more names them at its top:
    B batch · K units · T time steps (samples, frames or ticks, as the docstring says) · N tokens · M other tokens
    D features · C channels · H height · W width · P numbers of a patch · S text slots · L lanes · V vocabulary
    Z layers · Q query heads · G key/value heads · d numbers of a head; a digit is that many
"""

from dataclasses import dataclass, field

import numpy as np

from wan_streamer.errors import ShapeError

UNIT_MS = 160
UNIT_S = UNIT_MS / 1000
FPS = 25
SAMPLE_RATE = 24_000
FRAMES_PER_UNIT = FPS * UNIT_MS // 1000  # 4
SAMPLES_PER_UNIT = SAMPLE_RATE * UNIT_MS // 1000  # 3 840
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS  # 960
TICKS_PER_UNIT = 4  # one tick = 40 ms, the temporal position id
AUDIO_LATENTS_PER_UNIT = 4  # audio latents run at 25 Hz, one per tick


def _check(name: str, value: np.ndarray, dtype: type, shape: tuple[int | None, ...]) -> None:
    fits = value.ndim == len(shape) and all(
        want is None or want == got for want, got in zip(shape, value.shape, strict=True)
    )
    if not fits or value.dtype != dtype:
        want = "x".join("any" if n is None else str(n) for n in shape)
        raise ShapeError(
            f"{name}: expected {np.dtype(dtype).name} [{want}], got {value.dtype.name} {list(value.shape)}"
        )


@dataclass(frozen=True)
class UserUnit:
    """160 ms of the user. `None` means that the device is off (no microphone, no camera).

    audio  float32 [3840], mono, 24 kHz, nominally in [-1, 1]
    video  uint8 [4, H, W, 3], RGB, 25 fps, any H and W
    text   what the user typed during this unit, usually ""
    """

    audio: np.ndarray | None = None
    video: np.ndarray | None = None
    text: str = ""

    def __post_init__(self) -> None:
        if self.audio is not None:
            _check("UserUnit.audio", self.audio, np.float32, (SAMPLES_PER_UNIT,))
            if not np.isfinite(self.audio).all():
                raise ShapeError("UserUnit.audio: expected finite samples, got NaN or infinity")
        if self.video is not None:
            _check("UserUnit.video", self.video, np.uint8, (FRAMES_PER_UNIT, None, None, 3))


@dataclass(frozen=True)
class AgentUnit:
    """160 ms of the agent.

    index       number of the unit, from 0
    audio       float32 [3840], mono, 24 kHz
    video       uint8 [4, H, W, 3], RGB, 25 fps; H and W of the checkpoint (192x336 in nano)
    text        what the agent says, as text that begins in this unit ("" most of the time)
    transcript  what the agent heard the user say, likewise
    stage_ms    milliseconds of each stage of this step
    held        True if the unit is a repeat because the deadline could not be met
    """

    index: int
    audio: np.ndarray
    video: np.ndarray
    text: str = ""
    transcript: str = ""
    stage_ms: dict[str, float] = field(default_factory=dict)
    held: bool = False
