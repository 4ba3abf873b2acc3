"""What a visitor does on the page beside talking: keys, pickers, typing, copying, saving, recording, losing things."""

import http.server
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import standin
from harness import HURRY, REPO, Server, run_server, start_call
from playwright.sync_api import Page, Request, expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

READY_MS = 30_000
REFUSE = """(kinds) => {
  const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (wanted) => {
    if (kinds.some((kind) => kind in wanted)) throw new DOMException("", "NotAllowedError");
    return open(wanted);
  };
}"""
# Every message that the page sends to the server, pings left out.
LISTEN = """() => {
  window.sent = [];
  const send = RTCDataChannel.prototype.send;
  RTCDataChannel.prototype.send = function (text) {
    if (!text.includes('"ping"')) window.sent.push(JSON.parse(text));
    return send.call(this, text);
  };
}"""
# The clock of the page jumps while the timer goes off that looks after the connection, before what came meanwhile is
# delivered: as if nothing had run for so long.
JUMPY = """() => {
  const now = performance.now.bind(performance), repeat = window.setInterval;
  let ahead = 0;
  window.jump = 0;
  performance.now = () => now() + ahead;
  window.setInterval = (done, ms) => repeat(() => {
    if (ms === 1000) [ahead, window.jump] = [ahead + window.jump, 0];
    done();
  }, ms);
}"""
AXE = REPO / "web" / "node_modules" / "axe-core" / "axe.min.js"


def sent(page: Page, kind: str) -> list[dict]:
    return [message for message in page.evaluate("window.sent") if message["type"] == kind]


def test_keys_switch_the_devices_but_not_while_typing(standin_server: Server, open_page) -> None:
    page = open_page(standin_server.url, probe=False)
    microphone, camera = page.get_by_label("Microphone", exact=True), page.get_by_label("Camera", exact=True)
    page.get_by_test_id("start").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("status")).to_have_text("Live", timeout=READY_MS)
    expect(microphone).to_be_focused()  # the button that had the focus has gone
    page.keyboard.press("m")
    expect(microphone).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#announcer")).to_have_text("Microphone off")
    page.keyboard.press("v")
    expect(camera).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("Control+m")
    page.get_by_label("Type to the agent").press_sequentially("move")
    expect(microphone).to_have_attribute("aria-pressed", "false")
    expect(camera).to_have_attribute("aria-pressed", "false")
    expect(page.get_by_test_id("captions")).to_contain_text("heard nothing saw nothing", timeout=READY_MS)
    assert page.problems == []


def test_a_refused_camera_is_off_and_that_is_no_error(standin_server: Server, open_page) -> None:
    page = open_page(standin_server.url, probe=False)
    page.evaluate(REFUSE, ["video"])
    start_call(page)
    expect(page.get_by_label("Camera", exact=True)).to_have_attribute("aria-pressed", "false")
    expect(page.get_by_label("Microphone", exact=True)).to_have_attribute("aria-pressed", "true")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("No permission for the camera")
    expect(alert).to_have_attribute("data-kind", "notice")
    assert page.problems == []


def test_who_refuses_both_devices_may_type(standin_server: Server, open_page) -> None:
    page = open_page(standin_server.url, probe=False)
    page.evaluate(REFUSE, ["audio", "video"])
    page.get_by_test_id("start").click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("No permission for the microphone")
    expect(alert).to_have_attribute("data-kind", "error")
    page.get_by_role("button", name="Type instead").click()
    expect(page.get_by_test_id("status")).to_have_text("Live", timeout=READY_MS)
    page.get_by_label("Type to the agent").fill("can you read this?")
    page.keyboard.press("Enter")
    captions = page.get_by_test_id("captions")
    expect(captions.locator("[data-lane=response]", has_text="You typed can you read this?")).to_be_visible(
        timeout=READY_MS
    )
    expect(captions).to_contain_text("heard nothing saw nothing")
    assert page.problems == []


