"""How live an agent is while other programs compute: `talk` beside as many spinning processes as asked for.

    python scripts/busy_machine.py --checkpoint nano --json out/busy.json

One line for each number of spinning processes and each setting of the threads, in turns, `--rounds` times.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from wan_streamer.units import FPS

ROOT = Path(__file__).parent.parent


def talk(film: Path, checkpoint: str, pace: str, threads: int | None, folder: Path) -> dict:
    """The report of one run in a process of its own."""
    line = [sys.executable, "-m", "wan_streamer", "talk", str(film), "--out", str(folder / "reply.mp4")]
    line += ["--report", str(folder / "r.json"), "--checkpoint", checkpoint, "--pace", pace, "--seed", "1"]
    line += [] if threads is None else ["--threads", str(threads)]
    subprocess.run(line, check=True, capture_output=True)
    return json.loads((folder / "r.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--film", type=Path, default=ROOT / "examples" / "hello.mp4")
    parser.add_argument("--pace", choices=("realtime", "fast"), default="realtime")
    parser.add_argument("--spinning", type=int, nargs="*", default=[0, 1, os.cpu_count() or 1])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, os.cpu_count() or 1], help="besides the default")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print("spinning  threads  p50 ms  p95 ms  missed %  fps  x real time  others' cores  units by threads")
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for spinning in options.spinning:
                for threads in (None, *options.threads):
                    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(spinning)]
                    try:
                        report = talk(options.film, options.checkpoint, options.pace, threads, Path(folder))
                    finally:
                        for process in others:
                            process.kill()
                            process.wait()
                    units, machine = report["units"], report["machine"]
                    fps = FPS * (1 - report["held_units"] / units)
                    rows.append({"spinning": spinning, "threads": threads, "fps": fps, "report": report})
                    print(
                        f"{spinning:8}  {threads or 'default':>7}  {report['model_latency_ms']['p50']:6.0f}"
                        f"  {report['model_latency_ms']['p95']:6.0f}  {100 * report['deadline_misses'] / units:8.1f}"
                        f"  {fps:4.1f}  {report['realtime_factor']:10.2f}  {machine['others_cores']['mean']:13.2f}"
                        f"  {machine['threads']}",
                        flush=True,
                    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
