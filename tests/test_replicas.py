"""Two servers behind one address, on a local Ray: visitors are spread, stay where they are, and lose no other's call.
Needs `pip install 'wan-streamer[serve,replicas]'`; left out without it."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import standin
import websockets
from protocol import PATIENT, SESSIONS, served
from test_serving import until

from wan_streamer.client import LiveClient, LiveSocket
from wan_streamer.client.heard import AgentEvent, Sound
from wan_streamer.errors import ServingError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.messages import CaptionEvent
from wan_streamer.serving.peers.webrtc import use_loopback_candidates

PATIENCE_S = 120
COOKIE = "wan-streamer-replica"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of Ray's proxy, before two replicas with a place each."""
    pytest.importorskip("ray.serve")
    import ray
    from ray import serve

    from wan_streamer.serving.replicas import Replicas, agents

    use_loopback_candidates()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{Path(__file__).parent}:{before}"  # Ray's processes find the stand-in there
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(agents(Replicas(replicas=2, sessions=1, agent="standin:StandInAgent")), name="agents")
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        os.environ["PYTHONPATH"] = before


class Listener:
    """What a call has told."""

    def __init__(self, call: LiveSocket) -> None:
        self.call = call
        self.events: list[AgentEvent] = []
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for event in self.call.events():
            self.events.append(event)

    def said(self) -> str:
        return "".join(e.text for e in self.events if isinstance(e, CaptionEvent) and e.lane == "response")

    async def hears(self, words: str) -> None:
        await until(lambda: words in self.said(), words, PATIENCE_S)


def replica_of(identity: str) -> str:
    replica, dot, _ = identity.partition(".")
    assert dot
    return replica


@asynccontextmanager
async def two(url: str) -> AsyncIterator[tuple[Listener, Listener]]:
    async with LiveSocket(url) as one, LiveSocket(url) as other:
        listeners = Listener(one), Listener(other)
        yield listeners
        for listener in listeners:
            listener.task.cancel()


def test_two_calls_are_on_two_replicas_and_do_not_hear_each_other(url: str) -> None:
    async def main() -> None:
        async with two(url) as (one, other), httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
            places = {replica_of(listener.call.id) for listener in (one, other)}
            assert len(places) == 2
            one.call.say("apples")
            other.call.say("pears")
            await one.hears("You typed apples")
            await other.hears("You typed pears")
            assert "pears" not in one.said()
            assert "apples" not in other.said()
            assert [e for e in one.events if isinstance(e, Sound) and abs(e.samples_T).max() > 0.1]
            for listener in (one, other):  # whoever asks, the replica of the session answers
                for _ in range(4):
                    status = await http.get("/api/status", headers={"Authorization": f"Bearer {listener.call.id}"})
                    assert status.json()["state"] == "live"
        await free(url, 2)

    asyncio.run(main())


def test_an_offer_a_ticket_a_secret_and_a_goodbye_find_their_replica(url: str) -> None:
    """Of a WebRTC call, whose media pass Ray by."""

    async def main() -> None:
        await free(url, 2)
        async with LiveClient(url) as call, LiveSocket(url) as other, httpx.AsyncClient(base_url=url) as http:
            assert replica_of(call.session["id"]) != replica_of(other.id)
            said: list[str] = []

            async def listen() -> None:
                async for event in call.events():
                    said.append(event.get("delta", ""))

            listening = asyncio.create_task(listen())
            call.say("plums")
            await until(lambda: "You typed plums" in "".join(said), "the other way", PATIENCE_S)
            sounds = call.sounds()
            await until_loud(sounds)
            waiting = asyncio.create_task(LiveSocket(url).__aenter__())  # a third: in the line of one of them
            await asyncio.sleep(3)
            assert not waiting.done()
            for _ in range(4):
                hung_up = await http.post(f"/v1/realtime/calls/{call.session['id']}/hangup")
                if hung_up.status_code == 404:
                    break
                assert hung_up.status_code == 200
            await listening
            await other.close()
            third = await asyncio.wait_for(waiting, PATIENCE_S)
            await third.close()
        await free(url, 2)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
            created = (await http.post("/v1/live/sessions", json={})).json()
            assert f"ek_{replica_of(created['session']['id'])}." in created["client_secret"]["value"]
            async with LiveClient(url, secret=created["client_secret"]["value"]) as call:
                assert call.session["id"] == created["session"]["id"]

    asyncio.run(main())


