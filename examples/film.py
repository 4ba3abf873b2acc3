"""Your own film in, a film of the reply and its words out: `.venv/bin/python examples/film.py me.mp4 reply.mp4`."""

import sys

from wan_streamer import ReplyWriter, WanStreamer, read_units


def main(me: str = "examples/hello.mp4", reply: str = "reply.mp4", checkpoint: str = "nano") -> None:
    agent = WanStreamer.from_pretrained(checkpoint)
    session = agent.session(seed=0)
    with read_units(me) as units, ReplyWriter(reply, *agent.frame_size) as film:
        for user in units:
            out = session.step(user)
            film.write(user, out)
            print(out.text, end="", flush=True)
    print(f"\n{reply}")


if __name__ == "__main__":
    main(*sys.argv[1:])
