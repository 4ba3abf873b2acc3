"""After a lost connection the same conversation goes on, for whoever has the token, once, and for a while."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest
import standin
from test_call_clock import SilentModel
from test_serving import Visitor, application, until, with_application
from tiny import tiny_agent

from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.runtime.worker import UnitOut
from wan_streamer.serving.call import Call
from wan_streamer.serving.conversation import Conversation
from wan_streamer.serving.desk import NOT_RESUMED, Desk
from wan_streamer.serving.doors.limits import Limits
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.units import AgentUnit, UserUnit

PATIENCE_S = 30
PATIENT = Limits(offers_per_s=100, offer_burst=100)


class Rememberer(standin.StandInSession):
    """Asked "what", it says all that was typed before."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
        unit = super().step(user, steps)
        if user.text:
            self.said.append(user.text)
        text = f"After {unit.index} units: {' '.join(self.said)}. " if user.text == "what" else ""
        return AgentUnit(unit.index, np.zeros_like(unit.audio), unit.video, text=text)


class RememberingAgent(standin.StandInAgent):
    def session(self, seed: int = 0) -> standin.StandInSession:
        return Rememberer()


@pytest.fixture(scope="module")
def model() -> Iterator[ModelProcess]:
    model = ModelProcess(RememberingAgent, most=2)
    model.wait_ready(PATIENCE_S)
    model._measured = 2  # however busy this machine is
    yield model
    model.shutdown()


def desk_of(client: httpx.AsyncClient) -> Desk:
    return client._transport.app.state.desk  # type: ignore[attr-defined]


async def enter(client: httpx.AsyncClient, **more: str) -> tuple[Visitor, str]:
    """A visitor in a call, and the token for the next."""
    visitor = Visitor(client)
    answer = await visitor.call(**more)
    assert answer.status_code == 200, answer.text
    await until(lambda: visitor.told("session", state="live"), "the call")
    return visitor, answer.json()["resume"]


async def remembers(visitor: Visitor) -> str:
    visitor.say("what")
    await until(lambda: [e for e in visitor.told("caption") if e["text"].startswith("After")], "what it remembers")
    return visitor.told("caption")[-1]["text"]


async def tell(visitor: Visitor, text: str) -> None:
    visitor.say(text)
    await asyncio.sleep(0.5)


@asynccontextmanager
async def dropped(client: httpx.AsyncClient) -> AsyncIterator[str]:
    """The token of a conversation whose visitor said "apple" and was cut off."""
    visitor, token = await enter(client)
    await tell(visitor, "apple")
    await visitor.leave()
    await until(lambda: not desk_of(client).sessions, "the drop")
    yield token


def test_after_a_drop_the_conversation_goes_on(model: ModelProcess) -> None:
    @with_application(model, ServingConfig(limits=PATIENT))
    async def _(client: httpx.AsyncClient) -> None:
        async with dropped(client) as token:
            again, _ = await enter(client, resume=token)
            assert [e["message"] for e in again.told("notice")] == [
                "You are connected again. The conversation goes on."
            ]
            assert "apple what" in await remembers(again)
            assert desk_of(client).last_end


def test_a_reload_takes_over_although_the_old_connection_stands(model: ModelProcess) -> None:
    """Three times, each with the token of the time before."""

    @with_application(model, ServingConfig(limits=PATIENT, idle_timeout_s=2 * PATIENCE_S))
    async def _(client: httpx.AsyncClient) -> None:
        visitor, token = await enter(client)
        for word in ("one", "two", "three"):
            await tell(visitor, word)
            visitor, token = await enter(client, resume=token)
            assert len(desk_of(client)._talks) == 1
        assert "one two three what" in await remembers(visitor)
        await until(lambda: desk_of(client).sessions == [visitor.session], "the old ones")


