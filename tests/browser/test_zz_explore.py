import sys, time, json

sys.path.insert(0, "/work/main/tests/browser")
import pytest, numpy as np
from conftest import audio_of


def test_x(start_server, open_page):
    s = start_server()
    p = open_page(s.url)
    p.screenshot(path="/tmp/idle.png")
    p.get_by_test_id("start").click()
    p.wait_for_function("document.body.dataset.state==='live'", timeout=15000)
    time.sleep(1)
    print(p.evaluate("window.probe()"))
    T = float(10)
    time.sleep(T)
    p.screenshot(path="/tmp/live.png")
    r = p.evaluate("window.probeResult()")
    a = audio_of(r)
    f = r["frames"]
    np.save("/tmp/a.npy", a)
    json.dump(f, open("/tmp/f.json", "w"))
    print("frames", len(f), "audio s", len(a) / 48000, "size", f[0]["width"], f[0]["height"])
    print("changes", np.percentile([x["change"] or 0 for x in f[1:]], [0, 5, 50]))
    print("dt", np.percentile(np.diff([x["t"] for x in f]), [0, 5, 50, 95, 100]))
    w = 480
    rms = np.sqrt((a[: len(a) // w * w].reshape(-1, w) ** 2).mean(1))
    print("rms", np.percentile(rms, [0, 1, 5, 50, 100]), (rms < 0.05).sum())
    print(p.get_by_test_id("captions").inner_text()[-400:])
    print(p.get_by_test_id("latency").inner_text())
    print(p.problems)
    p.get_by_test_id("stop").click()
    time.sleep(1)
    print(p.get_by_test_id("status").inner_text(), s.status())
    print(s.log.read_text())
