"""The objective of the model: what counts, what adds up, and a history that is the model's own."""

import dataclasses

import pytest
import torch
from tiny import TALKER
from torch.nn import functional as F

from wan_streamer.benchmarks.training import random_example
from wan_streamer.codecs.text import END, HOLD, SILENCE
from wan_streamer.flow.joint import each, mix
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.streamer import TAU_FLOOR, Streamer
from wan_streamer.training.examples.clips import Example
from wan_streamer.training.stages.objective import (
    RECYCLED_ALONE,
    SERVED_SHARE,
    audio_error,
    decisions,
    draw_flow,
    misread_words,
    recycle,
    served_times,
    sound_alone,
    streamer_loss,
    text_errors,
    video_error,
)

UNITS, ROWS = 8, 3


def same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def fp32() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=False)


def agent() -> Streamer:
    torch.manual_seed(0)
    streamer = Streamer(TALKER)
    for head in (streamer.video_out, streamer.audio_out):
        torch.nn.init.normal_(head.weight, std=0.2)
    return streamer


@torch.no_grad()
def test_recycled_history_is_what_the_model_makes() -> None:
    streamer, example = agent(), random_example(TALKER, UNITS, ROWS)
    hidden = torch.tensor([[True]] * (ROWS - 1) + [[False]]).expand(ROWS, UNITS)
    sample = draw_flow(example.clips, TALKER.flow, RowNoise(0, 0, range(ROWS)), same, hidden)
    read, own = recycle(streamer, example.clips, sample, RowNoise(0, 1, range(ROWS)), same, fp32())
    velocity, logits = streamer(example.clips, sample.history, sample.history_tau_BK2, sample.noisy, sample.tau_BK2)
    replaced = (own.history.video != sample.history.video).flatten(2).any(2)
    assert 3 < replaced[:-1].sum() < (ROWS - 1) * (UNITS - 1)
    assert not replaced[:, 0].any()
    assert not replaced[-1].any()  # a hidden history stays hidden
    for i in range(2):
        made = (sample.noisy[i] - sample.tau_BK2[..., i, None, None] * velocity[i])[:, :-1]
        torch.testing.assert_close(own.history[i][:, 1:][replaced[:, 1:]], made[replaced[:, 1:]])
        assert torch.equal(own.history[i][~replaced], sample.history[i][~replaced])
    assert not own.history_tau_BK2[replaced].any()  # told to be clean
    assert torch.equal(own.history_tau_BK2[~replaced], sample.history_tau_BK2[~replaced])
    for field in ("noisy", "clean", "noise"):  # the targets stay
        assert all(torch.equal(a, b) for a, b in zip(getattr(own, field), getattr(sample, field), strict=True))
    said, heard = example.clips.slot_BKSL, read.slot_BKSL
    assert torch.equal(said[..., 0], heard[..., 0])
    changed, likeliest = said[..., 1] != heard[..., 1], logits[..., 1, END + 1 :].argmax(-1) + END + 1
    wrong = (said[..., 1] > END) & (said[..., 1] != likeliest)
    assert not (changed & ~wrong).any()
    assert 0 < changed.sum() < wrong.sum(), "expected some of what it mishears"
    assert torch.equal(heard[..., 1][changed], likeliest[changed])


@torch.no_grad()
def test_recycled_sound_alone_is_made_from_noise() -> None:
    """As it is live where it jumps to data; in most units, and once more from what was made before."""
    streamer, example = agent(), random_example(TALKER, 40, ROWS)
    torch.nn.init.normal_(streamer.audio_out.weight)
    sample = sound_alone(draw_flow(example.clips, TALKER.flow, RowNoise(0, 0, range(ROWS)), same))
    _, once = recycle(streamer, example.clips, sample, RowNoise(0, 1, range(ROWS)), same, fp32())
    replaced = (once.history.audio != sample.history.audio).flatten(2).any(2)
    assert replaced[:, 1:].float().mean() == pytest.approx(RECYCLED_ALONE, abs=0.1)
    start = torch.ones_like(sample.tau_BK2)
    velocity, _ = streamer(example.clips, sample.history, sample.history_tau_BK2, sample.noise, start)
    made = (sample.noise.audio - velocity.audio)[:, :-1]
    torch.testing.assert_close(once.history.audio[:, 1:][replaced[:, 1:]], made[replaced[:, 1:]])
    assert torch.equal(once.noisy.audio, sample.noisy.audio)
    losses = [loss_of(streamer, example, pictures=False, recycled=times) for times in (0, 1, 2)]
    assert len(set(losses)) == 3


