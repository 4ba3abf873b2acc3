"""A headless Firefox with made-up devices, driven over WebDriver BiDi, which it speaks without another program."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

PREFERENCES = {
    "media.navigator.streams.fake": True,  # a tone and a picture that changes its colour
    "media.navigator.permission.disabled": True,
    "media.peerconnection.ice.loopback": True,
    "media.peerconnection.ice.obfuscate_host_addresses": False,
    "media.autoplay.default": 0,
    "media.autoplay.blocking_policy": 0,
    "media.gmp-manager.updateEnabled": False,
    "app.update.auto": False,
    "browser.safebrowsing.downloads.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.dns.localDomains": "agent.example",  # is this machine
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
    "toolkit.telemetry.enabled": False,
}
START_S = 60


class FirefoxPage:
    """One tab. problems: errors and warnings that it logged."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._count = connection, 0
        self.problems: list[str] = []
        self._command("session.new", capabilities={"alwaysMatch": {"acceptInsecureCerts": True}})
        self._command("session.subscribe", events=["log.entryAdded"])
        self._context = self._command("browsingContext.getTree")["contexts"][0]["context"]

    def _command(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        self._connection.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            message = json.loads(self._connection.recv(timeout=START_S))
            if message.get("method") == "log.entryAdded" and message["params"]["level"] in ("error", "warn"):
                self.problems.append(message["params"]["text"])
            if message.get("id") == self._count:
                assert message["type"] == "success", message
                return message["result"]

    def goto(self, url: str) -> None:
        self._command("browsingContext.navigate", context=self._context, url=url, wait="complete")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression that JSON can hold, awaited."""
        answer = self._command(
            "script.evaluate", expression=f"(async () => JSON.stringify(await ({script})))()", awaitPromise=True,
            target={"context": self._context}, userActivation=True,
        )  # fmt: skip
        assert answer["type"] == "success", answer
        return json.loads(answer["result"].get("value", "null"))

    def until(self, script: str, timeout_s: float = 40) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + timeout_s
        while not (value := self.evaluate(script)):
            assert time.monotonic() < end, f"waited {timeout_s} s for {script}; {self.problems}"
            time.sleep(0.2)
        return value


@contextlib.contextmanager
def firefox(folder: Path) -> Iterator[FirefoxPage]:
    """A page of a new Firefox; without Firefox the test is skipped."""
    program = shutil.which("firefox-esr") or shutil.which("firefox")
    if program is None:
        pytest.skip("Firefox is not installed")
    if shutil.which("pulseaudio") is None:
        pytest.skip("Firefox plays nothing without a sound device: pulseaudio makes one and is not installed")
    profile = folder / "profile"
    profile.mkdir()
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in PREFERENCES.items()]
    (profile / "user.js").write_text("\n".join(lines))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    log = folder / "firefox.txt"
    line = [program, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", str(port)]
    environment = {**os.environ, "PULSE_SERVER": f"unix:{folder / 'sound'}"}
    device = subprocess.Popen(
        ["pulseaudio", "-n", "--exit-idle-time=-1", "--use-pid-file=no", "--load=module-null-sink",
         f"--load=module-native-protocol-unix socket={folder / 'sound'} auth-anonymous=1"],
        stderr=subprocess.DEVNULL, env={**os.environ, "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)},
    )  # fmt: skip
    process = subprocess.Popen(line, stdout=log.open("wb"), stderr=subprocess.STDOUT, env=environment)
    try:
        end = time.monotonic() + START_S
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            with contextlib.suppress(OSError):
                connection = connect(f"ws://127.0.0.1:{port}/session", max_size=None)
                break
            time.sleep(0.2)
        with connection:
            yield FirefoxPage(connection)
    finally:
        for one in (process, device):
            one.terminate()
            try:
                one.wait(10)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()
