"""A stand-in agent with exact, recognisable output, so that tests of the call need no trained weights.

It shows a white block that moves 4 pixels per frame over a bar coloured like what it sees, hums 660 Hz, and says once a
second what it heard and saw. Typed text is repeated; "crash", "error" and "hang" make it fail in that way.

    python standin.py PORT    serves it until interrupted (--help: the other agents)
"""

import argparse
import os
import time
from dataclasses import replace

import numpy as np

from wan_streamer.units import (
    FRAMES_PER_UNIT,
    SAMPLE_RATE,
    SAMPLES_PER_UNIT,
    AgentUnit,
    UserUnit,
)

TONE_HZ = 660
TONE_LEVEL = 0.25
HEIGHT, WIDTH = 192, 336
BLOCK = 48  # side of the block
SPEED = 4  # pixels per frame
WORK_S = 0.02
ABOUT = "It says what it hears, sees and reads."
EXAMPLES = ("good morning", "what do you see?", "count to three")


class StandInSession:
    """Counts units; the picture and the tone follow from the count alone."""

    seed = 0

    def __init__(self) -> None:
        self.index = 0
        self.again = False

    def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
        time.sleep(WORK_S)
        if user.text == "crash":
            os._exit(3)
        if user.text == "error":
            raise RuntimeError("asked to fail")
        self.again |= user.text == "again"
        if user.text == "slow":
            time.sleep(1.5)
        if user.text == "hang":
            time.sleep(3600)
        k, self.index = self.index, self.index + 1
        n = np.arange(k * SAMPLES_PER_UNIT, (k + 1) * SAMPLES_PER_UNIT)
        audio = (TONE_LEVEL * np.sin(2 * np.pi * TONE_HZ * n / SAMPLE_RATE)).astype(np.float32)
        video = np.full((FRAMES_PER_UNIT, HEIGHT, WIDTH, 3), 40, np.uint8)
        for i in range(FRAMES_PER_UNIT):
            x = (k * FRAMES_PER_UNIT + i) * SPEED % (WIDTH - BLOCK)
            video[i, 32 : 32 + BLOCK, x : x + BLOCK] = 255
            if user.video is not None:
                video[i, 144:] = user.video[i].mean((0, 1)).astype(np.uint8)
        text = f"You typed {user.text}. " if user.text else f"Unit {k}. " if k % 6 == 0 else ""
        transcript = self._senses(user) if k % 6 == 3 else ""
        stages = {"encode": 4.0, "text": 3.0, "solve": 9.0, "decode": 4.0}
        ended = tuple(lane for lane, words in (("response", text), ("transcript", transcript)) if words)
        whole = "All that was said." if self.again and transcript else ""
        return AgentUnit(k, audio, video, text=text, transcript=transcript, stage_ms=stages, ended=ended, whole=whole)

    @staticmethod
    def _senses(user: UserUnit) -> str:
        heard = "nothing"
        if user.audio is not None:  # the level of what came; zeros fill in what a busy machine did not send in time
            heard = f"{np.sqrt(np.sum(user.audio**2) / max(1, np.count_nonzero(user.audio))):.3f}"
        seen = "nothing"
        if user.video is not None:
            height, width = user.video.shape[1:3]
            seen = f"{width}x{height} " + ",".join(str(int(c)) for c in user.video[-1].mean((0, 1)))
        return f"heard {heard} saw {seen}. "


class StandInAgent:
    name = "stand-in"
    frame_size = (HEIGHT, WIDTH)
    default_steps = 1
    concurrency = 2

    def warmup(self) -> None:
        self.session().step(UserUnit())

    def session(self, seed: int = 0) -> StandInSession:
        return StandInSession()


class EchoSession(StandInSession):
    """Gives back what it heard and saw, to measure how long a call takes around."""

    def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
        unit = super().step(user, steps)
        audio = np.zeros_like(unit.audio) if user.audio is None else user.audio
        black = np.zeros_like(unit.video)
        video = black if user.video is None or user.video.shape != black.shape else user.video
        return AgentUnit(unit.index, audio, video, stage_ms=unit.stage_ms)


class ClapSession(StandInSession):
    """Every 1.6 s a white picture and a burst of noise that begin at the same sample, to measure sync."""

    def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
        unit = super().step(user, steps)
        audio, video = np.zeros_like(unit.audio), np.zeros_like(unit.video)
        if unit.index % 10 == 0:
            audio[:1920] = np.random.default_rng(0).uniform(-0.5, 0.5, 1920)
            video[:] = 255
        return AgentUnit(unit.index, audio, video)


class EchoAgent(StandInAgent):
    name = "echo"

    def session(self, seed: int = 0) -> StandInSession:
        return EchoSession()


class ClapAgent(StandInAgent):
    name = "clap"

    def session(self, seed: int = 0) -> StandInSession:
        return ClapSession()


def fail_to_load() -> StandInAgent:
    from wan_streamer.errors import CheckpointError

    raise CheckpointError("checkpoint folder not found: nowhere")


def die_on_load() -> StandInAgent:
    os._exit(7)


def main() -> None:
    from wan_streamer.serving import ServingConfig, serve
    from wan_streamer.serving.about import About

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--checkpoint", help="serve this instead of a stand-in")
    parser.add_argument("--agent", choices=("StandInAgent", "EchoAgent", "ClapAgent"), default="StandInAgent")
    parser.add_argument("--transport", default="", help="aiortc, own, or own+MS with that video playout delay")
    parser.add_argument("--relay", action="store_true", help="WebRTC media come back as they are, without the agent")
    parser.add_argument("--resume-s", type=float, default=5.0, help="how long a lost caller's place is kept")
    parser.add_argument("--token", help="what callers must know")
    parser.add_argument("--public-url", action="append", default=[])
    parser.add_argument("--proxy", action="append", default=[])
    parser.add_argument("--log-format")
    options = parser.parse_args()
    if options.relay:
        from media_relay import relay_media

        relay_media()
    buffers, _, delay = options.transport.partition("+")
    changed = {"own_jitter_buffers": buffers == "own", "video_playout_ms": int(delay) if delay else None}
    about = None if options.checkpoint else About(name="Stand-in", about=ABOUT, examples=EXAMPLES)
    config = replace(ServingConfig(resume_s=options.resume_s, about=about), **(changed if buffers else {}))
    factory = None if options.checkpoint else globals()[options.agent]
    serve(
        options.checkpoint or "stand-in",
        port=options.port,
        sessions=1,
        agent_factory=factory,
        config=config,
        token=options.token,
        public_urls=options.public_url,
        proxies=options.proxy,
        log_format=options.log_format,
    )


if __name__ == "__main__":
    main()
