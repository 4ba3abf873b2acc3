"""Makes `hello.mp4`: a simulated person, whose voice and face no training has met, greets and asks a question.

Run it with `.venv/bin/python examples/make_hello.py`; the same versions of the packages give the same film.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from wan_streamer.simulation.face.motion import pose_track
from wan_streamer.simulation.face.person import FaceIdentity
from wan_streamer.simulation.face.renderer import FaceRenderer
from wan_streamer.simulation.sound.microphone import capture
from wan_streamer.simulation.voice.users import UserVoice
from wan_streamer.units import FPS, SAMPLE_RATE

SECONDS = 9.6
LINES = {1.0: "Hello.", 4.6: "What is your name?"}  # seconds -> what is said
SEED = 7


def main() -> None:
    rng = np.random.default_rng(SEED)
    voice, identity = UserVoice.sample(rng, "test"), FaceIdentity.sample(rng, "test")
    frames, audio = round(SECONDS * FPS), np.zeros(round(SECONDS * SAMPLE_RATE), np.float32)
    spans, phonemes = [], []
    for start, text in LINES.items():
        speech = voice.speak(text)
        first = round(start * SAMPLE_RATE)
        audio[first : first + len(speech.audio)] += speech.audio
        spans.append((start, start + speech.seconds))
        phonemes += speech.shifted(start, len(audio)).phonemes
    audio, _ = capture(audio, rng, strength=0.0)
    motion = pose_track(frames, tuple(phonemes), speaking=spans, listening=[], rng=rng, smiles=[0.9])
    renderer = FaceRenderer(identity)
    with av.open(str(Path(__file__).with_name("hello.mp4")), "w", options={"movflags": "+faststart"}) as film:
        video = film.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "slow"})
        video.width, video.height, video.pix_fmt = renderer.width, renderer.height, "yuv420p"
        sound = film.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        sound.bit_rate = 96_000
        for pose in motion.poses:
            film.mux(video.encode(av.VideoFrame.from_ndarray(renderer.render(pose), format="rgb24")))
        film.mux(video.encode(None))
        for start in range(0, len(audio), 1024):
            block = av.AudioFrame.from_ndarray(audio[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            film.mux(sound.encode(block))
        film.mux(sound.encode(None))


if __name__ == "__main__":
    main()
