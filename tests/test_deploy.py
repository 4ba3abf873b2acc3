"""The files in `deploy`: they fit the command line, the server and each other.

Every check is a function over a folder, so that it can be shown that it fails: `BREAKS`.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
import yaml

from wan_streamer.cli.app import app
from wan_streamer.serving.app import create_app
from wan_streamer.serving.doors.access import plan_access
from wan_streamer.serving.doors.ice import read_ice

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
INSTRUCTIONS = {
    "FROM",
    "WORKDIR",
    "RUN",
    "ENV",
    "COPY",
    "USER",
    "EXPOSE",
    "STOPSIGNAL",
    "HEALTHCHECK",
    "ENTRYPOINT",
    "CMD",
}
SERVICE = {  # of the compose specification, as far as they are used
    "image", "build", "command", "environment", "network_mode", "shm_size", "cap_drop", "security_opt",
    "stop_grace_period", "restart", "volumes", "secrets", "configs",
}  # fmt: skip
SYSTEMD = {"Unit", "Service", "Install"}


def parse(line: list[str]) -> dict[str, Any]:
    """What the real command line makes of `wan-streamer ...`."""
    assert line[0] == "wan-streamer", line
    group = typer.main.get_command(app)
    command = group.get_command(None, line[1])  # type: ignore[attr-defined]
    assert command is not None, line
    try:
        params = command.make_context(line[1], line[2:]).params
        plan_access(params["host"], params["public_url"] or (), params["proxy"] or ())
    except Exception as error:
        raise AssertionError(f"{' '.join(line)}: {error}") from error
    return params


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def compose(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "compose.yaml").read_text())


def start_of(dockerfile: Path) -> list[str]:
    found = dict(instructions(dockerfile))
    return json.loads(found["ENTRYPOINT"]) + json.loads(found["CMD"])


def command_lines(folder: Path) -> list[list[str]]:
    """All that a file shows or starts, with the variables of compose filled in."""
    lines = [start_of(folder / name) for name in ("Dockerfile", "Dockerfile.cuda")]
    given = [
        re.sub(r"\$\{DOMAIN:\?[^}]*\}", "agent.example", word)
        for word in compose(folder)["services"]["agent"]["command"]
    ]
    lines.append(["wan-streamer", *given])
    for name in ("nginx.conf", "wan-streamer.service"):
        shown = re.findall(r"(?:^#\s+|/)(wan-streamer serve .*)$", (folder / name).read_text(), flags=re.MULTILINE)
        assert len(shown) == 1, name
        lines.append(shown[0].split())
    return lines


# --------------------------------------------------------------------------------------------------------- checks


def check_commands(folder: Path) -> None:
    for line in command_lines(folder):
        parse(line)


def check_docker(folder: Path, name: str) -> None:
    found = instructions(folder / name)
    assert {word for word, _ in found} == INSTRUCTIONS
    assert found[0][0] == "FROM"
    stages = [match[1] for word, rest in found if word == "FROM" and (match := re.search(r" AS (\w+)$", rest))]
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for rest in (rest for word, rest in found if word == "COPY"):
        *sources, _ = [part for part in rest.split() if not part.startswith("--")]
        if stage := re.search(r"--from=(\w+)", rest):
            assert stage[1] in stages
            continue
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source.removeprefix("./") in sent, f"{source} is not sent to the builder"
    last = found[max(i for i, (word, _) in enumerate(found) if word == "FROM") :]
    users = [rest for word, rest in last if word == "USER"]
    assert users, "root"
    assert f" {users[-1]}" in next(rest for word, rest in last if word == "RUN" and "useradd" in rest)
    assert dict(last)["STOPSIGNAL"] == "SIGTERM"
    paths = set(create_app(None).openapi()["paths"])  # type: ignore[arg-type]
    check = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", dict(last)["HEALTHCHECK"])
    assert check is not None
    assert check[2] in paths
    assert int(check[1]) == int(dict(last)["EXPOSE"]) == parse(start_of(folder / name))["port"]
    compile(json.loads(dict(last)["HEALTHCHECK"].partition("CMD ")[2])[2], name, "exec")


def check_wheels(folder: Path) -> None:
    """The image for CPUs has no CUDA in it, which is gigabytes."""
    torch = {
        name: next(rest for word, rest in instructions(folder / name) if word == "RUN" and rest.endswith(" torch"))
        for name in ("Dockerfile", "Dockerfile.cuda")
    }
    assert "--index-url https://download.pytorch.org/whl/cpu" in torch["Dockerfile"]
    assert "index-url" not in torch["Dockerfile.cuda"]
    assert parse(start_of(folder / "Dockerfile"))["device"] == "cpu"
    assert parse(start_of(folder / "Dockerfile.cuda"))["device"] == "cuda"


def check_compose(folder: Path) -> None:
    whole = compose(folder)
    assert set(whole) == {"name", "services", "secrets", "volumes", "configs"}
    assert set(whole["services"]) == {"agent", "proxy", "prometheus", "relay"}
    for name, service in whole["services"].items():
        assert set(service) <= SERVICE, name
        assert service.get("image"), name
        assert service["network_mode"] == "host", name  # they meet on 127.0.0.1
        assert service["restart"] == "unless-stopped", name
        for secret in service.get("secrets", []):
            assert secret in whole["secrets"]
        for volume in service.get("volumes", []):
            source, target = volume.split(":")[:2]
            assert target.startswith("/")
            assert (folder / source).is_file() if source.startswith("./") else source in whole["volumes"], volume
    agent = whole["services"]["agent"]
    built = folder / agent["build"]["dockerfile"].removeprefix("deploy/")
    assert built.is_file()
    assert agent["build"] == {"context": "..", "dockerfile": f"deploy/{built.name}"}
    assert "WAN_STREAMER_TOKEN" in agent["environment"]  # behind a proxy there are no numbers without one
    assert whole["secrets"]["wan_streamer_token"]["environment"] == "WAN_STREAMER_TOKEN"
    assert re.fullmatch(r"[1-9]gb", agent["shm_size"])


def check_relay(folder: Path) -> None:
    """coturn and the server share a secret, and the server reads what the page is told."""
    whole = compose(folder)
    relay, agent = whole["services"]["relay"]["command"], whole["services"]["agent"]
    assert "--use-auth-secret" in relay
    assert re.search(r"--static-auth-secret=\$\{TURN_SECRET:", " ".join(relay))
    assert any(line.startswith("--denied-peer-ip=169.254.") for line in relay), "the cloud's own addresses"
    (config,) = agent["configs"]
    assert f"--ice-servers={config['target']}" in agent["command"]
    content = whole["configs"][config["source"]]["content"]
    content = content.replace("${DOMAIN}", "agent.example").replace("${TURN_SECRET}", "shared")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(content)
        file.flush()
        (server,) = read_ice(file.name).issue().servers
    assert server.credential
    assert {url.partition("?")[0] for url in server.urls} == {"turn:agent.example:3478"}


def check_websockets(folder: Path) -> None:
    text = (folder / "nginx.conf").read_text()
    assert "proxy_set_header Upgrade $http_upgrade;" in text
    assert "proxy_set_header Connection $connection_upgrade;" in text


def check_prometheus(folder: Path) -> None:
    (job,) = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"]
    assert job["metrics_path"] in set(create_app(None).openapi()["paths"])  # type: ignore[arg-type]
    service = compose(folder)["services"]["prometheus"]
    (secret,) = service["secrets"]
    assert job["authorization"] == {"credentials_file": f"/run/secrets/{secret}"}
    target = next(volume for volume in service["volumes"] if volume.startswith("./prometheus.yml")).split(":")[1]
    assert f"--config.file={target}" in service["command"]
    assert "--web.listen-address=127.0.0.1:9090" in service["command"]  # its page has no password


def check_ports_and_paths(folder: Path) -> None:
    """One port and one sub-path everywhere, and a proxy that the server believes."""
    caddy, nginx = ((folder / name).read_text() for name in ("Caddyfile", "nginx.conf"))
    (job,) = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"]
    ports = {parse(line)["port"] for line in command_lines(folder)}
    ports |= {int(urlsplit(f"//{target}").port or 0) for target in job["static_configs"][0]["targets"]}
    ports |= {int(re.findall(r"reverse_proxy 127\.0\.0\.1:(\d+)$", caddy, re.MULTILINE)[0])}
    ports |= {int(re.findall(r"proxy_pass http://127\.0\.0\.1:(\d+)/;", nginx)[0])}
    assert ports == {8080}
    public = [parse(line) for line in command_lines(folder) if parse(line)["public_url"]]
    assert len(public) == 3
    for params in public:
        assert params["proxy"] == ["127.0.0.1"]
        (path,) = {urlsplit(url).path for url in params["public_url"]}
        assert f"handle_path {path}* {{" in caddy
        assert f"location {path} {{" in nginx
        for text in (caddy, nginx):
            block = re.search(rf"{path}metrics\*? {{\n([^}}]*)}}", text)
            assert block is not None, "metrics pass"
            assert re.search(r"\b404\b", block[1]), "metrics pass"
    assert caddy.count("{") == caddy.count("}")
    assert re.findall(r"^\{\$(\w+)\} \{$", caddy, re.MULTILINE) == list(
        compose(folder)["services"]["proxy"]["environment"]
    )


def check_systemd(folder: Path) -> None:
    text = (folder / "wan-streamer.service").read_text()
    assert set(re.findall(r"^\[(\w+)\]$", text, re.MULTILINE)) == SYSTEMD
    settings = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    assert settings["ExecStart"].split()[0] == "/opt/wan-streamer/bin/wan-streamer"
    assert (settings["KillSignal"], settings["KillMode"]) == ("SIGTERM", "mixed")
    assert settings["DynamicUser"] == settings["NoNewPrivileges"] == "yes"
    assert "MemoryDenyWriteExecute" not in settings
    assert settings["EnvironmentFile"] in text.partition("[Unit]")[0]  # that the comment makes


CHECKS: dict[str, Callable[[Path], None]] = {
    "commands": check_commands,
    "docker": lambda folder: check_docker(folder, "Dockerfile"),
    "docker-cuda": lambda folder: check_docker(folder, "Dockerfile.cuda"),
    "wheels": check_wheels,
    "compose": check_compose,
    "relay": check_relay,
    "websockets": check_websockets,
    "prometheus": check_prometheus,
    "ports": check_ports_and_paths,
    "systemd": check_systemd,
}
BREAKS = [
    ("commands", "compose.yaml", "--log-format=json", "--log-format=xml"),
    ("commands", "compose.yaml", "--proxy=127.0.0.1", "--proxy=caddy"),
    ("commands", "Dockerfile", 'CMD ["serve"]', 'CMD ["serve", "--turn", "x"]'),
    ("commands", "wan-streamer.service", "serve --port", "serve --prot"),
    ("commands", "nginx.conf", "serve --port", "serve --prot"),
    ("docker", "Dockerfile", "README.md LICENSE", "README.md LICENCE"),
    ("docker", "Dockerfile", "COPY wan_streamer", "COPY tests"),
    ("docker", "Dockerfile", "USER agent\n", ""),
    ("docker", "Dockerfile", "--from=build", "--from=builder"),
    ("docker", "Dockerfile", "EXPOSE 8080", "EXPOSE 8000"),
    ("docker", "Dockerfile", "8080/healthz", "8080/health"),
    ("docker-cuda", "Dockerfile.cuda", "USER agent", "USER nobody"),
    ("wheels", "Dockerfile", "whl/cpu", "whl/cu130"),
    ("wheels", "Dockerfile.cuda", '"cuda"]', '"cpu"]'),
    ("compose", "compose.yaml", "shm_size: 1gb", "shm_size: 64mb"),
    ("compose", "compose.yaml", "restart:", "restrat:"),
    ("compose", "compose.yaml", "- numbers:", "- number:"),
    ("compose", "compose.yaml", "deploy/Dockerfile ", "deploy/Dockerfile.cpu "),
    ("relay", "compose.yaml", "static-auth-secret=${TURN", "static-auth-secret=${TURNS"),
    ("relay", "compose.yaml", "target: /etc/wan-streamer/ice.json", "target: /etc/ice.json"),
    ("relay", "compose.yaml", '"secret": "${TURN_SECRET}"', '"username": "u", "credential": ""'),
    ("websockets", "nginx.conf", "Upgrade $http_upgrade", "Upgrade off"),
    ("prometheus", "prometheus.yml", "/metrics", "/stats"),
    ("prometheus", "prometheus.yml", "secrets/wan_streamer_token", "secrets/token"),
    ("prometheus", "compose.yaml", "127.0.0.1:9090\n", "0.0.0.0:9090\n"),
    ("ports", "prometheus.yml", "8080", "8000"),
    ("ports", "Caddyfile", "127.0.0.1:8080", "127.0.0.1:8000"),
    ("ports", "Caddyfile", "handle_path /agent/", "handle_path /"),
    ("ports", "Caddyfile", "/agent/metrics*", "/agent/metric*"),
    ("ports", "nginx.conf", "127.0.0.1:8080/", "127.0.0.1:8080"),
    ("ports", "nginx.conf", "return 404", "return 200"),
    ("ports", "compose.yaml", "/agent/\n", "/\n"),
    ("systemd", "wan-streamer.service", "KillMode=mixed", "KillMode=none"),
    ("systemd", "wan-streamer.service", "DynamicUser=yes\n", ""),
]


@pytest.mark.parametrize("check", CHECKS)
def test_files(check: str) -> None:
    CHECKS[check](DEPLOY)


@pytest.mark.parametrize(("check", "name", "before", "after"), BREAKS)
def test_a_mistake_is_found(check: str, name: str, before: str, after: str, tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    path = tmp_path / "deploy" / name
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises((AssertionError, KeyError, IndexError, StopIteration)):
        CHECKS[check](tmp_path / "deploy")


# ---------------------------------------------------------------------------------------------- with real software


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("setting", ["", "ProtectEverything=yes\n"], ids=["as it is", "with a mistake"])
def test_systemd_understands_the_unit(setting: str, tmp_path: Path) -> None:
    unit = tmp_path / "wan-streamer.service"
    text = (DEPLOY / unit.name).read_text().replace("/opt/wan-streamer/bin/wan-streamer", sys.executable)
    unit.write_text(text.replace("[Install]", f"{setting}[Install]"))
    result = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    complaints = [line for line in (result.stdout + result.stderr).splitlines() if unit.name in line]
    assert bool(complaints) == bool(setting), complaints
