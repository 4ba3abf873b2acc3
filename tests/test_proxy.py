"""nginx, as `deploy/nginx.conf` sets it up, before a real server: the page, a call, and what does not pass."""

import asyncio
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from test_life import server
from test_serving import Visitor, until

from wan_streamer.serving.doors.tls import self_signed_pem
from wan_streamer.serving.peers.webrtc import use_loopback_candidates

SITE = Path(__file__).parent.parent / "deploy" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
TOKEN = "correct-horse-battery"
PATIENCE_S = 30

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def nginx_line(folder: Path, *sites: str) -> list[str]:
    """Starts nginx with these sites, as this user and in this folder alone."""
    cert, key = self_signed_pem(("agent.example",))
    (folder / "cert.pem").write_bytes(cert)
    (folder / "key.pem").write_bytes(key)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = "\n".join(sites)
    for kind, name in (("fullchain", "cert"), ("privkey", "key")):
        text = text.replace(f"/etc/ssl/agent.example/{kind}.pem", f"{folder}/{name}.pem")
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {temporary}\n{text} }}\n"
    )
    return [str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf")]


def site(port: int, server_port: int, metrics: bool = False) -> str:
    """The shipped site on another port. metrics: without the part that keeps the numbers in."""
    text = SITE.read_text()
    text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl").replace(
        "127.0.0.1:8080", f"127.0.0.1:{server_port}"
    )
    return re.sub(r"location /agent/metrics {[^}]*}", "", text) if metrics else text


@pytest.mark.parametrize("mistake", ["", "proxy_pas"], ids=["as it is", "with a mistake"])
def test_nginx_understands_the_site(mistake: str, tmp_path: Path) -> None:
    text = site(free_port(), 1)
    line = nginx_line(tmp_path, text.replace("proxy_pass", mistake) if mistake else text)
    result = subprocess.run([*line, "-t"], capture_output=True, text=True, timeout=30)
    assert (result.returncode == 0) == (not mistake), result.stderr


@pytest.fixture
def behind_nginx(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The addresses of the page through nginx: as shipped, and without what keeps the numbers in."""
    options = ["--token", TOKEN, "--public-url", "https://agent.example/agent/", "--proxy", "127.0.0.1"]
    with server(tmp_path, *options) as (server_port, _):
        ports = free_port(), free_port()
        line = nginx_line(tmp_path, site(ports[0], server_port), site(ports[1], server_port, metrics=True))
        process = subprocess.Popen(line, stderr=(tmp_path / "nginx.log").open("wb"))
        try:
            end = time.monotonic() + PATIENCE_S
            for port in ports:
                while not is_open(port):
                    assert time.monotonic() < end, (tmp_path / "nginx.log").read_text()
                    time.sleep(0.05)
            yield f"https://127.0.0.1:{ports[0]}/agent", f"https://127.0.0.1:{ports[1]}/agent"
        finally:
            process.terminate()
            process.wait(10)


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_a_call_through_nginx(behind_nginx: tuple[str, str]) -> None:
    shipped, open_to_all = behind_nginx
    knows = {"authorization": f"Bearer {TOKEN}"}
    origin = {"origin": "https://agent.example"}
    offer = {"sdp": "v=0", "type": "offer"}

    async def main() -> None:
        async with httpx.AsyncClient(base_url=shipped, headers={"host": "agent.example"}, verify=False) as client:
            assert (await client.get(shipped)).headers["location"].endswith("/agent/")
            page = await client.get("/")
            assert (page.status_code, 'data-testid="start"' in page.text) == (200, True)
            assert (await client.get("/static/app.js")).status_code == 200  # the page's own addresses are relative
            assert (await client.get("/readyz")).json() == {"ok": True, "model": "ready"}
            for headers, status in (
                (origin, 401),
                (knows | {"origin": "https://elsewhere.example"}, 403),
                (knows | {"host": "rebound.example"}, 400),
                (knows | origin, 400),  # let in, and then no good offer
            ):
                answer = await client.post("/api/offer", json=offer, headers=headers)
                assert answer.status_code == status, answer.text
            for headers in ({}, knows):
                assert (await client.get("/metrics", headers=headers)).status_code == 404
            assert (await client.get(f"{open_to_all}/metrics")).status_code == 401
            numbers = await client.get(f"{open_to_all}/metrics", headers=knows)
            assert 'wan_streamer_offers_total{outcome="origin"} 1.0' in numbers.text
            client.headers.update(knows | origin)
            visitor = Visitor(client)
            assert (await visitor.call()).status_code == 200
            await until(lambda: visitor.told("session", state="live"), "the call")
            await until(lambda: len(visitor.pictures) > 5, "pictures")
            await visitor.leave()
            Visitor.all.clear()

    use_loopback_candidates()
    asyncio.run(main())
