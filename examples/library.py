"""The agent as a library: a greeting goes in unit by unit, what the agent does comes out.

Run it with `.venv/bin/python examples/library.py`.
"""

from pathlib import Path

from wan_streamer import WanStreamer
from wan_streamer.data.media import read_units


def main() -> None:
    agent = WanStreamer.from_pretrained("nano")
    session = agent.session(seed=0)
    for user in read_units(Path(__file__).with_name("hello.mp4")):
        out = session.step(user)
        loudness = abs(out.audio).max()
        print(f"{out.index * 0.16:5.2f} s  video {out.video.shape}  audio peak {loudness:.2f}  {out.text}")


if __name__ == "__main__":
    main()
