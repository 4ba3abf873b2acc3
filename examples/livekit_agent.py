"""The agent in LiveKit rooms: `.venv/bin/python examples/livekit_agent.py dev`.

Start `wan-streamer serve` before. Needs `pip install 'wan-streamer[serve,livekit]'` and a LiveKit server, named by
LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET. WAN_STREAMER_URL and WAN_STREAMER_TOKEN name another server.
"""

import os

from livekit.agents import AgentServer, JobContext, cli

from wan_streamer.client.livekit import RoomAgent

URL, TOKEN = os.environ.get("WAN_STREAMER_URL", "http://localhost:8080"), os.environ.get("WAN_STREAMER_TOKEN", "")

server = AgentServer()


@server.rtc_session()
async def entrypoint(context: JobContext) -> None:
    """livekit-agents calls it for each room."""
    await context.connect()
    await RoomAgent(context.room, URL, token=TOKEN).run()
    context.shutdown("the call is over")


if __name__ == "__main__":
    cli.run_app(server)
