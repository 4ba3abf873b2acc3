"""The unit of time and what goes in and comes out in one.

`UserUnit`   what the user did in 160 ms          (goes in)
`AgentUnit`  what the agent does in 160 ms        (comes out)
`to_numpy`, `as_array`, `check_level`   what callers have as the array that a contract says

Axis legend for tensor suffixes, used in the whole package; a module that needs more names them at its top:
    B batch · K units · T time steps (samples, frames or ticks, as the docstring says) · N tokens · M other tokens
    D features · C channels · H height · W width · P numbers of a patch · S text slots · L lanes · V vocabulary
    Z layers · Q query heads · G key/value heads · d numbers of a head; a digit is that many
"""

from dataclasses import dataclass, field
from typing import Any

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
LOUDEST = 100.0  # a sample beyond this is no loud sound but an integer that nobody has divided
AUDIO_HINT = " (160 ms of mono sound at 24 kHz; Microphone makes units of sound of any length, rate and type)"
LEVEL_HINT = " (divide 16-bit samples by 32768)"
VIDEO_HINT = " (4 RGB frames of 8 bits, channels last)"


def to_numpy(name: str, value: Any) -> np.ndarray:
    """A NumPy array, a tensor on any device or a list of numbers as an array. Raises `ShapeError` for anything else."""
    try:
        if hasattr(value, "detach"):  # a tensor; this module does not make its users wait for PyTorch
            value = value.detach().cpu()
            value = value.float() if value.is_floating_point() else value  # NumPy has no bfloat16
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(f"{name}: expected an array of numbers, got {type(value).__name__} ({error})") from None
    if array.dtype.kind not in "biuf":
        raise ShapeError(f"{name}: expected an array of numbers, got {type(value).__name__}")
    return array


def as_array(name: str, value: object, dtype: type, shape: tuple[int | None, ...], hint: str = "") -> np.ndarray:
    """`to_numpy` as a contiguous array of `dtype` and `shape` (None: any length but 0). Floats may have any precision.

    Raises `ShapeError`, which ends in `hint`.
    """
    array = to_numpy(name, value)
    fits = array.ndim == len(shape) and all(
        got > 0 if want is None else want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits or (array.dtype != dtype and not (array.dtype.kind == "f" and np.dtype(dtype).kind == "f")):
        want = "x".join("any" if n is None else str(n) for n in shape)
        raise ShapeError(
            f"{name}: expected {np.dtype(dtype).name} [{want}], got {array.dtype.name} {list(array.shape)}{hint}"
        )
    return np.require(array, dtype, ["C", "A", "W"])  # torch takes no negative strides and warns of read-only arrays


def check_level(name: str, audio_T: np.ndarray) -> np.ndarray:
    """float32 [T], as it is. Raises `ShapeError` for NaN, infinity and floats that are undivided integers."""
    peak = np.abs(audio_T).max(initial=0.0)
    if not peak <= LOUDEST:  # written so that NaN is refused
        raise ShapeError(f"{name}: expected finite samples in [-1, 1], got a peak of {peak:g}{LEVEL_HINT}")
    return audio_T


@dataclass(frozen=True)
class UserUnit:
    """160 ms of the user. `None` means that the device is off (no microphone, no camera).

    audio  float32 [3840], mono, 24 kHz, nominally in [-1, 1]
    video  uint8 [4, H, W, 3], RGB, 25 fps, any H and W
    text   what the user typed during this unit, usually ""

    Tensors, floats of other precision and arrays of any memory layout are converted. For sound of any length and
    rate there is `Microphone` (data/sound.py), for files `read_units` (data/media.py). Raises `ShapeError`.
    """

    audio: np.ndarray | None = None
    video: np.ndarray | None = None
    text: str = ""

    def __post_init__(self) -> None:
        if self.audio is not None:
            audio = as_array("UserUnit.audio", self.audio, np.float32, (SAMPLES_PER_UNIT,), AUDIO_HINT)
            object.__setattr__(self, "audio", check_level("UserUnit.audio", audio))
        if self.video is not None:
            video = as_array("UserUnit.video", self.video, np.uint8, (FRAMES_PER_UNIT, None, None, 3), VIDEO_HINT)
            object.__setattr__(self, "video", video)
        if not isinstance(self.text, str):
            raise ShapeError(f"UserUnit.text: expected a str, got {type(self.text).__name__}")


@dataclass(frozen=True)
class AgentUnit:
    """160 ms of the agent.

    index       number of the unit, from 0
    audio       float32 [3840], mono, 24 kHz
    video       uint8 [4, H, W, 3], RGB, 25 fps; H and W of the checkpoint (192x336 in nano)
    text        what the agent says, as text that begins in this unit ("" most of the time)
    transcript  what the agent heard the user say, likewise
    stage_ms    milliseconds of each stage of this step
    ended       lanes ("response", "transcript") whose turn the model has ended in this unit, after its text
    whole       what the user said in the turn that has ended in this unit, read again as a whole: counts instead of
                what `transcript` told piece by piece; "" where that stands
    held        True if the unit is a repeat because the deadline could not be met
    broken      True if it is a repeat because the model's latents were no numbers
    """

    index: int
    audio: np.ndarray
    video: np.ndarray
    text: str = ""
    transcript: str = ""
    stage_ms: dict[str, float] = field(default_factory=dict)
    held: bool = False
    broken: bool = False
    ended: tuple[str, ...] = ()
    whole: str = ""
