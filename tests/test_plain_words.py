"""Conversations as plain words: what is said, without the time in between, and drills of what has to be found in it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TALKER, tiny_text
from tiny_world import make_latents
from torch import Tensor
from torch.nn import functional as F

from wan_streamer.codecs.text import HOLD
from wan_streamer.data.lanes import conversation_lanes
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.memory import PADDING, RESPONSE, TRANSCRIPT
from wan_streamer.model.streamer import Streamer
from wan_streamer.simulation.conversation.facts import FACTS, drill
from wan_streamer.simulation.conversation.lines.many import MANY
from wan_streamer.simulation.conversation.partners import written_conversation
from wan_streamer.simulation.conversation.repertoire import AGENT
from wan_streamer.training.examples.clips import told
from wan_streamer.training.examples.written import DRILLS, PLAIN_CLIPS, PLAIN_TOKENS, PlainClips
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.stages.duplex import PLAIN_STEPS, PLAIN_WEIGHT, DuplexStage
from wan_streamer.training.stages.objective import OVERHEARD_WEIGHT

UNITS = 16


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_latents(tmp_path_factory.mktemp("latents"), units=UNITS + 2)


def test_plain_clips_are_what_is_said_without_the_time_in_between() -> None:
    text = tiny_text()
    clips = PlainClips("train", TALKER, text)
    memory = clips.batch(0, 5, range(2))
    assert torch.equal(memory, clips.batch(0, 5, range(2)))
    assert len(memory) == 2 * PLAIN_CLIPS
    assert memory.shape[1] <= PLAIN_TOKENS
    last = clips.batch(0, 5, range(1, 2))
    assert torch.equal(memory[PLAIN_CLIPS:, : last.shape[1]], last)
    for row in memory:
        there = row[:, 0] != PADDING
        assert bool(there[: int(there.sum())].all()), "expected padding behind"
        assert (row[there][:, 1] > HOLD).all()
        assert {RESPONSE, TRANSCRIPT} <= set(row[there][:, 0].tolist())
    labels = written_conversation(0, "train", (5 << 16) + DRILLS)
    lanes = torch.from_numpy(conversation_lanes(labels, TALKER.text, text)[1])
    before = told(labels["before"], text)
    for source in (RESPONSE, TRANSCRIPT):
        said = [*before[before[:, 0] == source][:, 1].tolist(), *lanes[..., source][lanes[..., source] > HOLD].tolist()]
        kept = memory[DRILLS][memory[DRILLS][:, 0] == source][:, 1].tolist()
        assert kept == said[: len(kept)]
        assert len(kept) > 10


def test_in_a_drill_every_answer_is_in_what_was_said_before() -> None:
    asked_for = {text: FACTS[kind] for kind in FACTS for text in MANY.user[FACTS[kind].ask]}
    recalls, repeats = 0, set()
    texts = ("Strange lanterns glimmer", "under seven bridges")
    for seed in range(60):
        turns, said = drill(16, texts, np.random.default_rng(seed), MANY), ""
        assert [turn["side"] for turn in turns] == ["user", "agent"] * 16
        for asked, answer in zip(turns[::2], turns[1::2], strict=True):
            fact, text, said = asked_for.get(asked["text"]), answer["text"], f"{said} {asked['text'].lower()}"
            if fact is not None and text != AGENT["unknown"]:
                before, behind = AGENT[fact.answer].split("{" + fact.slot + "}")
                assert text.startswith(before)
                assert text.endswith(behind)
                assert text[len(before) : len(text) - len(behind)].lower() in said
                recalls += 1
            elif text.startswith("One "):
                assert text[4:].split(",")[0] in asked["text"]
            elif text.startswith("Nice to meet you, "):
                assert text[len("Nice to meet you, ") : -1].lower() in asked["text"].lower()
            elif text not in (AGENT["unknown"], AGENT["will_remember"]):
                assert asked["text"].endswith(text)
                repeats.add(text)
    assert recalls > 150
    assert len(repeats) > 5
    said_before = {word for text in texts for word in text.split()}
    blended = {word for text in repeats for word in text.split()} - said_before
    assert {"Straglow", "sevidges"} & blended or len(blended) > 10  # words that nobody has ever said
    assert repeats & said_before


def test_a_plain_step_foretells_every_word_from_those_before(latents: Path) -> None:
    """As each row alone, without padding; the user's words count little, and nothing before a word reads it."""
    (step,) = PLAIN_STEPS
    torch.manual_seed(0)
    config = TrainConfig(steps=20, lr=1e-3, batch=2, clip_units=UNITS, precision="fp32")
    cache = dataclasses.replace(TALKER.cache, memory_tokens=64, text_units=UNITS)
    streamer = Streamer(dataclasses.replace(TALKER, cache=cache))
    stage = DuplexStage(streamer, tiny_text(), latents, config, written=True)
    memory = stage.batch(step, range(1))
    assert isinstance(memory, Tensor)
    loss, numbers = stage.loss(memory, step, RowNoise(0, step, range(1)))
    errors, right = [], []
    with torch.no_grad():
        for row in memory:
            row = row[row[:, 0] != PADDING]
            logits_NV = streamer.text_logits(row[None, :-1])[0][0]
            own_N = row[1:, 0] == RESPONSE
            weight_N = torch.where(own_N, 1.0, OVERHEARD_WEIGHT)
            error_N = F.cross_entropy(logits_NV, row[1:, 1], reduction="none")
            errors.append((error_N * weight_N).sum() / weight_N.sum())
            right.append((logits_NV.argmax(-1) == row[1:, 1])[own_N])
    torch.testing.assert_close(numbers["plain"], torch.stack(errors).mean())
    torch.testing.assert_close(loss.detach(), PLAIN_WEIGHT * torch.stack(errors).mean())
    torch.testing.assert_close(numbers["plain_right"], torch.cat(right).float().mean())
    loss.backward()
    assert all(p.grad is not None for name, p in streamer.named_parameters() if name.startswith("backbone.layers"))
    assert {"plain", "plain_right"} <= set(stage.validate())
