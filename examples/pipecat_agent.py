"""The agent in Pipecat: `.venv/bin/python examples/pipecat_agent.py -t webrtc`, then open http://localhost:7860.

Start `wan-streamer serve` before. Needs `pip install 'wan-streamer[serve,pipecat]' 'pipecat-ai[webrtc,runner]'`.
WAN_STREAMER_URL and WAN_STREAMER_TOKEN name another server. Any transport of Pipecat's will do in place of WebRTC.
"""

import os

from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.runner.types import RunnerArguments
from pipecat.runner.utils import create_transport
from pipecat.transports.base_transport import TransportParams, VideoInSourceParams
from pipecat.workers.runner import WorkerRunner

from wan_streamer.client.pipecat import WanStreamerService

URL, TOKEN = os.environ.get("WAN_STREAMER_URL", "http://localhost:8080"), os.environ.get("WAN_STREAMER_TOKEN", "")


def params() -> TransportParams:
    """Microphone and camera in, voice and face out; no voice detection, since the agent listens all the time."""
    return TransportParams(
        audio_in_enabled=True,
        audio_out_enabled=True,
        video_in_enabled=True,
        video_in_sources={"camera": VideoInSourceParams(framerate=25)},
        video_out_enabled=True,
        video_out_width=336,
        video_out_height=192,
        video_out_framerate=25,
    )


async def bot(arguments: RunnerArguments) -> None:
    """Pipecat's runner calls it for each visitor."""
    transport = await create_transport(arguments, {"webrtc": params})
    pipeline = Pipeline([transport.input(), WanStreamerService(URL, token=TOKEN), transport.output()])
    worker = PipelineWorker(pipeline, cancel_on_idle_timeout=False)

    @transport.event_handler("on_client_disconnected")
    async def left(*_: object) -> None:
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


if __name__ == "__main__":
    from pipecat.runner.run import main

    main()
