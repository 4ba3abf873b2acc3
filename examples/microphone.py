"""Step by step with the sound of a microphone, which comes as arrays of any length: here a hum in pieces of 10 ms.

Run it with `.venv/bin/python examples/microphone.py`. With a real microphone only `pieces` changes: what the recorder's
callback gets, float or int16, [samples] or [samples, channels], goes to `push` as it is.
"""

import sys
from collections.abc import Iterator

import numpy as np

from wan_streamer import Microphone, WanStreamer

RATE = 48_000


def pieces(seconds: float) -> Iterator[np.ndarray]:
    """int16 [480, 2]: 10 ms of stereo at 48 kHz, again and again."""
    for start in range(0, round(seconds * RATE), 480):
        time = (start + np.arange(480)) / RATE
        hum = 8000 * np.sin(2 * np.pi * 220 * time)
        yield np.stack([hum, hum], axis=1).astype(np.int16)


def main(checkpoint: str = "nano", seconds: str = "3") -> None:
    session = WanStreamer.from_pretrained(checkpoint).session(seed=0)
    microphone = Microphone(RATE)
    for piece in pieces(float(seconds)):
        for user in microphone.push(piece):  # none, or one of 160 ms: the camera is off
            out = session.step(user)
            print(f"{out.index * 0.16:5.2f} s  peak {abs(out.audio).max():.2f}  picture {out.video.shape}  {out.text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
