"""Timings are taken in turns, the numbers are the ones one would compute by hand, and a missing peer says so."""

import json
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from tiny import TALKER, tiny_weights
from torch import nn

from wan_streamer import presets
from wan_streamer.benchmarks import runtime, timing
from wan_streamer.benchmarks.codecs import Streaming, bench_codecs
from wan_streamer.benchmarks.peers import PEERS, Peer
from wan_streamer.benchmarks.training import PlainTransformer
from wan_streamer.cli.app import main
from wan_streamer.errors import ConfigError
from wan_streamer.model.pretrained import save_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.presets import get_preset
from wan_streamer.runtime.agent import WanStreamer
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_UNIT


class Clock:
    """Stands still until a contender moves it."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def __call__(self) -> float:
        return self.now


class Slow:
    parameters = 7

    def __init__(self, clock: Clock, name: str, encode: float, decode: float) -> None:
        self.clock, self.name, self.seconds = clock, name, (encode, decode)

    def encode(self) -> str:
        self.clock.now += self.seconds[0]
        self.clock.calls.append(self.name)
        return f"code of {self.name}"

    def decode(self, code: str) -> None:
        assert code == f"code of {self.name}"
        self.clock.now += self.seconds[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_weights(tiny_weights(), folder)
    return folder


def test_contenders_take_turns() -> None:
    clock = Clock()
    contenders = {"a": Slow(clock, "a", 0.002, 0.003), "b": Slow(clock, "b", 0.5, 0.25)}
    seconds = timing.take_turns(contenders, 5, clock)
    assert clock.calls == ["a"] * timing.WARMUP_UNITS + ["b"] * timing.WARMUP_UNITS + ["a", "b"] * 5
    assert seconds["a"].encode == pytest.approx([0.002] * 5)
    assert seconds["a"].decode == pytest.approx([0.003] * 5)
    assert seconds["b"].encode == pytest.approx([0.5] * 5)


def test_a_heavy_contender_plays_fewer_rounds() -> None:
    clock = Clock()
    contenders = {"a": Slow(clock, "a", 0.002, 0.003), "b": Slow(clock, "b", 3.0, 4.0)}
    seconds = timing.take_turns(contenders, 9, clock)
    assert (len(seconds["a"].encode), len(seconds["b"].encode)) == (9, timing.HEAVY_UNITS)
    assert clock.calls.count("b") == 1 + timing.HEAVY_UNITS  # one unit of warm-up tells enough


def test_spread_and_ratio() -> None:
    assert timing.spread([0.001, 0.002, 0.003, 0.004, 0.101]) == {"p50": 3.0, "p95": 81.6}
    ours = {"encode_ms": {"p50": 4.0, "p95": 90.0}, "decode_ms": {"p50": 6.0, "p95": 90.0}}
    peer = {"encode_ms": {"p50": 20.0, "p95": 20.0}, "decode_ms": {"p50": 5.0, "p95": 5.0}}
    assert timing.ratio(ours, peer) == 2.5


def test_gflop_counts_encode_and_decode() -> None:
    class Layers(Slow):
        def __init__(self) -> None:
            self.linear, self.conv = nn.Linear(1000, 500), nn.Conv2d(3, 8, 3, padding=1)

        def encode(self) -> torch.Tensor:
            return self.linear(torch.zeros(20, 1000))

        def decode(self, code: torch.Tensor) -> torch.Tensor:
            return self.conv(torch.zeros(1, 3, 100, 200))

    # 2 x 20 x 1000 x 500 and 2 x 100 x 200 x 8 x 27
    assert timing.gflop(Layers()) == pytest.approx((20.0e6 + 8.64e6) / 1e9, abs=6e-4)


def test_our_codecs_carry_their_state() -> None:
    weights = tiny_weights()
    units_BT = torch.randn(1, 2 * SAMPLES_PER_UNIT, generator=torch.Generator().manual_seed(0)) * 0.1
    contender = Streaming(weights.audio_vae, units_BT[:, :SAMPLES_PER_UNIT])
    with torch.inference_mode():
        whole, _ = weights.audio_vae.encode(units_BT)
        contender.encode()
        contender.unit = units_BT[:, SAMPLES_PER_UNIT:]
        torch.testing.assert_close(contender.encode(), whole[:, FRAMES_PER_UNIT:], atol=1e-5, rtol=0)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["wan-streamer", *(str(argument) for argument in arguments)])
    main()


def test_command_end_to_end(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new folder" / "report.json"
    options = ["--json", path, "--checkpoint", checkpoint, "--peers", "", "--units", "3", "--threads", "1"]
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "bench", "codecs", *options)
    assert end.value.code in (0, None)
    assert "ours" in capsys.readouterr().out
    report = json.loads(path.read_text())
    weights = tiny_weights()
    for modality, vae in (("audio", weights.audio_vae), ("video", weights.video_vae)):
        part = report[modality]
        assert set(part) == {"ours", "peers", "ratio"}
        assert part["peers"] == part["ratio"] == {}
        assert set(part["ours"]) == {"encode_ms", "decode_ms", "parameters", "gflop"}
        assert part["ours"]["parameters"] == sum(p.numel() for p in vae.parameters())
        for way in ("encode_ms", "decode_ms"):
            assert 0 < part["ours"][way]["p50"] <= part["ours"][way]["p95"]
    assert (report["threads"], report["units"], report["torch"]) == (1, 3, torch.__version__)
    served = WanStreamer.from_pretrained(checkpoint).formats.pictures
    assert report["dtype"] == {"audio": "float32", "video": served}
    assert report["frame"] == [TALKER.video_vae.height, TALKER.video_vae.width]
    assert report["cpu"]
    assert report["date"].startswith("20")
    assert report["skipped"] == {}


def test_unknown_peer_is_one_line(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "bench", "codecs", "--checkpoint", checkpoint, "--peers", "mimi,encodec9")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: unknown peer 'encodec9'; known peers are mimi, wan2.1, taesd\n"


def test_missing_and_broken_peers_are_skipped(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_interface(unit: torch.Tensor) -> timing.Contender:
        raise TypeError("no argument 'streaming'")

    monkeypatch.setitem(sys.modules, "moshi", None)
    monkeypatch.setitem(PEERS, "changed", Peer("video", "pip install changed==1", other_interface, ""))
    threads = torch.get_num_threads()
    report = bench_codecs(checkpoint, ["mimi", "changed"], units=1, threads=threads + 1)
    assert "pip install --no-deps moshi" in report["skipped"]["mimi"]
    assert "no argument 'streaming'" in report["skipped"]["changed"]
    assert report["audio"]["ours"]["encode_ms"]["p50"] > 0
    assert report["audio"]["peers"] == report["video"]["peers"] == {}
    assert (report["threads"], torch.get_num_threads()) == (threads + 1, threads)


def test_a_peer_is_measured_beside_ours(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Identity:
        parameters = 0

        def __init__(self, unit: torch.Tensor) -> None:
            assert unit.shape == (1, SAMPLES_PER_UNIT)
            self.unit = unit

        def encode(self) -> torch.Tensor:
            return self.unit

        def decode(self, code: torch.Tensor) -> torch.Tensor:
            return code

    monkeypatch.setitem(PEERS, "identity", Peer("audio", "", Identity, "does nothing"))
    report = bench_codecs(checkpoint, ["identity"], units=3)
    assert 0 <= report["audio"]["ratio"]["identity"] < 1
    assert report["audio"]["peers"]["identity"]["gflop"] == 0
    assert report["notes"] == {"identity": "does nothing"}


def test_dtype(checkpoint: Path) -> None:
    assert bench_codecs(checkpoint, [], units=1, dtype="float32")["dtype"]["video"] == "float32"
    with pytest.raises(ConfigError, match="float16"):
        bench_codecs(checkpoint, [], units=1, dtype="float16")


def test_training_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: TALKER)
    path = tmp_path / "report.json"
    options = ["--json", path, "--presets", "tiny", "--units", "4", "--rows", "2", "--steps", "2", "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "bench", "training", *options)
    assert end.value.code in (0, None)
    shown = capsys.readouterr().out
    assert "tiny" in shown
    assert "plain" in shown
    part = json.loads(path.read_text())["presets"]["tiny"]
    ours, plain = part["ours"], part["plain"]
    assert part["ratio"] == pytest.approx(plain["step_ms"]["p50"] / ours["step_ms"]["p50"], rel=0.01)
    assert ours["units_per_s"] == pytest.approx(8000 / ours["step_ms"]["p50"], rel=0.01)
    assert ours["parameters"] == sum(p.numel() for p in Streamer(TALKER).parameters())
    for row in (ours, plain):
        assert 0 < row["utilisation"] < 1.2


def test_the_plain_peer_is_as_large() -> None:
    for name in ("nano", "smol"):
        config = get_preset(name)
        with torch.device("meta"):
            plain = PlainTransformer(config.backbone)
        layers = sum(p.numel() for p in plain.parameters() if p.ndim == 2)
        backbone = config.backbone
        ours = backbone.head_dim * backbone.dim * 2 * (backbone.heads + backbone.kv_heads)
        assert layers == pytest.approx(backbone.layers * (ours + 3 * backbone.dim * backbone.mlp_dim), rel=0.01)


# ------------------------------------------------------------------------------------------------------- the runtime


def test_runtime_report_has_what_readers_expect(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "QUICK_UNITS", 5)
    monkeypatch.setattr(runtime, "QUICK_HISTORY_S", 0.0)
    monkeypatch.setitem(sys.modules, "moonshine_voice", None)  # so that no cascade is loaded
    path = tmp_path / "runtime.json"
    arguments = ["bench", "runtime", "--quick", "--checkpoint", str(checkpoint), "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["wan-streamer", *arguments])
    with pytest.raises(SystemExit, match="0"):
        main()
    report = json.loads(path.read_text())
    assert set(report["schedules"]) == {"eager", "paced"}
    for row in report["schedules"].values():
        assert {"p50", "p95", "p99"} == set(row["model_latency_ms"])
        assert row["units"] == 5
    assert report["schedules"]["paced"]["model_latency_ms"]["p50"] > 160, "it shows the unit of the step before"
    assert {"observe", "text", "solve", "decode"} <= set(report["schedules"]["eager"]["stage_ms"])
    assert [row["n"] for row in report["sessions"]] == [1, 2, 4]
    assert all(row["units"] == 5 * row["n"] and 0 <= row["fps"] <= 25 for row in report["sessions"])
    assert report["schedules"]["eager"]["counters"]["units"] == 5
    assert report["schedules"]["paced"]["counters"]["performer_losses"] == 0
    assert {"p50", "p95", "p99"} == set(report["schedules"]["eager"]["stage_ms"]["solve"])
    assert report["hour"]["cost_ratio"] is None, "not measured is not a number"
    assert report["first_sound_ms"] == report["first_frame_ms"] == {"ours": None, "cascade": None}
    assert set(runtime.INCLUDES) <= set(report), "each is explained, and there"


def test_histories_leave_the_agent_as_it_was(checkpoint: Path) -> None:
    agent = WanStreamer.from_pretrained(checkpoint)
    config = agent.weights.streamer.config
    found = runtime.histories(agent, seconds=0.0)
    assert agent.weights.streamer.config is config
    assert {policy: len(points) for policy, points in found.items()} == {"window": 1, "full": 1}
    assert found["full"][0][0] == pytest.approx(runtime.PIECE / runtime.MINUTE, abs=0.01)


def test_histories_have_their_own_policy(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, opened = WanStreamer.from_pretrained(checkpoint), []
    session = agent.session
    monkeypatch.setattr(agent, "session", lambda seed: opened.append(session(seed)) or opened[-1])
    runtime.histories(agent, seconds=0.0)
    window, full = (len(one.live.cache.state().block_M) for one in opened)
    assert full > 2 * window


class Ageing:
    """A session whose units take longer and longer, and which keeps everything."""

    def __init__(self, clock: Clock, slower: float) -> None:
        self.clock, self.slower, self.units = clock, slower, 0

    def step(self, user: object) -> None:
        self.units += 1
        self.clock.now += 0.05 + self.slower * self.units


@pytest.mark.parametrize(("slower", "ratio"), [(0.0, 1.0), (1e-4, 1.9)])
def test_a_cost_that_grows_is_reported(slower: float, ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(runtime.time, "perf_counter", clock)
    monkeypatch.setattr(runtime, "noise_units", lambda agent: iter(int, 1))
    monkeypatch.setattr(runtime, "_memory_mb", lambda: clock.now)
    agent = types.SimpleNamespace(session=lambda seed: Ageing(clock, slower))
    hour = runtime.long_run(agent, 5)  # type: ignore[arg-type]
    assert hour["cost_ratio"] == pytest.approx(ratio, abs=0.1)
    assert hour["memory_growth_mb"] > 0


def test_sessions_that_are_too_slow_lose_pictures(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = WanStreamer.from_pretrained(checkpoint)
    step = agent.session().__class__.step
    monkeypatch.setattr(agent.session().__class__, "step", lambda *args, **kw: time.sleep(0.4) or step(*args, **kw))
    row = runtime.together(agent, 1, 6)
    assert row["fps"] < 20
    assert row["deadline_misses"] >= 3