def test_shares_of_noised_and_recycled_history() -> None:
    """Of the history 70 % is noised a little, and in a step that recycles the model makes half of it; 20 % of the units
    have a time for each modality."""
    example = random_example(TALKER, UNITS, 1)
    rows = 150
    clips = dataclasses.replace(
        example.clips, **{name: value.expand(rows, *value.shape[1:]) for name, value in vars(example.clips).items()}
    )
    noise = RowNoise(0, 0, range(rows))
    sample = draw_flow(clips, TALKER.flow, noise, same)
    noised = (sample.history_tau_BK2 > 0).any(-1)
    assert noised.float().mean() == pytest.approx(0.7, abs=0.04)
    assert 0.04 < sample.history_tau_BK2[noised].mean() < 0.06  # evenly up to `history_noise`
    apart = sample.tau_BK2[..., 0] != sample.tau_BK2[..., 1]
    assert apart.float().mean() == pytest.approx(0.2, abs=0.04)
    _, own = recycle(agent(), clips, sample, noise, same, fp32())
    replaced = (own.history.audio != sample.history.audio).flatten(2).any(2)
    assert replaced[:, 1:].float().mean() == pytest.approx(0.5, abs=0.04)


def test_a_right_guess_of_the_clean_latents_costs_nothing() -> None:
    """At every time, also below the floor under which the velocity is no longer (z - z0) / tau."""
    example = random_example(TALKER, UNITS, ROWS)
    sample = draw_flow(example.clips, TALKER.flow, RowNoise(0, 0, range(ROWS)), same)
    for time in (0.01, TAU_FLOOR, 0.7):
        tau_BK2 = torch.full_like(sample.tau_BK2, time)
        at = dataclasses.replace(sample, tau_BK2=tau_BK2, noisy=mix(sample.clean, sample.noise, tau_BK2))
        right = each(lambda z, z0: (z - z0) / max(time, TAU_FLOOR), at.noisy, at.clean)  # noqa: B023
        wrong = each(torch.zeros_like, right)
        for error in (video_error, audio_error):
            assert error(right, at, example).max() < 1e-9
            assert error(wrong, at, example).min() > 1e-3


def test_half_of_the_units_are_asked_when_a_live_solver_asks() -> None:
    clips, flow = random_example(TALKER, 40, 8).clips, dataclasses.replace(TALKER.flow, steps=2, shift=3.0)
    sample = draw_flow(clips, flow, RowNoise(0, 0, range(8)), same, served=served_times(flow, True))
    assert served_times(flow, True) == pytest.approx([1, 0.75])
    first, second = ((sample.tau_BK2 == time).all(-1).float().mean().item() for time in (1.0, 0.75))
    assert first == pytest.approx(SERVED_SHARE / 2, abs=0.06)
    assert second == pytest.approx(SERVED_SHARE / 2, abs=0.06)
    start = sample.tau_BK2[..., 1] == 1
    assert torch.equal(sample.noisy.audio[start], sample.noise.audio[start])


@pytest.mark.parametrize(("audio_steps", "alone"), [(0, 2), (1, 1), (2, 2)])
def test_sound_alone_is_asked_until_it_jumps_to_data(audio_steps: int, alone: int) -> None:
    flow = dataclasses.replace(TALKER.flow, steps=2, audio_steps=audio_steps)
    assert served_times(flow, False) == served_times(flow, True)[:alone]


def loss_of(streamer: Streamer, example: Example, **options: float) -> float:
    with torch.no_grad():
        return streamer_loss(streamer, example, RowNoise(0, 0, range(ROWS)), same, fp32(), **options)[0].item()


def test_a_recycled_step_sees_another_history() -> None:
    streamer, example = agent(), random_example(TALKER, UNITS, ROWS)
    assert loss_of(streamer, example) == loss_of(streamer, example)
    assert loss_of(streamer, example, recycled=1) != loss_of(streamer, example)


def test_the_loss_is_that_of_the_targets() -> None:
    """Streams add up, and nothing is left where nothing is a target."""
    streamer, example = agent(), random_example(TALKER, UNITS, ROWS)
    names = ("video_BK", "audio_BK", "lane_BKL")
    none = dataclasses.replace(example, **{name: torch.zeros_like(getattr(example, name)) for name in names})
    alone = [dataclasses.replace(none, **{name: getattr(example, name)}) for name in names]
    parts = [loss_of(streamer, part) for part in alone]
    assert loss_of(streamer, none) == 0
    assert all(part > 0.1 for part in parts)
    assert abs(loss_of(streamer, example) - sum(parts)) < 1e-4


