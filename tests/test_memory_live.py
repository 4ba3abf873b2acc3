"""The text memory of a live session: what it holds, that a late unit is like one in training, and what it costs."""

import dataclasses

import pytest
import torch
from test_memory import RESPONSE, SIZE, TYPED, assert_same, differ, make, random_memory, with_memory
from tiny_clips import K, mixed, off_is_blank, one_pass, random_clip
from torch import Tensor

from wan_streamer.codecs.text import END, HOLD, SILENCE
from wan_streamer.flow.live import UserInput, live_unit
from wan_streamer.model.cache import MEMORY, LiveState
from wan_streamer.model.layout import ClipBatch, Latents
from wan_streamer.model.memory import latest, spoken
from wan_streamer.model.streamer import Streamer


class Talk:
    """A session that is told what to say and gets what was typed; microphone and camera are off, latents given."""

    def __init__(self, model: Streamer, units: int, seed: int = 7, share: float = 0.5) -> None:
        g = torch.Generator().manual_seed(seed)
        self.model = model
        said = torch.randint(END, 40, (units, 2, 3), generator=g)
        filler = torch.randint(SILENCE, HOLD + 1, said.shape, generator=g)
        self.said_KSX = torch.where(torch.rand(said.shape, generator=g) < share, said, filler)
        like = model.silence()
        self.video, self.audio = (torch.randn(units + 1, *z.shape, generator=g) for z in like)

    def run(self, live: LiveState, units: range, written: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Velocities at time 0.5 and logits of the last of these units."""
        for k in units:
            said, logits = iter(self.said_KSX[k, :, :2]), []
            user = UserInput(None, None, self.said_KSX[k, :, TYPED])
            last = Latents(self.video[k], self.audio[k])

            def pick(logits_LV: Tensor) -> Tensor:
                logits.append(logits_LV)  # noqa: B023
                return next(said)  # noqa: B023

            def draw(velocity, last: Latents) -> Latents:
                return velocity(Latents(self.video[k + 1], self.audio[k + 1]), 0.5) if k == units[-1] else last  # noqa: B023

            with torch.inference_mode():
                _, velocity = live_unit(self.model, live, last, user, pick, draw, written)
        return *velocity, torch.stack(logits)

    def clip(self, first: int, memory_N2: Tensor) -> ClipBatch:
        """K units as training reads them."""
        units = slice(first, first + K)
        blank, off = random_clip(self.model.config), torch.zeros(1, K, dtype=torch.bool)
        return dataclasses.replace(
            off_is_blank(dataclasses.replace(blank, microphone_BK=off, camera_BK=off)),
            video_BKNP=self.video[None, first : first + K + 1],
            audio_BKTC=self.audio[None, first : first + K + 1],
            user_text_BKS=self.said_KSX[None, units, :, TYPED],
            slot_BKSL=self.said_KSX[None, units, :, :2],
            memory_BM2=latest(memory_N2, self.model.config.cache.memory_tokens)[None],
        )

    def one_pass(self, clip: ClipBatch) -> tuple[Tensor, Tensor, Tensor]:
        """What `run` gives, of the last unit of a clip."""
        noisy = Latents(clip.video_BKNP[:, 1:], clip.audio_BKTC[:, 1:])
        (video, audio), logits = one_pass(self.model, clip, noisy, torch.full((1, K), 0.5))
        return video[0, -1], audio[0, -1], logits[0, -1]


def memory_of(live: LiveState) -> Tensor:
    """Keys before rotation and values [2, Z, M, G, d] of the tokens that the open block reads."""
    return live.cache.memory(10_000)


@pytest.mark.parametrize("media", [False, True])
@pytest.mark.parametrize(("size", "span"), [(SIZE, 0), (400, 0), (400, 7)])
@pytest.mark.parametrize("first", [1, 14])
def test_late_unit_of_a_session_equals_the_last_of_a_clip(first: int, size: int, span: int, media: bool) -> None:
    """A unit of a long session gives what training gives for a clip that ends there, with what was said before it.

    Exact only with one layer: deeper ones know of older sound and pictures through the keys in their windows, and of
    words that were dropped through the words behind them. Without sinks, which are another unit in a clip.
    """
    config = with_memory(size, layers=1, span=span)
    config = mixed(config) if media else config
    model = make(dataclasses.replace(config, cache=dataclasses.replace(config.cache, sink_units=0)))
    talk, live = Talk(model, first + K), model.open()
    got = talk.run(live, range(first + K))
    said = spoken(talk.said_KSX[:first])
    assert len(said) > (SIZE if first > 1 else 0)
    expected = talk.one_pass(talk.clip(first, said))
    assert_same(got, expected, atol=1e-4)
    assert differ(got, talk.one_pass(talk.clip(first, said[:-1])))
    assert memory_of(live).shape[2] == min(size, len(said))


@pytest.mark.parametrize("span", [0, 9])
def test_memory_of_a_session_is_that_of_training(span: int) -> None:
    """All layers' keys and values after 20 units, as one training pass makes them, while nothing has been dropped."""
    model = make(with_memory(400, span=span))
    talk, live = Talk(model, 20), model.open()
    talk.run(live, range(20))
    memory = spoken(talk.said_KSX[: 20 - K])
    nothing = memory_of(model.open())
    with torch.inference_mode():
        expected = model.backbone.remember(model._embed_memory(memory), nothing)
    torch.testing.assert_close(memory_of(live), expected, atol=1e-5, rtol=0)
    reopened = model.open(memory)  # as after a lost connection
    talk.run(reopened, range(1))
    torch.testing.assert_close(memory_of(reopened), expected, atol=1e-5, rtol=0)


def test_a_session_opens_with_the_latest_words() -> None:
    model = make(with_memory())
    talk, long, short = Talk(model, 3), model.open(random_memory(20)), model.open(random_memory(20)[-SIZE:])
    assert all(map(torch.equal, talk.run(long, range(3)), talk.run(short, range(3))))
    assert memory_of(long).shape[2] == SIZE


def test_unwritten_words_are_not_remembered() -> None:
    model = make(with_memory(400, layers=1))
    talk, live = Talk(model, 15), model.open()
    talk.run(live, range(15), written=False)
    said = spoken(talk.said_KSX[: 15 - K])
    expected = model._embed_memory(said[said[:, 0] != RESPONSE])
    with torch.inference_mode():
        expected = model.backbone.remember(expected, memory_of(model.open()))
    torch.testing.assert_close(memory_of(live), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_oldest_is_dropped_and_cost_is_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 units of talk: the memory holds the last words that left the window, and the cache never grows."""
    model = make(with_memory(layers=1))
    units = 400
    talk, live = Talk(model, units), model.open()
    said = spoken(talk.said_KSX[: units - K])
    assert len(said) > 20 * SIZE
    sizes, lengths, remember, said_at_once = set(), set(), model.backbone.remember, talk.said_KSX[0].numel()
    monkeypatch.setattr(
        model.backbone, "remember", lambda x, past: lengths.add(len(x) + past.shape[2]) or remember(x, past)
    )
    with torch.inference_mode():
        for k in range(units):
            model.observe(live, model.silence(), None, None, talk.said_KSX[k, :, TYPED])
            for slot in range(2):
                model.speak(live, slot, talk.said_KSX[k, slot, :2])
            sizes.add((live.cache.bytes, len(live.said) if k > 50 else K, live.cache.length if k > 50 else 0))
        expected = remember(model._embed_memory(said[-SIZE:]), memory_of(model.open()))
    assert len(sizes) == 2, "of the first 50 units and of all others"
    assert max(lengths) <= SIZE - 1 + said_at_once, "nothing reads further back than in training"
    torch.testing.assert_close(memory_of(live), expected, atol=1e-5, rtol=0)  # one layer: the past changes no key
    assert int((live.cache.block_M[: live.cache.length] <= MEMORY).sum()) == SIZE


def test_silence_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pass over the memory, no row in the cache, and with no text in sinks the answers of a model without one."""
    model, off = make(with_memory()), make(with_memory(0))
    off.config = off.backbone.config = dataclasses.replace(
        off.config, cache=dataclasses.replace(off.config.cache, sink_units=0)
    )
    model.config = model.backbone.config = dataclasses.replace(
        model.config, cache=dataclasses.replace(model.config.cache, sink_units=0)
    )
    monkeypatch.setattr(model.backbone, "remember", lambda *_: pytest.fail("nothing was said"))
    talk, plain = Talk(model, 25, share=0.0), Talk(off, 25, share=0.0)
    live, other = model.open(), off.open()
    assert all(map(torch.equal, talk.run(live, range(25)), plain.run(other, range(25))))
    assert live.cache.length == other.cache.length
    assert not other.said
