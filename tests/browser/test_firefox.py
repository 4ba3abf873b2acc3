"""The second kind of browser: a call in a real Firefox shows picture, sound and captions."""

from collections.abc import Iterator

import pytest
import standin
from firefox import FirefoxPage, firefox
from harness import Server

pytestmark = [pytest.mark.browser, pytest.mark.alone]

VIDEO = "document.querySelector('[data-testid=agent-video]')"
CAPTIONS = "document.querySelector('[data-testid=captions]').innerText"
# Every 100 ms for some seconds: level and strongest frequency of what is played, and where the white block is.
WATCH = f"""(async () => {{
  const video = {VIDEO}, context = new AudioContext(), ear = new AnalyserNode(context, {{ fftSize: 16384 }});
  await context.resume();
  context.createMediaStreamSource(new MediaStream(video.srcObject.getAudioTracks())).connect(ear);
  const eye = new OffscreenCanvas(84, 48).getContext("2d", {{ willReadFrequently: true }});
  const samples = new Float32Array(ear.fftSize), bins = new Float32Array(ear.frequencyBinCount), found = [];
  for (let n = 0; n < 40; n++) {{
    await new Promise((resolve) => setTimeout(resolve, 100));
    ear.getFloatTimeDomainData(samples);
    ear.getFloatFrequencyData(bins);
    eye.drawImage(video, 0, 0, 84, 48);
    const row = eye.getImageData(0, 13, 84, 1).data;
    let block = -1;
    for (let x = 83; x >= 0; x--) if (row[4 * x + 1] > 150) block = x;
    found.push({{ level: Math.hypot(...samples.slice(-2048)) / Math.sqrt(2048), block,
                  peak: bins.indexOf(Math.max(...bins)) * context.sampleRate / ear.fftSize }});
  }}
  return found;
}})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FirefoxPage]:
    with firefox(tmp_path_factory.mktemp("firefox")) as page:
        yield page


@pytest.mark.parametrize("transport", ["webrtc", "socket"])
def test_a_call_in_firefox(standin_server: Server, page: FirefoxPage, transport: str) -> None:
    page.problems.clear()
    page.goto(f"{standin_server.url}/?transport={transport}")
    page.evaluate("document.querySelector('[data-testid=start]').click()")
    page.until("document.querySelector('[data-testid=status]').innerText === 'Live'")
    page.until(f"{VIDEO}.videoWidth === {standin.WIDTH}")
    page.until(f"/Unit \\d+/.test({CAPTIONS})")
    page.until(f"/heard 0\\.[1-9]|heard 0\\.0[1-9]/.test({CAPTIONS})")  # its own tone
    page.until(f"/saw \\d+x192/.test({CAPTIONS})")
    heard_and_seen = page.evaluate(WATCH)[15:]
    tone = [one for one in heard_and_seen if abs(one["peak"] - standin.TONE_HZ) < 10 and one["level"] > 0.08]
    assert len(tone) >= 0.7 * len(heard_and_seen), heard_and_seen
    places = [one["block"] for one in heard_and_seen]
    assert min(places) >= 0
    assert len(set(places)) > 10
    page.evaluate("document.querySelector('[data-testid=stop]').click()")
    page.until("document.querySelector('[data-testid=status]').innerText === 'Call ended'")
    standin_server.wait_free()
    assert [problem for problem in page.problems if "WebRTC" not in problem] == []
