"""A call over the WebSocket in a real browser: chosen by itself where UDP does not pass, and asked for."""

import time

import numpy as np
import pytest
import standin
from harness import CAMERA_COLOUR, HURRY, Server, audio_of, start_call
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser

READY_MS = 40_000
# Chromium has no switch that blocks UDP to this machine: WebRTC may use relays only here, and there are none.
NO_WAY = """window.RTCPeerConnection = class extends window.RTCPeerConnection {
  constructor(options) { super({ ...options, iceTransportPolicy: "relay" }); }
};"""


def assert_call(page: Page) -> None:
    """The stand-in's tone and moving block arrive, and what it is sent is heard and seen."""
    time.sleep(2)
    assert page.evaluate("window.probe()") == "running"
    time.sleep(4)
    result = page.evaluate("window.probeResult()")
    sound, frames = audio_of(result), result["frames"]
    levels = np.sqrt(np.mean(sound[: len(sound) // 480 * 480].reshape(-1, 480) ** 2, axis=1))
    assert abs(np.quantile(levels, 0.9) - standin.TONE_LEVEL / np.sqrt(2)) < 0.03
    assert np.mean(levels[5:] < 0.05) <= 0.5, "the tone is holes"  # a page on a busy machine leaves some out
    halves = sound[: len(sound) // 24_000 * 24_000].reshape(-1, 24_000)  # a hole shifts the phase of what follows
    halves = halves[np.sqrt(np.mean(halves**2, axis=1)) > 0.1]
    peaks = np.argmax(np.abs(np.fft.rfft(halves * np.hanning(24_000))), axis=1) * 2
    assert abs(np.median(peaks) - standin.TONE_HZ) <= 2
    assert {(f["width"], f["height"]) for f in frames} == {(standin.WIDTH, standin.HEIGHT)}
    assert (frames[-1]["presented"] - frames[0]["presented"]) / (frames[-1]["t"] - frames[0]["t"]) * 1000 >= 15
    places = [f["block"] for f in frames if f["block"] is not None]
    assert np.mean(np.abs(np.diff(places)) > 0) > 0.5, "the block does not move"
    captions = page.get_by_test_id("captions")
    expect(captions.locator("[data-lane=response]").first).to_contain_text("Unit")
    last = captions.locator("[data-lane=transcript]").last
    expect(last).to_contain_text("saw 336x192", timeout=READY_MS)
    seen = last.inner_text().rstrip(". ").split()[-1]
    assert np.abs(np.subtract([int(c) for c in seen.split(",")], CAMERA_COLOUR)).max() < 25
    heard = [float(w) for w in captions.inner_text().split() if w.startswith("0.")]
    assert max(heard) > 0.02


@pytest.mark.alone
def test_where_udp_is_blocked_the_socket_is_taken_by_itself(standin_server: Server, open_page) -> None:
    page = open_page(standin_server.url)
    page.add_init_script(NO_WAY)
    page.add_init_script(HURRY)
    page.reload()
    start_call(page)
    assert page.evaluate("window.peers.length") == 1  # WebRTC was tried
    assert page.evaluate("window.peers[0].connectionState") == "closed"
    assert_call(page)
    assert page.problems == []


def test_a_call_over_the_socket(standin_server: Server, open_page) -> None:
    page = open_page(standin_server.url + "/?transport=socket", probe=False)  # the page's policy is in force
    start_call(page)
    assert page.evaluate("window.peers.length") == 0
    captions = page.get_by_test_id("captions")
    page.get_by_label("Type to the agent").fill("good morning")
    page.keyboard.press("Enter")
    expect(captions).to_contain_text("You typed good morning", timeout=READY_MS)
    page.get_by_label("Camera", exact=True).click()
    expect(captions).to_contain_text("saw nothing", timeout=READY_MS)
    page.get_by_label("Camera", exact=True).click()
    expect(captions.locator("[data-lane=transcript]").last).to_contain_text("saw 336x192", timeout=READY_MS)
    page.reload()
    expect(page.get_by_test_id("status")).to_have_text("Live", timeout=READY_MS)  # by itself
    expect(page.get_by_test_id("agent-video")).to_have_js_property("videoWidth", standin.WIDTH, timeout=READY_MS)
    page.get_by_test_id("stop").click()
    standin_server.wait_free(3)
    assert page.problems == []
