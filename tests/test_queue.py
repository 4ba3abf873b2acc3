"""Who finds no place waits in line: nobody overtakes, nobody uses another's ticket, who goes away is dropped."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
import standin
from test_serving import Tone, Visitor, until, with_application

from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.doors.limits import Limits
from wan_streamer.serving.doors.line import Line, Place
from wan_streamer.serving.settings import ServingConfig

PATIENCE_S = 30
PATIENT = Limits(offers_per_s=100, offer_burst=100)


@pytest.fixture(scope="module")
def model() -> Iterator[ModelProcess]:
    model = ModelProcess(standin.StandInAgent, most=2)
    model.wait_ready(PATIENCE_S)
    model._measured = 2  # however busy this machine is
    yield model
    model.shutdown()


def as_bearer(ticket: str) -> dict[str, str]:
    return {"authorization": f"Bearer {ticket}"}


async def ask(client: httpx.AsyncClient, ticket: str) -> dict:
    answer = await client.get("/api/queue", headers=as_bearer(ticket))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def called(client: httpx.AsyncClient, ticket: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not (await ask(client, ticket))["ready"]:
        assert time.monotonic() < end


async def in_call(client: httpx.AsyncClient, number: int = 2) -> list[Visitor]:
    visitors = [Visitor(client, *[Tone()][k:]) for k in range(number)]
    for visitor in visitors:
        assert (await visitor.call()).status_code == 200
        await until(lambda v=visitor: v.told("session", state="live"), "the call")
    return visitors


async def leave(client: httpx.AsyncClient, visitor: Visitor) -> None:
    assert (await client.post("/api/close", json={"session": visitor.session})).json() == {"closed": True}


# ----------------------------------------------------------------------------------------------------- the line alone


def join(line: Line, *addresses: str) -> list[str]:
    """Their tickets."""
    return [place.ticket for place in map(line.join, addresses) if place is not None]


def places(line: Line, tickets: list[str]) -> list[Place]:
    return [place for place in map(line.place, tickets) if place is not None]


def test_the_first_are_called_and_nobody_overtakes() -> None:
    line = Line(10, 10, 8, 8)
    tickets = join(line, "a", "b", "c")
    assert line.call(2, 2) == 0, "both places are for those who wait"
    assert [place.ready for place in places(line, tickets)] == [True, True, False]
    assert line.leave(tickets[0])
    assert line.call(1, 2) == 0
    assert [place.place for place in places(line, tickets[1:])] == [1, 2]
    line.leave(tickets[1])
    line.leave(tickets[2])
    assert line.call(1, 2) == 1, "nobody waits"


def test_the_line_has_an_end() -> None:
    line = Line(10, 10, 3, 2)
    assert [line.join(address) is not None for address in ("a", "a", "a", "b", "c")] == [True, True, False, True, False]


def test_the_estimate_is_the_mean_of_recent_calls() -> None:
    line = Line(10, 10, 8, 8)
    line.call(0, 2)
    tickets = join(line, "a", "b")
    assert [place.estimate_s for place in places(line, tickets)] == [None, None]
    line.learn(60)
    line.learn(120)
    assert [place.estimate_s for place in places(line, tickets)] == [45, 90]  # a place becomes free every 90 s / 2


def test_tickets_that_nobody_asks_about_or_uses_are_dropped() -> None:
    line = Line(0.15, 0.3, 8, 8)
    gone, patient = join(line, "a", "b")
    end = time.monotonic() + 0.25
    while time.monotonic() < end:
        line.call(0, 1)
        assert line.place(patient)
        time.sleep(0.02)
    assert line.place(gone) is None
    end = time.monotonic() + 0.4
    while time.monotonic() < end:  # called now; it asks and asks, and makes no offer
        line.call(1, 1)
        line.place(patient)
        time.sleep(0.02)
    assert patient not in line
    assert line.place(patient) is None
    assert line.call(1, 1) == 1


def test_who_is_asked_about_by_others_is_not_there_for_that() -> None:
    line = Line(0.15, 10, 8, 8)
    (gone,) = join(line, "a")
    end = time.monotonic() + 0.25
    while time.monotonic() < end:
        line.call(0, 1)
        was = gone in line
        time.sleep(0.02)
    assert not was


def test_a_ticket_that_opened_no_call_is_good_for_one_more() -> None:
    line = Line(10, 10, 8, 8)
    first, second = join(line, "a", "b")
    line.call(1, 1)
    used = line.leave(first)
    assert used is not None
    line.give_back(used)
    assert line.call(1, 1) == 0
    assert [line.place(code).ready for code in (first, second)] == [True, False]
    used = line.leave(first)
    line.give_back(used)
    assert line.place(first) is None
    line.call(1, 1)
    assert line.place(second).ready


# ----------------------------------------------------------------------------------------------------------- in calls


def test_two_callers_at_once_do_not_see_each_other(model: ModelProcess) -> None:
    @with_application(model, ServingConfig(limits=PATIENT))
    async def _(client: httpx.AsyncClient) -> None:
        with_sound, silent = await in_call(client)
        with_sound.say("for the first only")
        await until(lambda: [e for e in with_sound.told("caption") if "first only" in e["text"]], "its caption")
        for visitor, heard in ((with_sound, "heard 0."), (silent, "heard nothing")):
            await until(lambda v=visitor, words=heard: [e for e in v.told("caption") if words in e["text"]], heard)
        assert "first only" not in str(silent.events)
        assert "heard 0." not in str(silent.events)
        assert with_sound.session != silent.session


def test_a_third_waits_and_gets_in_when_one_leaves(model: ModelProcess) -> None:
    @with_application(model, ServingConfig(limits=PATIENT))
    async def _(client: httpx.AsyncClient) -> None:
        first, _ = await in_call(client)
        third, fourth, fifth = (Visitor(client) for _ in range(3))
        answers = [await visitor.call() for visitor in (third, fourth)]
        assert [answer.status_code for answer in answers] == [202, 202]
        tickets = [answer.json()["queue"] for answer in answers]
        assert [answer.json()["place"] for answer in answers] == [1, 2]
        assert answers[0].json()["estimate_s"] is None
        assert await ask(client, tickets[1]) == {"place": 2, "estimate_s": None, "ready": False}
        again = await third.call(queue=tickets[0])  # too early: the same place
        assert (again.status_code, again.json()["queue"], again.json()["place"]) == (202, tickets[0], 1)
        await leave(client, first)
        await called(client, tickets[0])
        assert (await fifth.call()).status_code == 202, "the place is for who waited"
        assert (await fourth.call(queue=tickets[1])).status_code == 202
        assert (await ask(client, tickets[1]))["estimate_s"] > 0, "a call has ended"
        assert (await third.call(queue=tickets[0])).status_code == 200
        await until(lambda: third.told("session", state="live"), "the call")
        assert (await client.get("/api/queue", headers=as_bearer(tickets[0]))).status_code == 404, "it is used"
        assert (await ask(client, tickets[1]))["place"] == 1


def test_an_offer_that_never_connects_does_not_cost_the_place(model: ModelProcess) -> None:
    """The page takes another transport then, with the same ticket."""

    @with_application(model, ServingConfig(limits=PATIENT))
    async def _(client: httpx.AsyncClient) -> None:
        first, _ = await in_call(client)
        third, again = Visitor(client), Visitor(client)
        ticket = (await third.call()).json()["queue"]
        await leave(client, first)
        await called(client, ticket)
        await third.pc.setLocalDescription(await third.pc.createOffer())
        offer = {"sdp": third.pc.localDescription.sdp, "type": "offer", "queue": ticket}
        answer = (await client.post("/api/offer", json=offer)).json()  # which does not reach the visitor
        assert (await client.post("/api/close", json={"session": answer["session"]})).json() == {"closed": True}
        await called(client, ticket)
        assert (await Visitor(client).call()).status_code == 202, "the place is for who waited"
        assert (await again.call(queue=ticket)).status_code == 200
        await until(lambda: again.told("session", state="live"), "the call")


def test_tickets_of_others_are_of_no_use(model: ModelProcess) -> None:
    @with_application(model, ServingConfig(limits=PATIENT))
    async def _(client: httpx.AsyncClient) -> None:
        first, _ = await in_call(client)
        third, thief = Visitor(client), Visitor(client)
        ticket = (await third.call()).json()["queue"]
        for wrong in ("", "x" * len(ticket), ticket[:-1], first.session):
            assert (await client.get("/api/queue", headers=as_bearer(wrong))).status_code == 404
        assert (await client.get("/api/queue", params={"ticket": ticket})).status_code == 404, "not in an address"
        assert (await client.get("/api/status", headers=as_bearer(ticket))).json().keys() == {"busy", "model", "agent"}
        await leave(client, first)
        await called(client, ticket)
        stolen = await thief.call(queue=ticket[:-1])
        assert stolen.status_code == 202
        assert stolen.json()["queue"] != ticket
        assert (await third.call(queue=ticket)).status_code == 200


def test_who_goes_away_leaves_the_line(model: ModelProcess) -> None:
    config = ServingConfig(limits=replace(PATIENT, queue_per_address=3), ticket_s=2.5)

    @with_application(model, config)
    async def _(client: httpx.AsyncClient) -> None:
        await in_call(client)
        tickets = [(await Visitor(client).call()).json()["queue"] for _ in range(3)]
        full = await Visitor(client).call()
        assert (full.status_code, full.json()["error"]) == (409, "busy")
        assert (await client.post("/api/close", json={"session": tickets[0]})).json() == {"closed": True}
        assert (await ask(client, tickets[2]))["place"] == 2  # the one before it says nothing from now on
        end = time.monotonic() + 10
        while (await ask(client, tickets[2]))["place"] != 1:
            assert time.monotonic() < end
        assert (await client.get("/api/queue", headers=as_bearer(tickets[1]))).status_code == 404


def test_the_faster_of_two_has_the_place(model: ModelProcess) -> None:
    """Two offers for one place: the second connection is told to make a new offer."""

    @with_application(model, ServingConfig(limits=PATIENT))
    async def _(client: httpx.AsyncClient) -> None:
        await in_call(client, 1)
        rivals = [Visitor(client), Visitor(client)]
        assert [(await rival.call()).status_code for rival in rivals] == [200, 200]
        await until(lambda: any(rival.told("session", state="live") for rival in rivals), "the call")
        await until(lambda: any(rival.told("session", state="busy") for rival in rivals), "the news")


def test_a_question_is_held(model: ModelProcess) -> None:
    """So that a page in the background, whose timers are slow, asks often enough."""

    @with_application(model, ServingConfig(limits=PATIENT))
    async def _(client: httpx.AsyncClient) -> None:
        first, _ = await in_call(client)
        ticket = (await Visitor(client).call()).json()["queue"]
        began = time.monotonic()
        await ask(client, ticket)
        assert time.monotonic() - began > 1
        asked = asyncio.create_task(ask(client, ticket))
        await asyncio.sleep(0.1)
        await leave(client, first)
        assert (await asked)["ready"]
