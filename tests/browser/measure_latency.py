"""Measures a call from the visitor's side, in a real browser: how late an answer is, how far sound and picture part.

    python tests/browser/measure_latency.py [--seconds 60] [--transport aiortc own own+0] [--json OUT.json]
    python tests/browser/measure_latency.py --relay [--codec H264] [--loss 2]
    python tests/browser/measure_latency.py --stall 2 --transport own

An echo agent (20 ms of work per unit) gives back what it hears and sees. The made-up camera flashes and the microphone
clicks at irregular times; the page's own picture and sound of them are compared with the agent's. The figures hold
everything from there on: encoding, network, jitter buffers, 0 to 160 ms until the unit is full, the agent, the playout
queue, decoding and rendering. With --relay every frame comes back as it is, without an agent: what the transport alone
costs. With --loss one UDP packet in so many is dropped in either direction, in a network namespace of its own (Linux,
root, iptables). With --stall the server and its model stand still for so long, five seconds before. Run it on an idle
machine and state which.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # standin
from harness import Server, chromium, run_server, write_devices
from playwright.sync_api import Page

RATE = 48_000
FILM_S = 21.0
LOSSY = "WAN_STREAMER_LOSSY"  # set where the network already loses packets
EVENTS_S = np.cumsum(np.random.default_rng(7).uniform(0.9, 1.5, 17))
EVENTS_S = EVENTS_S[EVENTS_S < FILM_S - 1]

TAP = """async () => {
  const own = document.querySelector('[data-testid="self-video"]');
  const agent = document.querySelector('[data-testid="agent-video"]');
  window.seen = { self: [], agent: [] };
  for (const [name, video] of [["self", own], ["agent", agent]]) {
    const canvas = new OffscreenCanvas(8, 8);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    let bright = false;
    const onFrame = (now, meta) => {
      context.drawImage(video, 0, 0, 8, 8);
      const level = context.getImageData(4, 4, 1, 1).data[1];
      if (level > 128 && !bright) window.seen[name].push(meta.expectedDisplayTime);
      bright = level > 128;
      video.requestVideoFrameCallback(onFrame);
    };
    video.requestVideoFrameCallback(onFrame);
  }
  const audio = new AudioContext({ sampleRate: 48000 });
  const code = `registerProcessor("clicks", class extends AudioWorkletProcessor {
    constructor() { super(); this.quiet = 0; }
    process([input]) {
      const samples = input[0] ?? [];
      for (let i = 0; i < samples.length; i++) {
        if (Math.abs(samples[i]) < 0.05) this.quiet++;
        else { if (this.quiet > 9600) this.port.postMessage((currentFrame + i) / sampleRate); this.quiet = 0; }
      }
      return true;
    } })`;
  await audio.audioWorklet.addModule(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  window.heard = { self: [], agent: [] };
  const page = () => performance.now() - audio.currentTime * 1000;
  const offset = page();
  for (const [name, video] of [["self", own], ["agent", agent]]) {
    const node = new AudioWorkletNode(audio, "clicks");
    node.port.onmessage = ({ data }) => window.heard[name].push(data * 1000 + offset);
    audio.createMediaStreamSource(new MediaStream(video.srcObject.getAudioTracks())).connect(node).connect(
      new GainNode(audio, { gain: 0 })).connect(audio.destination);
  }
}"""


ONLY = """(codec) => {
  const known = RTCRtpReceiver.getCapabilities.bind(RTCRtpReceiver), kept = [`video/${codec}`, "video/rtx"];
  RTCRtpReceiver.getCapabilities = (kind) =>
    kind === "audio" ? known(kind) : { codecs: known(kind).codecs.filter(({ mimeType }) => kept.includes(mimeType)) };
  const set = RTCRtpTransceiver.prototype.setCodecPreferences;
  RTCRtpTransceiver.prototype.setCodecPreferences = function () {
    set.call(this, RTCRtpReceiver.getCapabilities("video").codecs);
  };
}"""
USED = """async () => {
  const stats = [...(await window.peers.at(-1).getStats()).values()];
  const codec = (type) => stats.find((s) => s.id === stats.find((s) => s.type === type && s.kind === "video").codecId);
  return [codec("outbound-rtp").mimeType, codec("inbound-rtp").mimeType];
}"""


def flashes_and_clicks(folder: Path) -> list[str]:
    pcm = np.zeros(int(FILM_S * RATE), np.float32)
    noise = np.random.default_rng(1).uniform(-0.7, 0.7, RATE // 12)
    for t in EVENTS_S:
        pcm[int(t * RATE) : int(t * RATE) + len(noise)] = noise
    flashing = [any(t <= i / 25 < t + 0.3 for t in EVENTS_S) for i in range(int(FILM_S * 25))]
    pictures = (np.full((192, 336, 3), 235 if on else 16, np.uint8) for on in flashing)
    return write_devices(folder, (pcm * 32767).astype(np.int16), pictures)


def delays(first: list[float], second: list[float], longest: float = 850.0) -> np.ndarray:
    """Milliseconds from each time of `first` to the next one of `second`, which may be shown a little before it."""
    pairs = [min((b - a for b in second if b > a - 100), default=np.inf) for a in first]
    return np.array([d for d in pairs if d < longest])


def summary(values: np.ndarray) -> dict[str, float]:
    if len(values) == 0:
        return {"n": 0}
    p50, p95 = np.percentile(values, (50, 95))
    return {"n": len(values), "p50": round(float(p50), 1), "p95": round(float(p95), 1)}


def stand_still(server: Server, seconds: float) -> None:
    """The server and its processes, as on a machine that was busy with something else."""
    pid = server.process.pid
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    for what in (signal.SIGSTOP, signal.SIGCONT):
        for one in pids:
            os.kill(one, what)
        time.sleep(seconds if what == signal.SIGSTOP else 5)


def call(page: Page, seconds: float, codec: str, disturb: Callable[[], None]) -> dict:
    page.evaluate(ONLY, codec)
    page.set_viewport_size({"width": 700, "height": 600})  # drawing costs the processor that all share
    page.get_by_test_id("start").click()
    page.wait_for_function("document.body.dataset.state === 'live'", timeout=20_000)
    time.sleep(6)  # the buffers settle
    disturb()
    page.evaluate(TAP)
    time.sleep(seconds)
    result = page.evaluate("({ seen, heard })")
    result["codecs"] = page.evaluate(USED)
    result["page"] = page.get_by_test_id("latency").inner_text().split()
    page.get_by_test_id("stop").click()
    time.sleep(1)
    return result


def with_loss(percent: float) -> int:
    """This command again where the network loses so many packets; its exit code."""
    drop = f"iptables -A INPUT -i lo -p udp -m statistic --mode random --probability {percent / 100} -j DROP"
    line = ["unshare", "--net", "sh", "-c", f'ip link set lo up && {drop} && exec "$@"', "sh", sys.executable]
    return subprocess.run([*line, *sys.argv], env={**os.environ, LOSSY: "1"}).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--transport", nargs="+", default=["aiortc", "own", "own+0"], help="see standin.py")
    parser.add_argument("--relay", action="store_true")
    parser.add_argument("--codec", choices=("VP8", "H264"), default="VP8")
    parser.add_argument("--loss", type=float, default=0.0, help="percent of the UDP packets")
    parser.add_argument("--stall", type=float, default=0.0, help="seconds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.loss and not os.environ.get(LOSSY):
        sys.exit(with_loss(options.loss))
    report: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        devices = flashes_and_clicks(folder)
        agents = ("EchoAgent",) if options.relay else ("EchoAgent", "ClapAgent")
        for transport, agent in itertools.product(options.transport, agents):
            arguments = ["--agent", agent, "--transport", transport, *(["--relay"] if options.relay else [])]
            with run_server(folder, *arguments) as server, chromium(devices) as open_page:
                stall = partial(stand_still, server, options.stall) if options.stall else lambda: None
                result = call(open_page(server.url), options.seconds, options.codec, stall)
            seen, heard = result["seen"], result["heard"]
            if agent == "EchoAgent":
                row = {"codecs": result["codecs"]}
                for name, of in (("audio", heard), ("video", seen)):
                    found = delays(of["self"], of["agent"])
                    thirds = [summary(part) for part in np.array_split(found, 3)]
                    row[name] = {
                        "of": len(of["self"]),
                        **summary(found),
                        "p50 by thirds": [part.get("p50") for part in thirds],
                    }
            else:
                lags = delays([t - 400 for t in seen["agent"]], heard["agent"]) - 400
                row = {"audio after video": summary(lags)}
            print(transport, agent, row, " ".join(result["page"]), flush=True)
            report.setdefault(transport, {}).update(row)
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
