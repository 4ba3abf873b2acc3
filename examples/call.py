"""A call with a served agent, with a film as microphone and camera: `.venv/bin/python examples/call.py me.mp4`.

Start `wan-streamer serve` before. Prints what both sides say, with its times, until the film has ended.
"""

import asyncio
import sys

from wan_streamer import read_units
from wan_streamer.client import LiveClient
from wan_streamer.units import UNIT_S


async def call(me: str, url: str, token: str) -> None:
    with read_units(me) as units:
        async with LiveClient(url, units, token=token) as client:
            print(client.session)
            asyncio.get_running_loop().call_later((units.units or 0) * UNIT_S + 2, client.send, "session.close")
            async for event in client.events():
                if event["type"].endswith("_transcript.delta"):
                    who = "agent" if "output" in event["type"] else "heard"
                    print(f"{event['start_ms'] / 1000:6.2f} s  {who}  {event['delta']}")


def main(me: str = "examples/hello.mp4", url: str = "http://localhost:8080", token: str = "") -> None:
    asyncio.run(call(me, url, token))


if __name__ == "__main__":
    main(*sys.argv[1:])
