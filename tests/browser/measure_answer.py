"""Measures in a real browser how long after a visitor's last word the agent is heard, beside the page's own figures.

    python tests/browser/measure_answer.py [--checkpoint nano] [--film FILM] [--seconds 60] [--json OUT.json]

The film is the visitor's microphone and camera. The sound of both sides is watched in the page, in steps of 10 ms: an
answer is the first sound of the agent after the last one of the visitor, if the agent was silent then. It holds all
that one waits for but the network: encoding, jitter buffers, up to 160 ms until the unit is full, the model, the
playout queue, the browser's own buffer, and the pause that the agent leaves because it has learned to. State the
machine.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # standin
from harness import REPO, chromium, film_devices, run_server, start_call
from measure_latency import summary

NETWORK_MS = 350  # what the paper takes the network to be; added, not measured
PAUSE_S, LONGEST_S = 0.5, 3.0  # silence that ends an utterance; what is no answer any more
LOUD = {"self": 0.02, "agent": 0.01}  # RMS of 10 ms; the visitor's microphone has noise

LISTEN = """async () => {
  const audio = new AudioContext({ sampleRate: 48000 });
  const code = `registerProcessor("levels", class extends AudioWorkletProcessor {
    constructor() { super(); this.sum = 0; this.n = 0; }
    process([input]) {
      for (const x of input[0] ?? []) {
        this.sum += x * x;
        if (++this.n === 480) { this.port.postMessage(Math.sqrt(this.sum / 480)); this.sum = this.n = 0; }
      }
      return true;
    } })`;
  await audio.audioWorklet.addModule(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  window.levels = { self: [], agent: [] };
  for (const name of ["self", "agent"]) {
    const video = document.querySelector(`[data-testid="${name}-video"]`), node = new AudioWorkletNode(audio, "levels");
    node.port.onmessage = ({ data }) => window.levels[name].push(data);
    audio.createMediaStreamSource(new MediaStream(video.srcObject.getAudioTracks())).connect(node).connect(
      new GainNode(audio, { gain: 0 })).connect(audio.destination);
  }
}"""


def answers(levels: dict[str, list[float]]) -> np.ndarray:
    """Seconds from the visitor's last sound to the agent's first, of every utterance that was answered."""
    own, agent = (np.asarray(levels[name]) > LOUD[name] for name in ("self", "agent"))
    pause, longest, found = round(PAUSE_S * 100), round(LONGEST_S * 100), []
    for end in np.flatnonzero(own[:-1] & ~own[1:]) + 1:
        after = np.flatnonzero(agent[end : end + longest])
        silent = not own[end : end + pause].any() and not agent[max(0, end - 20) : end].any()
        if silent and len(after) and not own[end : end + after[0]].any():
            found.append(after[0] / 100)
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--film", type=Path, default=REPO / "examples" / "hello.mp4")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        devices = film_devices(folder, options.film)
        with run_server(folder, "--checkpoint", options.checkpoint) as server, chromium(devices) as open_page:
            page = open_page(server.url)
            page.set_viewport_size({"width": 700, "height": 600})  # drawing costs the processor that all share
            start_call(page)
            time.sleep(6)  # the buffers settle
            page.evaluate(LISTEN)
            time.sleep(options.seconds)
            levels = page.evaluate("window.levels")
            page.locator("#latency summary").click()
            panel = page.get_by_test_id("latency").inner_text()
            page.get_by_test_id("stop").click()
            server.wait_free()
    first_sound = summary(1000 * answers(levels))
    total = {key: first_sound[key] + NETWORK_MS for key in ("p50", "p95") if key in first_sound}
    report = {"first_sound_ms": first_sound, "with_network_ms": total, "page": panel.splitlines()}
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