def test_answers_to_the_page_before_are_not_heard() -> None:
    events: list[str] = []

    class Session(SilentModel):
        """Owes an answer from before."""

        async def receive(self) -> UnitOut:
            now, said = time.monotonic(), len(events)
            await asyncio.sleep(0.05 * said)
            text, t_in = ("new", now) if self.sent else ("old", now - 60)
            unit = standin.StandInSession().step(UserUnit())
            return UnitOut(0, 0, t_in, now, now, AgentUnit(0, unit.audio, unit.video, text=text))

    async def converse() -> None:
        talk, model = Conversation(), Session()
        talk.session = model  # type: ignore[assignment]
        call = Call(model, ServingConfig(), talk, lambda event: events.append(event.to_json()))  # type: ignore[arg-type]
        task = asyncio.create_task(call.run())
        await until(lambda: "new" in str(events), "an answer")
        task.cancel()

    asyncio.run(converse())
    assert "old" not in str(events)


def test_a_token_works_once(model: ModelProcess) -> None:
    @with_application(model, ServingConfig(limits=PATIENT))
    async def _(client: httpx.AsyncClient) -> None:
        async with dropped(client) as token:
            owner, following = await enter(client, resume=token)
            assert len({token, following}) == 2
            thief, other = await enter(client, resume=token)
            assert NOT_RESUMED in [e["message"] for e in thief.told("notice")]
            assert "apple" not in await remembers(thief)
            assert "apple" in await remembers(owner)
            assert other != following


@pytest.mark.parametrize("wrong", ["nonsense", "x" * 32])
def test_a_wrong_token_is_a_new_conversation(model: ModelProcess, wrong: str) -> None:
    @with_application(model, ServingConfig(limits=PATIENT))
    async def _(client: httpx.AsyncClient) -> None:
        async with dropped(client) as token:
            for resume in (wrong, token[:-1]):
                stranger, _ = await enter(client, resume=resume)
                assert NOT_RESUMED in [e["message"] for e in stranger.told("notice")]
                assert "apple" not in await remembers(stranger)
                await client.post("/api/close", json={"session": stranger.session})
                await until(lambda: not desk_of(client).sessions, "the end")
            assert (await client.get("/api/status", headers={"authorization": f"Bearer {token}"})).json().keys() == {
                "busy", "model", "agent"}  # fmt: skip
            assert "apple" in await remembers((await enter(client, resume=token))[0])


def test_the_place_is_kept_for_a_while(model: ModelProcess) -> None:
    @with_application(model, ServingConfig(limits=PATIENT, resume_s=2.0))
    async def _(client: httpx.AsyncClient) -> None:
        desk = desk_of(client)
        async with dropped(client) as token:
            began = time.monotonic()
            await enter(client)
            assert (await Visitor(client).call()).status_code == 202, "two conversations have the two places"
            assert time.monotonic() - began < 2, "this machine is too slow for the test"
            await until(lambda: len(desk._talks) == 1, "the end of the grace", 5)
            assert time.monotonic() - began > 1.5
            assert len(model._sessions) == 1, "its state is forgotten"
            assert (await Visitor(client).call(resume=token)).status_code == 202, "whoever waited is first"


def test_an_expired_token_is_a_new_conversation(model: ModelProcess) -> None:
    @with_application(model, ServingConfig(limits=PATIENT, resume_s=0.3))
    async def _(client: httpx.AsyncClient) -> None:
        async with dropped(client) as token:
            await until(lambda: not desk_of(client)._talks, "the end of the grace", 5)
            late, _ = await enter(client, resume=token)
            assert NOT_RESUMED in [e["message"] for e in late.told("notice")]
            assert "apple" not in await remembers(late)


def test_who_does_not_connect_again_has_no_more_time(model: ModelProcess) -> None:
    """An offer whose connection never stands does not make the grace longer."""

    @with_application(model, ServingConfig(limits=PATIENT, resume_s=2.0, connect_timeout_s=1.5))
    async def _(client: httpx.AsyncClient) -> None:
        async with dropped(client) as token:
            idle = Visitor(client)
            await idle.pc.setLocalDescription(await idle.pc.createOffer())
            offer = {"sdp": idle.pc.localDescription.sdp, "type": "offer", "resume": token}
            began = time.monotonic()
            assert (await client.post("/api/offer", json=offer)).status_code == 200
            await until(lambda: not desk_of(client)._talks, "the end of the grace", 5)
            assert 1.4 < time.monotonic() - began < 3


