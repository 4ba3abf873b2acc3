"""The real command line: what a user can get wrong is one line on stderr and exit code 2, never a traceback."""

import shutil
import socket
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from films import make_film
from typer.testing import CliRunner

import wan_streamer
from wan_streamer.cli.app import app, main
from wan_streamer.flow.joint import Guidance
from wan_streamer.folders import ARRAYS
from wan_streamer.training.distill.student import DistillConfig
from wan_streamer.training.stages.run import RunOptions

COMMAND = str(Path(sys.executable).with_name("wan-streamer"))
Run = Callable[..., subprocess.CompletedProcess[str]]
NANO = Path(wan_streamer.__file__).parent / "checkpoints" / "nano"


def run(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    line = [COMMAND, *(str(argument) for argument in arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run` without a process of its own, of which many take long to start."""

    def run_here(*arguments: object) -> subprocess.CompletedProcess[str]:
        line = [COMMAND, *(str(argument) for argument in arguments)]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(line, int(ended.value.code or 0), said.out, said.err)

    return run_here


def assert_one_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def training_data(folder: Path) -> Path:
    """What `train` looks for before anything else, by the names of its files."""
    latents = [f"{split}/{name}" for split in ("train", "valid") for name in ("shard-00000.tar", "a.safetensors")]
    for name in (*ARRAYS, "audio_vae.safetensors", "video_vae.safetensors", *latents):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def text_file(path: Path) -> None:
    path.write_text("dear diary, this is not a film\n" * 30)


def empty_file(path: Path) -> None:
    path.touch()


def wave_of_no_length(path: Path) -> None:
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing, "no such file"),
        (text_file, "not a media file"),
        (empty_file, "empty file"),
        (wave_of_no_length, "neither sound nor moving pictures"),
        (Path.mkdir, "folder"),
    ],
)
def test_bad_recording(make, words: str, tmp_path: Path) -> None:
    user, film = tmp_path / "user.mp4", tmp_path / "reply.mp4"
    make(user)
    assert_one_line(run("talk", user, "--out", film), words, str(user))
    assert not film.exists()


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"wan-streamer {wan_streamer.__version__}\n")


def test_film_of_unknown_kind(tmp_path: Path) -> None:
    user = make_film(tmp_path / "user.mp4", seconds=0.4)
    assert_one_line(run("talk", user, "--out", tmp_path / "reply.doc"), ".mp4")


def test_film_must_not_replace_the_recording(tmp_path: Path) -> None:
    user = make_film(tmp_path / "user.mp4", seconds=0.4)
    before = user.read_bytes()
    assert_one_line(run("talk", user, "--out", user), "replace")
    assert user.read_bytes() == before


@pytest.mark.parametrize("command", ["inspect", "train codec --codec audio", "train duplex"])
def test_unknown_preset(command: str, tmp_path: Path, here: Run) -> None:
    places = [] if command == "inspect" else ["--data", training_data(tmp_path / "data"), "--out", tmp_path / "run"]
    assert_one_line(here(*command.split(), "--preset", "gigantic", *places), "gigantic", "nano", "paper-192p")


@pytest.mark.parametrize("command", ["train codec --codec audio", "train codec --codec video", "train duplex"])
def test_missing_training_data(command: str, tmp_path: Path, here: Run) -> None:
    result = here(*command.split(), "--data", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert_one_line(result, "nowhere")


@pytest.mark.parametrize("device", ["cuda:99", "meta", "toaster"])
@pytest.mark.parametrize("command", ["train codec --codec audio", "train codec --codec video", "train duplex"])
def test_missing_training_device(command: str, device: str, tmp_path: Path, here: Run) -> None:
    out, data = tmp_path / "run", training_data(tmp_path / "data")
    assert_one_line(here(*command.split(), "--data", data, "--out", out, "--device", device), device, "cuda:N")
    assert not out.exists()


def test_missing_shards_and_codecs(tmp_path: Path) -> None:
    assert_one_line(run("encode", tmp_path / "nowhere", tmp_path / "a", "--codecs", NANO), "nowhere")
    shards, audio = training_data(tmp_path / "data"), tmp_path / "audio"
    audio.mkdir()
    for path in NANO.glob("audio_vae.*"):
        shutil.copy(path, audio)
    assert_one_line(run("encode", shards, tmp_path / "b", "--codecs", audio), "video_vae.safetensors", "--codec video")
    assert not list(tmp_path.glob("[ab]"))


@pytest.mark.parametrize("name", ["model.safetensors", "audio_vae.safetensors", "video_vae.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_checkpoint(name: str, damage: str, tmp_path: Path, here: Run) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(NANO, checkpoint)
    if damage == "gone":
        (checkpoint / name).unlink()
    else:
        data = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(data[: len(data) // 2])
    user, film = make_film(tmp_path / "user.mp4", seconds=0.4), tmp_path / "reply.mp4"
    assert_one_line(here("talk", user, "--out", film, "--checkpoint", checkpoint), name)
    assert not film.exists()


def test_checkpoint_with_an_unknown_key(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(NANO, checkpoint)
    text = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(text.replace("{", '{"colour": "blue", ', 1))
    assert_one_line(run("inspect", checkpoint), "colour")


def test_missing_checkpoint(tmp_path: Path) -> None:
    user = make_film(tmp_path / "user.mp4", seconds=0.4)
    result = run("talk", user, "--out", tmp_path / "reply.mp4", "--checkpoint", tmp_path / "nowhere")
    assert_one_line(result, "nowhere")
    assert_one_line(run("serve", "--port", 0, "--checkpoint", tmp_path / "nowhere"), "nowhere")


def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_one_line(run("serve", "--port", port), str(port))


def test_other_machines_are_served_over_https_only() -> None:
    assert_one_line(run("serve", "--host", "0.0.0.0"), "HTTPS", "--self-signed")


def test_usage_errors_exit_with_2() -> None:
    for arguments in (["talk"], ["talk", "a.mp4"], ["nonsense"], ["train", "codec"], ["serve", "--port", "many"]):
        result = run(*arguments)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
    assert_one_line(run("inspect"), "--preset")


def test_help_is_quick_and_knows_every_command() -> None:
    start = time.perf_counter()
    result = run("--help")
    took = time.perf_counter() - start
    assert result.returncode == 0
    for command in ("serve", "talk", "simulate", "prepare", "encode", "train", "bench", "inspect"):
        assert command in result.stdout
        assert run(command, "--help").stdout.count("Example") == (command not in ("train", "bench"))
    assert took < 2.0  # 0.15 s on an idle machine; with PyTorch it would be seconds


def test_help_does_not_load_pytorch() -> None:
    code = "import sys, wan_streamer.cli.app; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_missing_extra_names_what_to_install() -> None:
    code = "import sys; sys.modules['fastapi'] = None; sys.argv[1:] = ['serve']\n"
    code += "from wan_streamer.cli.app import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert_one_line(result, "fastapi", "pip install 'wan-streamer[serve]'")


def test_missing_system_library_is_told_with_its_package(tmp_path: Path) -> None:
    """As when libEGL is missing, which skia links to, or when a package finds out itself."""
    for cause in ("ImportError('libEGL.so.1: cannot open', name='skia', path='skia.so')", "ImportError('libEGL.so.1')"):
        (tmp_path / "skia.py").write_text(f"raise {cause}\n")
        code = (
            f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[1:] = ['simulate', 'out', '--hours', '1']\n"
        )
        code += "from wan_streamer.cli.app import main; main()"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert_one_line(result, "package skia", "libEGL.so.1", "pip install 'wan-streamer[simulate]'")


def test_options_reach_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that several commands share are expanded from one record, and put together into another."""
    calls: list[tuple] = []
    monkeypatch.setattr("wan_streamer.cli.train.need", lambda folder, kind: None)
    for name in ("stages.duplex.train_duplex", "stages.pretrain.train_pretrain", "distill.run.train_distill"):
        monkeypatch.setattr(f"wan_streamer.training.{name}", lambda *arguments: calls.append(arguments) or {})
    common = "--data d --out o --from nano --resume --steps 3 --minutes 2 --batch 4 --accumulate 2 --lr 0.1 --seed 0"
    model = " --preset smol --language-model l --lora 8 --new-codecs --compile"
    distill = " --teacher t --method matching --guide-audio 2 --grid 9 --compile --device cpu"
    for line in ("duplex --tasks t " + common + model, "pretrain --data d --out o", "distill " + common + distill):
        result = CliRunner().invoke(app, ["train", *line.split()], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    schedule = RunOptions(
        Path("o"), start="nano", resume=True, steps=3, minutes=2, batch=4, accumulate=2, lr=0.1, seed=0, compiled=True
    )
    full = replace(schedule, preset="smol", language="l", lora=8, new_codecs=True)
    settings = DistillConfig(guidance=Guidance(audio=2), grid=9)
    assert calls == [
        (Path("d"), full, "auto", Path("t"), None, None, None),
        (Path("d"), RunOptions(Path("o")), "auto", None),
        (Path("d"), "t", schedule, "matching", settings, "cpu"),
    ]


def test_inspect_preset() -> None:
    result = run("inspect", "--preset", "nano")
    assert result.returncode == 0, result.stderr
    assert "parameters" in result.stdout