def test_text_alone_is_learned_without_what_is_drawn() -> None:
    streamer, example = agent(), random_example(TALKER, UNITS, ROWS)
    text = dataclasses.replace(
        example, video_BK=torch.zeros_like(example.video_BK), audio_BK=torch.zeros_like(example.audio_BK)
    )
    with torch.no_grad():
        whole, _ = streamer_loss(streamer, text, RowNoise(0, 0, range(ROWS)), same, fp32())
        alone, numbers = streamer_loss(streamer, example, RowNoise(0, 0, range(ROWS)), same, fp32(), drawn=False)
        other, _ = streamer_loss(streamer, example, RowNoise(1, 0, range(ROWS)), same, fp32(), drawn=False)
    assert alone.item() != pytest.approx(whole.item(), rel=1e-3)
    assert other == alone > 0.1  # nothing that noise was put on is read
    assert {"text", "transcript_right"} <= set(numbers)
    assert not {"video", "audio"} & set(numbers)


def test_sound_alone_is_learned_without_pictures() -> None:
    streamer, example = agent(), random_example(TALKER, UNITS, ROWS)
    other = dataclasses.replace(example.clips, video_BKNP=torch.randn_like(example.clips.video_BKNP))
    sound = [
        streamer_loss(streamer, one, RowNoise(0, 0, range(ROWS)), same, fp32(), pictures=False)
        for one in (example, dataclasses.replace(example, clips=other))
    ]
    assert sound[0][0].item() == sound[1][0].item() > 0.1  # no picture is read
    assert set(sound[0][1]) >= {"text", "audio"}
    assert "video" not in sound[0][1]
    sound[0][0].backward()
    assert streamer.audio_out.weight.grad.abs().sum() > 0
    assert streamer.video_out.weight.grad is None


def test_where_it_matters_what_the_agent_does() -> None:
    """Slots in which it begins, ends, and waits while the user is in a turn; a clip may begin inside an utterance."""
    response = [[7, 8], [HOLD, END], [SILENCE, SILENCE], [SILENCE, 9], [END, 7], [SILENCE, SILENCE]]
    transcript = [[SILENCE, SILENCE], [SILENCE, SILENCE], [HOLD, 5], [HOLD, END], [SILENCE, SILENCE], [HOLD, SILENCE]]
    slot_BKSL = torch.stack([torch.tensor(lane) for lane in (response, transcript)], dim=-1)[None]
    found = {name: where.nonzero()[:, 1].tolist() for name, where in decisions(slot_BKSL).items()}
    assert found == {"begin": [7, 9], "end": [3, 8], "wait": [4, 6, 10]}
    logits = F.one_hot(slot_BKSL, TALKER.text.vocab_size).float()
    logits[0, 3, 1, 0] = logits[0, 3, 0, 0] = F.one_hot(torch.tensor(4), TALKER.text.vocab_size)
    example = random_example(TALKER, len(response), 1)
    clips = dataclasses.replace(example.clips, slot_BKSL=slot_BKSL, written_BK=torch.ones(1, len(response)).bool())
    lanes = torch.ones(1, len(response), 2)
    _, scores = text_errors(logits, dataclasses.replace(example, clips=clips, lane_BKL=lanes))
    assert [round(scores[f"{name}_right"].item(), 3) for name in ("begin", "end", "wait")] == [0.5, 1.0, 0.667]
    lanes[:, :4, 0] = 0  # what is no target is not counted
    _, scores = text_errors(logits, dataclasses.replace(example, clips=clips, lane_BKL=lanes))
    assert [scores[f"{name}_right"].item() for name in ("begin", "end", "wait")] == [1.0, 1.0, 1.0]


def test_some_words_of_the_transcript_are_misread() -> None:
    """Those alone, and only what is read: what is to be written stays."""
    example, vocabulary = random_example(TALKER, 40, 16), TALKER.text.vocab_size
    said = example.clips.slot_BKSL
    said[:, ::3] = torch.tensor([SILENCE, HOLD])[:, None]
    said[:, 1::9] = END
    read = misread_words(example.clips, 0.3, vocabulary, RowNoise(0, 0, range(16)), same).slot_BKSL
    changed, words = read != said, said > END
    assert not changed[..., 0].any()
    assert not (changed & ~words).any()
    assert 0.25 < changed[..., 1].sum() / words[..., 1].sum() < 0.35
    assert read[changed].min() > END
    assert read.max() < vocabulary
    assert len(read[changed].unique()) > 100, "any others"
    again = misread_words(example.clips, 0.3, vocabulary, RowNoise(0, 0, range(16)), same).slot_BKSL
    assert torch.equal(read, again)


def test_what_is_misread_changes_what_is_read_alone() -> None:
    streamer, example = agent(), random_example(TALKER, UNITS, ROWS)
    right, wrong, none = (loss_of(streamer, example, misread=share) for share in (0.0, 1.0, 1e-9))
    assert wrong != right
    assert none == right, "times and noise are those of a step without it"