@pytest.mark.parametrize("in_call", [True, False])
def test_after_goodbye_nobody_goes_on(model: ModelProcess, in_call: bool) -> None:
    """Said in a call, or while the connection is lost."""

    @with_application(model, ServingConfig(limits=PATIENT))
    async def _(client: httpx.AsyncClient) -> None:
        visitor, token = await enter(client)
        await tell(visitor, "apple")
        if not in_call:
            await visitor.leave()
            await until(lambda: not desk_of(client).sessions, "the drop")
            assert len(desk_of(client)._talks) == 1
        assert (await client.post("/api/close", json={"session": visitor.session})).json() == {"closed": True}
        await until(lambda: not desk_of(client)._talks, "the place", 5)
        assert not model._sessions
        again, _ = await enter(client, resume=token)
        assert "apple" not in await remembers(again)


def test_the_page_before_cannot_end_the_conversation(model: ModelProcess) -> None:
    @with_application(model, ServingConfig(limits=PATIENT))
    async def _(client: httpx.AsyncClient) -> None:
        before, token = await enter(client)
        after, _ = await enter(client, resume=token)
        await client.post("/api/close", json={"session": before.session})
        await asyncio.sleep(0.5)
        assert desk_of(client).sessions == [after.session]
        assert len(desk_of(client)._talks) == 1
        await remembers(after)


def test_a_model_that_dies_while_nobody_is_connected() -> None:
    """A real, tiny agent: killed in the grace; the conversation goes on with the units that it had."""
    model = ModelProcess(tiny_agent)
    model.wait_ready(60)

    async def main() -> None:
        async with application(model, ServingConfig(limits=PATIENT)) as client:
            visitor, token = await enter(client)
            await until(lambda: visitor.told("stats") and visitor.told("stats")[-1]["units"] > 5, "units")
            await visitor.leave()
            await until(lambda: not desk_of(client).sessions, "the drop")
            model.kill()
            again, _ = await enter(client, resume=token)
            await until(lambda: "restarted" in json.dumps(again.told("notice")), "the restart", 60)
            assert "It goes on." in again.told("notice")[-1]["message"]
            (talk,) = desk_of(client)._talks.values()
            assert talk.session
            assert talk.session.units > 5

    try:
        asyncio.run(main())
    finally:
        model.shutdown()


# ---------------------------------------------------------------------------------------------------- the longest call


def test_the_longest_call_ends_with_a_notice_before(model: ModelProcess) -> None:
    @with_application(model, ServingConfig(limits=PATIENT, max_call_s=4.0))
    async def _(client: httpx.AsyncClient) -> None:
        began = time.monotonic()
        visitor, token = await enter(client)
        await until(lambda: visitor.told("notice"), "the notice", 5)
        assert time.monotonic() - began > 1.9
        assert visitor.told("notice")[0]["message"].startswith("This call ends in 2 seconds.")
        await until(lambda: visitor.told("session", state="ended"), "the end", 5)
        assert 3.9 < time.monotonic() - began < 7
        assert visitor.told("session", state="ended")[0]["message"] == "The time for a call is over."
        await until(lambda: not desk_of(client)._talks, "the place", 5)
        again, _ = await enter(client, resume=token)
        assert NOT_RESUMED in [e["message"] for e in again.told("notice")]


def test_another_connection_does_not_make_the_call_longer(model: ModelProcess) -> None:
    @with_application(model, ServingConfig(limits=PATIENT, max_call_s=4.0))
    async def _(client: httpx.AsyncClient) -> None:
        began = time.monotonic()
        _, token = await enter(client)
        await asyncio.sleep(max(0, began + 2.5 - time.monotonic()))
        visitor, _ = await enter(client, resume=token)
        await until(lambda: visitor.told("session", state="ended"), "the end", 5)
        assert 3.9 < time.monotonic() - began < 6
        assert [e for e in visitor.told("notice") if "This call ends in" in e["message"]]