def test_a_browser_is_brought_back_by_its_cookie(url: str) -> None:
    async def main() -> None:
        await free(url, 2)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
            assert "set-cookie" not in (await http.get("/")).headers
            created = await http.post("/v1/live/sessions", json={})
            home = replica_of(created.json()["session"]["id"])
            assert http.cookies[COOKIE] == f"{home}."
            for _ in range(4):
                again = await http.post("/v1/live/sessions", json={})
                assert replica_of(again.json()["session"]["id"]) == home
            await http.post("/api/close", json={"session": "x"})
            assert COOKIE not in http.cookies

    asyncio.run(main())


def test_a_killed_replica_ends_its_own_call_only(url: str) -> None:
    import ray

    async def main() -> None:
        await free(url, 2)
        async with two(url) as (one, other):
            await one.hears("Unit")
            lost = replica_of(one.call.id)
            actors = [a for a in ray.util.list_named_actors(all_namespaces=True) if lost in a["name"]]
            assert len(actors) == 1
            ray.kill(ray.get_actor(actors[0]["name"], namespace=actors[0]["namespace"]))
            with pytest.raises(ServingError, match="lost"):
                await asyncio.wait_for(one.task, PATIENCE_S)
            count = len(other.events)
            other.call.say("still there")
            await other.hears("You typed still there")
            assert len(other.events) > count
            assert not other.task.done()
            await free(url, 1)
            async with LiveSocket(url) as new:  # on the replica that Ray has made in its place
                assert replica_of(new.id) not in (lost, replica_of(other.call.id))

    asyncio.run(main())


def test_every_id_names_its_server() -> None:
    """Without Ray."""
    model = ModelProcess(standin.StandInAgent)

    async def main() -> None:
        async with served(model, replace(PATIENT, mark="here.")) as server:
            created = (await server.http.post(SESSIONS, json={})).json()
            assert created["session"]["id"].startswith("here.")
            assert created["client_secret"]["value"].startswith("ek_here.")
            async with websockets.connect(f"{server.url.replace('http', 'ws')}/api/socket") as connection:
                await connection.send(json.dumps({"type": "start"}))
                started = json.loads(await connection.recv())
                assert started["session"].startswith("here.")
                assert started["resume"].startswith("here.")
                await until(lambda: server.desk.full, "the place")
                offer = {"type": "webrtc", "sdp": "v=0"}
                waiting = await server.http.post(SESSIONS, json={"transport": offer})
                assert waiting.status_code == 202
                assert waiting.json()["queue"].startswith("here.")

    try:
        model.wait_ready(PATIENCE_S)
        asyncio.run(main())
    finally:
        model.shutdown()


async def until_loud(sounds: AsyncIterator[Any]) -> None:
    async for samples in sounds:
        if abs(samples).max() > 0.1:
            return


async def free(url: str, count: int) -> None:
    """Wait until so many replicas say that they have a place, and the router has heard of it."""
    import ray

    end = asyncio.get_running_loop().time() + PATIENCE_S
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
        while asyncio.get_running_loop().time() < end:
            names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
            marks = [f"{name.rpartition('#')[2]}." for name in names if "agents#agent#" in name]
            answers = [await http.get("/api/status", headers={"X-Session-Id": mark}) for mark in marks]
            places = [answer.json() for answer in answers if answer.status_code == 200]
            if sum(place["model"] == "ready" and not place["busy"] for place in places) == count:
                return await asyncio.sleep(2.5)
            await asyncio.sleep(0.5)
    raise AssertionError(f"{url}: no {count} free places")
