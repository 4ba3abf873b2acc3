"""Run one function over many numbers: on the cores of this machine, or on a Ray cluster that shares a folder.

`Engine`     where the work is done
`run_jobs`   function, numbers -> results, as they are ready
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from wan_streamer.errors import ConfigError, WanStreamerError
from wan_streamer.process import tune_process

_function: Callable[[int], Any]  # of this worker process


@dataclass(frozen=True)
class Engine:
    """kind "local" uses `processes` of this machine; "ray" all cores of the cluster at `address` (None: a new one)."""

    kind: str = "local"
    processes: int = 1
    address: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("local", "ray"):
            raise ConfigError(f"engine: expected local or ray, got {self.kind!r}")
        if self.processes < 1:
            raise ConfigError(f"processes: expected 1 or more, got {self.processes}")


def run_jobs(function: Callable[[int], Any], numbers: Iterable[int], engine: Engine) -> Iterator[Any]:
    """Yield `function(number)` for every number, in the order in which they are ready.

    The function must be picklable and is sent to a worker once, not with every job; a worker has one thread. One local
    process is this process. The first error ends the run: no job goes on after it, nor after Ctrl-C.
    """
    jobs = list(numbers)
    if engine.kind == "ray":
        yield from _run_on_ray(function, jobs, engine.address)
    elif engine.processes == 1 or len(jobs) < 2:
        yield from map(function, jobs)
    else:
        yield from _run_here(function, jobs, min(engine.processes, len(jobs)))


def _run_here(function: Callable[[int], Any], jobs: list[int], processes: int) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")
    lifeline, held = context.Pipe(duplex=False)  # workers end when the end that this process holds is closed
    with ProcessPoolExecutor(processes, context, _start_worker, (function, lifeline)) as pool:
        try:
            with _one_thread():  # read by the libraries of a worker when they are loaded
                futures = [pool.submit(_call_here, job) for job in jobs]
            for future in as_completed(futures):
                yield future.result()
            pool.shutdown()  # all is done: workers may end by themselves and tidy up
        except BrokenProcessPool as error:
            raise WanStreamerError("a worker process died, perhaps for lack of memory; use fewer processes") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            held.close()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _start_worker(function: Callable[[int], Any], lifeline: Any) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the parent decides
    tune_process()
    _function = function

    def follow() -> None:
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _call_here(number: int) -> Any:
    return _function(number)


def _call_on_ray(function: Callable[[int], Any], number: int) -> Any:
    tune_process()
    return function(number)


def _run_on_ray(function: Callable[[int], Any], jobs: list[int], address: str | None) -> Iterator[Any]:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"ray: no cluster at {address or 'this machine'} ({error}); see 'ray status'") from error
    try:
        task, shared = ray.remote(num_cpus=1)(_call_on_ray), ray.put(function)
        waiting = [task.remote(shared, job) for job in jobs]
        while waiting:
            ready, waiting = ray.wait(waiting)
            yield ray.get(ready[0])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    finally:
        ray.shutdown()