def test_an_example_begins_the_call_and_is_said(standin_server: Server, open_page) -> None:
    page = open_page(standin_server.url, probe=False)
    expect(page.locator("#about-text")).to_have_text(standin.ABOUT)
    assert page.locator("#examples button").all_inner_texts() == list(standin.EXAMPLES)
    page.get_by_role("button", name=standin.EXAMPLES[0]).click()
    response = page.get_by_test_id("captions").locator("[data-lane=response]")
    expect(response.filter(has_text=f"You typed {standin.EXAMPLES[0]}.")).to_be_visible(timeout=READY_MS)
    page.get_by_role("button", name=standin.EXAMPLES[1]).click()
    expect(response.filter(has_text=f"You typed {standin.EXAMPLES[1]}.")).to_be_visible(timeout=READY_MS)
    assert page.problems == []


def test_captions_are_bubbles_in_order_that_can_be_copied_and_saved(standin_server: Server, open_page) -> None:
    page = open_page(standin_server.url, probe=False)
    page.context.grant_permissions(["clipboard-read", "clipboard-write", "microphone", "camera"])
    expect(page.get_by_role("button", name="Copy")).to_be_disabled()
    start_call(page)
    page.get_by_label("Type to the agent").fill("hi")
    page.keyboard.press("Enter")
    bubbles = page.get_by_test_id("captions").locator("li")
    expect(bubbles.nth(6)).to_be_visible(timeout=READY_MS)
    page.get_by_label("Type to the agent").fill("again")
    page.keyboard.press("Enter")
    whole = page.get_by_test_id("captions").locator("[data-lane=transcript]").last
    expect(whole).to_have_text(re.compile(r"^You \d+:\d\d\s*All that was said\.$"), timeout=READY_MS)
    page.get_by_test_id("stop").click()
    expect(page.get_by_test_id("status")).to_have_text("Call ended")

    said = [re.match(r"Stand-in \d+:\d\d\s+(.*)", text) for text in bubbles.all_inner_texts() if "Stand-in" in text]
    assert all(match and len(re.findall("Unit|You typed", match[1])) == 1 for match in said), said
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    assert download.value.suggested_filename.endswith(".txt")
    saved = Path(download.value.path()).read_text()
    assert saved == copied
    lines = [re.fullmatch(r"(\d+):(\d\d)  (Stand-in|You|You \(typed\)): (.+)", line) for line in saved.splitlines()]
    assert len(lines) == bubbles.count()
    assert all(lines), saved
    spoken = [(int(line[1]) * 60 + int(line[2])) for line in lines if line and line[3] != "You (typed)"]
    assert spoken == sorted(spoken)
    assert "You (typed): hi" in saved
    assert page.problems == []


def test_captions_follow_until_somebody_scrolls_up(standin_server: Server, open_page) -> None:
    page = open_page(standin_server.url, probe=False)
    page.set_viewport_size({"width": 1280, "height": 600})
    start_call(page)
    captions, latest = page.get_by_test_id("captions"), page.get_by_role("button", name="Latest")
    for text in ("one", "two", "three"):  # fills the list faster
        page.get_by_label("Type to the agent").fill(text)
        page.keyboard.press("Enter")
    expect(captions.locator("li").nth(11)).to_be_visible(timeout=READY_MS)
    gap = "e => e.scrollHeight - e.clientHeight - e.scrollTop"
    assert captions.evaluate(gap) < 2
    for width, height in ((1000, 560), (375, 800), (1280, 600)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(400)
        assert captions.evaluate(gap) < 2
    captions.evaluate("e => { e.scrollTop = 0; }")
    expect(latest).to_be_visible()
    count = captions.locator("li").count()
    expect(captions.locator("li").nth(count + 1)).to_be_attached(timeout=READY_MS)
    assert captions.evaluate("e => e.scrollTop") == 0
    latest.click()
    expect(latest).to_be_hidden()
    assert captions.evaluate(gap) < 2
    assert page.problems == []


def test_a_recording_has_both_sides(standin_server: Server, open_page, tmp_path: Path) -> None:
    page = open_page(standin_server.url, probe=False)
    expect(page.get_by_role("button", name="Record")).to_be_disabled()
    start_call(page)
    page.get_by_role("button", name="Record").click()
    expect(page.locator("#recording")).to_be_visible()
    page.wait_for_timeout(3500)
    page.get_by_test_id("stop").click()  # ends the recording as well
    files = {}
    for name in ("download-video", "download-events"):
        with page.expect_download(timeout=READY_MS) as download:
            page.get_by_test_id(name).click()
        files[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[name])

    with av.open(str(files["download-video"])) as film:
        pictures = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(pictures) > 10
    assert pictures[-1].shape == (standin.HEIGHT, 2 * standin.WIDTH, 3)
    own = pictures[len(pictures) // 2][:, : standin.WIDTH].reshape(-1, 3).mean(0)
    assert own[0] > own[2] + 50  # the red camera
    assert any(picture[32:80, standin.WIDTH :].max() > 200 for picture in pictures)  # the agent's white block
    with av.open(str(files["download-video"])) as film:
        sound = np.concatenate([frame.to_ndarray().mean(0) for frame in film.decode(audio=0)]).astype(np.float64)
        rate = film.streams.audio[0].rate
    assert 2.5 < len(sound) / rate < 6.5
    piece = rate // 10  # a busy machine leaves gaps, but not in all of them
    spectrum = np.abs(np.fft.rfft(sound[: len(sound) // piece * piece].reshape(-1, piece) * np.hanning(piece)))
    hz = np.arange(spectrum.shape[1]) * rate / piece
    near = spectrum[:, np.abs(hz - standin.TONE_HZ) < 15].max(1)
    assert (near > 20 * np.median(spectrum[:, (hz > 400) & (hz < 1000)], axis=1)).sum() > 10  # the agent's tone

    events = json.loads(files["download-events"].read_text())
    assert {"caption", "stats"} <= {event["type"] for event in events}
    assert [event["at_ms"] for event in events] == sorted(event["at_ms"] for event in events)
    assert page.problems == []


def test_pickers_follow_what_is_plugged_in(standin_server: Server, open_page) -> None:
    page = open_page(standin_server.url, probe=False)
    plug = """(names) => {
      navigator.mediaDevices.enumerateDevices = async () =>
        names.map((label) => ({ kind: "audioinput", deviceId: label, label }));
      navigator.mediaDevices.dispatchEvent(new Event("devicechange"));
    }"""
    options = page.get_by_label("Choose a microphone").locator("option")
    page.evaluate(plug, ["USB headset", "Built in"])
    expect(options).to_have_text(["Default microphone", "USB headset", "Built in"])
    page.get_by_label("Choose a microphone").select_option("USB headset")
    page.evaluate(plug, ["Built in", "USB headset"])
    expect(page.get_by_label("Choose a microphone")).to_have_value("USB headset")
    page.evaluate(plug, ["Built in"])
    expect(options).to_have_text(["Default microphone", "Built in"])
    expect(page.get_by_label("Choose a microphone")).to_have_value("")
    assert page.problems == []


def test_a_device_that_the_system_takes_away_is_seen_and_told(standin_server: Server, open_page) -> None:
    page = open_page(standin_server.url, probe=False)
    page.evaluate(LISTEN)
    start_call(page)
    assert sent(page, "devices")[-1] == {"type": "devices", "microphone": True, "camera": True}
    end = """() => {
      const track = document.querySelector("[data-testid=self-video]").srcObject.getVideoTracks()[0];
      track.dispatchEvent(new Event("ended"));
    }"""
    mute = """(muted) => {
      const track = document.querySelector("[data-testid=self-video]").srcObject.getAudioTracks()[0];
      Object.defineProperty(track, "muted", { value: muted, configurable: true });
      track.dispatchEvent(new Event(muted ? "mute" : "unmute"));
    }"""
    page.evaluate(mute, True)
    expect(page.get_by_role("alert")).to_contain_text("The system holds the microphone back")
    assert sent(page, "devices")[-1] == {"type": "devices", "microphone": False, "camera": True}
    page.evaluate(mute, False)
    assert sent(page, "devices")[-1] == {"type": "devices", "microphone": True, "camera": True}

    page.evaluate(REFUSE, ["video"])  # nothing can take the camera's place
    page.evaluate(end)
    expect(page.get_by_role("alert")).to_contain_text("The camera went away")
    expect(page.get_by_label("Camera", exact=True)).to_have_attribute("aria-pressed", "false")
    assert sent(page, "devices")[-1] == {"type": "devices", "microphone": True, "camera": False}
    expect(page.get_by_test_id("captions")).to_contain_text("saw nothing", timeout=READY_MS)
    assert page.problems == []


def test_a_page_that_was_held_up_is_not_taken_for_a_lost_one(standin_server: Server, open_page) -> None:
    page = open_page(standin_server.url)
    page.evaluate(JUMPY)
    start_call(page)
    page.evaluate("() => { window.jump = 9000; const end = Date.now() + 1000; while (Date.now() < end); }")
    page.wait_for_timeout(2500)
    assert page.evaluate("window.jump") == 0
    expect(page.get_by_test_id("status")).to_have_text("Live")
    assert page.evaluate("window.peers.length") == 1
    page.get_by_test_id("stop").click()
    assert page.problems == []


def test_a_network_that_lets_no_media_through_is_explained(standin_server: Server, open_page) -> None:
    page = open_page(f"{standin_server.url}/?transport=webrtc")
    page.evaluate(HURRY)
    page.evaluate("() => { RTCPeerConnection.prototype.setRemoteDescription = async () => {}; }")
    page.get_by_test_id("start").click()
    expect(page.get_by_role("alert")).to_contain_text("No way through the network", timeout=READY_MS)
    expect(page.get_by_test_id("start")).to_be_enabled()


@pytest.fixture
def sub_path() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a reverse proxy that removes /agent, and where it sends everything: {"to": URL}."""
    target: dict[str, str] = {}

    class Proxy(http.server.BaseHTTPRequestHandler):
        def forward(self) -> None:
            if not self.path.startswith("/agent/"):
                return self.send_error(404)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
            request = urllib.request.Request(target["to"] + self.path.removeprefix("/agent"), body, method=self.command)
            for name in ("Host", "Origin", "Content-Type", "Authorization"):
                if name in self.headers:
                    request.add_header(name, self.headers[name])
            try:
                answer = urllib.request.urlopen(request, timeout=30)
            except urllib.error.HTTPError as error:
                answer = error
            content = answer.read()
            self.send_response(answer.status)
            for name in ("Content-Type", "Content-Security-Policy"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = forward

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}/agent/", target
    server.shutdown()
    server.server_close()


def test_a_call_at_a_sub_path_asks_no_other_host(open_page, sub_path, tmp_path: Path) -> None:
    url, target = sub_path
    with run_server(tmp_path, "--public-url", url.rstrip("/"), "--proxy", "127.0.0.1") as server:
        target["to"] = server.url
        page = open_page("about:blank", probe=False)
        asked: list[str] = []

        def note(request: Request) -> None:
            asked.append(request.url)

        page.on("request", note)
        page.goto(url)
        start_call(page)
        expect(page.get_by_test_id("captions")).to_contain_text("Unit", timeout=READY_MS)
        page.get_by_test_id("stop").click()
        server.wait_free()
        assert len(asked) > 5
        assert [address for address in asked if not address.startswith(url)] == []
        assert page.problems == []


@pytest.mark.skipif(not AXE.is_file(), reason="needs `npm ci` in web/")
def test_nothing_serious_is_in_the_way_of_anybody(standin_server: Server, open_page) -> None:
    page = open_page(standin_server.url)
    page.add_script_tag(path=str(AXE))

    def serious(where: str) -> list[str]:
        findings: list[str] = []
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            page.wait_for_timeout(500)  # what fades has faded
            findings += [
                f"{where}, {theme}: {found['id']} {node['html'][:120]} {node['failureSummary']}"
                for found in page.evaluate("axe.run()")["violations"]
                if found["impact"] in ("serious", "critical")
                for node in found["nodes"]
            ]
        return findings

    findings = serious("before")
    start_call(page)
    page.locator("#latency summary").click()
    expect(page.get_by_test_id("captions").locator("li").nth(4)).to_be_visible(timeout=READY_MS)
    page.get_by_role("button", name="Record").click()
    findings += serious("in the call")
    page.get_by_test_id("stop").click()
    expect(page.get_by_test_id("download-video")).to_be_visible(timeout=READY_MS)
    page.evaluate(REFUSE, ["audio", "video"])
    page.get_by_test_id("start").click()
    expect(page.get_by_role("alert")).to_be_visible()
    findings += serious("after")
    assert findings == []
