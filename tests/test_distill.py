"""Stage 3: every loss against a closed form, a toy problem whose answer is known, and the stages on the tiny agent."""

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import TALKER, tiny_text, tiny_weights
from tiny_world import make_latents
from torch import Tensor, nn

from wan_streamer import UserUnit, WanStreamer
from wan_streamer.codecs.text import SILENCE
from wan_streamer.config import FlowConfig, load_config
from wan_streamer.errors import CheckpointError, ConfigError, TrainingError
from wan_streamer.flow.guidance import Guidance, guide
from wan_streamer.flow.joint import advance, denoise, each
from wan_streamer.flow.noise import RowNoise
from wan_streamer.flow.path import shift_tau, velocity_target
from wan_streamer.flow.sampler import draw_unit
from wan_streamer.flow.solver import solve, time_grid
from wan_streamer.model.layout import Latents
from wan_streamer.model.pretrained import Weights, save_weights
from wan_streamer.model.streamer import TAU_FLOOR, ClipBatch
from wan_streamer.runtime.session import Session
from wan_streamer.training import distill
from wan_streamer.training.clips import Example
from wan_streamer.training.consistency import ConsistencyStage, consistency_goal
from wan_streamer.training.distill import train_distill
from wan_streamer.training.matching import (
    EARLIEST,
    LATEST,
    MatchingStage,
    matching_errors,
    matching_gradient,
    pick,
    score_times,
)
from wan_streamer.training.objective import mix
from wan_streamer.training.run import RunOptions
from wan_streamer.training.self_forcing import continue_clips
from wan_streamer.training.stage import TrainConfig
from wan_streamer.training.streaming import load_codecs
from wan_streamer.training.student import DistillConfig, StudentStage, real_history, unit_errors
from wan_streamer.training.teacher import Teacher
from wan_streamer.training.trainer import Trainer
from wan_streamer.units import SAMPLES_PER_UNIT

MEAN, DEVIATION = 0.4, 0.6  # of the Gaussian whose flow is known


def latents(rows: int, seed: int = 0) -> Latents:
    g = torch.Generator().manual_seed(seed)
    return Latents(*(torch.randn(rows, *shape, generator=g, dtype=torch.float64) for shape in ((5, 3), (4, 2))))


def gaussian_velocity(noisy: Latents, tau_B2: Tensor, mean: float = MEAN, deviation: float = DEVIATION) -> Latents:
    """E[eps - z0 | z_tau] for z0 ~ N(mean, deviation^2)."""

    def of(z: Tensor, tau: Tensor) -> Tensor:
        variance = (1 - tau) ** 2 * deviation**2 + tau**2
        return -mean + (tau - (1 - tau) * deviation**2) / variance * (z - (1 - tau) * mean)

    return Latents(of(noisy.video, tau_B2[..., :1, None]), of(noisy.audio, tau_B2[..., 1:, None]))


def flow_map(noisy: Latents, tau_B2: Tensor, to_B2: Tensor) -> Latents:
    """Where the path of that Gaussian through z_tau is at another time: mean and deviation of z move with it."""

    def of(z: Tensor, tau: Tensor, to: Tensor) -> Tensor:
        before, after = ((((1 - t) * DEVIATION) ** 2 + t**2).sqrt() for t in (tau, to))
        return (1 - to) * MEAN + after / before * (z - (1 - tau) * MEAN)

    return Latents(
        of(noisy.video, tau_B2[..., :1, None], to_B2[..., :1, None]),
        of(noisy.audio, tau_B2[..., 1:, None], to_B2[..., 1:, None]),
    )


def jump_velocity(noisy: Latents, tau_B2: Tensor) -> Latents:
    """The velocity whose jump is that flow map: (z - z0) / tau."""
    end = flow_map(noisy, tau_B2, torch.zeros_like(tau_B2))
    return Latents(
        (noisy.video - end.video) / tau_B2[..., :1, None].clamp(min=1e-9),
        (noisy.audio - end.audio) / tau_B2[..., 1:, None].clamp(min=1e-9),
    )


def assert_close(got: Latents, expected: Latents, atol: float = 1e-12) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0)


# ---- closed forms


def test_guidance() -> None:
    told, untold = latents(2, 1), latents(2, 2)
    assert_close(guide(told, untold, Guidance(1, 1)), told, 0)
    assert_close(guide(told, untold, Guidance(0, 0)), untold, 0)
    mixed = guide(told, untold, Guidance(video=3, audio=0.5))
    assert_close(mixed, Latents(3 * told.video - 2 * untold.video, 0.5 * told.audio + 0.5 * untold.audio))


def test_guided_gaussian() -> None:
    """Two Gaussians of the same width at 0 and m: guidance by w is the flow of one at w m."""
    noisy, tau, weight = latents(6), torch.full((6, 2), 0.4, dtype=torch.float64), 2.5
    told, untold, far = (gaussian_velocity(noisy, tau, mean) for mean in (0.3, 0.0, 0.3 * weight))
    assert_close(guide(told, untold, Guidance(weight, weight)), far)


def test_steps_of_both_modalities() -> None:
    """Each modality takes its own step, and the path's own velocity leads to data and back."""
    clean, eps = latents(3, 1), latents(3, 2)
    g = torch.Generator().manual_seed(3)
    now, following = torch.rand(2, 3, 2, generator=g, dtype=torch.float64)
    slope = each(velocity_target, clean, eps)
    assert_close(advance(mix(clean, eps, now), slope, now, following), mix(clean, eps, following))
    assert_close(denoise(mix(clean, eps, now), slope, now), clean)


def test_solver_that_jumps_is_exact_for_the_flow_map() -> None:
    """Any number of jumps of the true flow map keeps the distribution; Euler with the same jumps does not."""
    like, out = Latents(torch.zeros(20_000, 1, 1), torch.zeros(20_000, 1, 1)), {}

    def velocity(z: Latents, tau: float) -> Latents:
        return jump_velocity(z, torch.full((20_000, 2), tau))

    for steps in (1, 2, 4):
        for renoise in (True, False):
            flow = FlowConfig(steps=steps, renoise=renoise)
            z = draw_unit(velocity, like, flow, torch.Generator().manual_seed(0)).video
            out[steps, renoise] = (z.mean().item(), z.std().item())
    for steps in (1, 2, 4):
        assert out[steps, True] == pytest.approx((MEAN, DEVIATION), abs=0.02)
    assert out[1, False] == out[1, True]
    assert out[2, False][1] > 1.05 * DEVIATION


def test_sampler_draws_as_before() -> None:
    """Sessions keep their numbers: noise of video, then of audio, then Euler steps."""
    flow, like = FlowConfig(steps=3, temperature=0.8), each(torch.Tensor.float, latents(5))

    def velocity(z: Latents, tau: float) -> Latents:
        return each(lambda x: x.sin() + tau, z)

    g = torch.Generator().manual_seed(4)
    start = Latents(*(torch.randn(z.shape, generator=g) * 0.8 for z in like))
    expected = solve(velocity, start, time_grid(3, flow.shift))
    assert_close(draw_unit(velocity, like, flow, torch.Generator().manual_seed(4)), expected, 0)


@pytest.mark.parametrize("steps", [50, 100])
def test_consistency_is_zero_on_the_true_flow_map(steps: int) -> None:
    """But for the teacher's step, whose error falls with the square of its length."""
    grid = torch.tensor(time_grid(steps, 3.0), dtype=torch.float64)
    now, following = grid[:-1, None].expand(-1, 2), grid[1:, None].expand(-1, 2)
    noisy = mix(latents(steps, 1), latents(steps, 2), now)

    def exact_step(z: Latents, tau: Tensor) -> Latents:
        """The slope of the chord, so that the Euler step ends on the path."""
        end = flow_map(z, tau, following)
        step = (tau - following)[:, :1, None]
        return each(lambda before, after: (before - after) / step, z, end)

    got = denoise(noisy, jump_velocity(noisy, now), now)
    errors = unit_errors(got, consistency_goal(exact_step, jump_velocity, noisy, now, following))
    assert max(e.max().item() for e in errors) < 1e-20
    errors = unit_errors(got, consistency_goal(gaussian_velocity, jump_velocity, noisy, now, following))
    assert 0 < max(e.max().item() for e in errors) < (5 / steps) ** 4


def test_consistency_sees_a_wrong_map() -> None:
    now = torch.full((50, 2), 0.75, dtype=torch.float64)
    noisy = mix(latents(50, 1), latents(50, 2), now)
    goal = consistency_goal(gaussian_velocity, jump_velocity, noisy, now, now - 0.01)
    wrong = denoise(noisy, gaussian_velocity(noisy, now), now)  # the teacher's own guess is the mean of all ends
    assert min(e.mean().item() for e in unit_errors(wrong, goal)) > 1e-3


def test_matching_gradient() -> None:
    sample, real, shift = latents(4, 1), latents(4, 2), latents(4, 3)
    same = matching_gradient(sample, real, real)
    assert all(not g.any() for g in same)
    gradient = matching_gradient(sample, each(torch.add, real, shift), real)
    for z, guess, d, g in zip(sample, real, shift, gradient, strict=True):
        for row in range(4):
            torch.testing.assert_close(g[row], d[row] / (z[row] - guess[row]).abs().mean())
    assert all(torch.isfinite(g).all() for g in matching_gradient(real, each(torch.add, real, shift), real))


def test_matching_errors_have_that_gradient() -> None:
    sample, gradient = each(lambda z: z.requires_grad_(), latents(4, 1)), latents(4, 2)
    errors = matching_errors(sample, gradient)
    (errors.video.sum() + errors.audio.sum()).backward()
    for z, g, e in zip(sample, gradient, errors, strict=True):
        torch.testing.assert_close(z.grad, g / g[0].numel())
        torch.testing.assert_close(e, g.square().mean((1, 2)) / 2)


def test_matching_moves_a_gaussian_to_the_real_one() -> None:
    """With both scores known, a student that is one shift ends where the teacher's Gaussian is."""
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for step in range(60):
        eps, more = latents(64, 2 * step + 10), latents(64, 2 * step + 11)
        sample = each(lambda z: shift + DEVIATION * z, eps)  # noqa: B023
        tau = score_times((64, 1), 3.0, RowNoise(0, step, range(64))).double().expand(64, 2)
        mixed = mix(each(torch.detach, sample), more, tau)
        real = denoise(mixed, gaussian_velocity(mixed, tau), tau)
        fake = denoise(mixed, gaussian_velocity(mixed, tau, mean=shift.item()), tau)
        loss = sum(e.mean() for e in matching_errors(sample, matching_gradient(sample, fake, real)))
        (slope,) = torch.autograd.grad(loss, shift)
        with torch.no_grad():
            shift -= 0.1 * slope
    assert shift.item() == pytest.approx(MEAN, abs=0.02)


def test_score_times() -> None:
    tau = score_times((1, 20_000), 3.0, RowNoise(0, 0, [0]))
    assert tau.min() >= EARLIEST
    assert tau.max() <= LATEST
    assert tau.median().item() == pytest.approx(shift_tau(torch.tensor(0.5), 3.0).item(), abs=0.01)


# ---- a toy problem: a mixture of four Gaussians in the plane; x is the video, y the audio

CENTRES = 0.8 * torch.tensor([[1.5, 0.5], [-0.5, 1.5], [-1.5, -0.5], [0.5, -1.5]])
SHARES, WIDTH = torch.tensor([0.4, 0.3, 0.2, 0.1]), 0.25
POINTS = 512  # of a batch
GROUPS = 16  # of a batch of matching: a group has one time and one normaliser, as the tokens of a unit have
MANY, FEW, ONE = FlowConfig(steps=32), FlowConfig(steps=2, renoise=True), FlowConfig(steps=1)
DRAWS = 4000


class Plane(nn.Module):
    """A small network for the velocity of both coordinates: [groups, tokens, 1] at times [groups, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(10, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2)
        )

    def forward(self, noisy: Latents, tau_G2: Tensor) -> Latents:
        xy = torch.cat([noisy.video, noisy.audio], dim=-1)
        tau = tau_G2[:, :1, None].expand(*xy.shape[:2], 1)
        waves = [wave(k * tau) for k in (2.0, 5.0, 10.0) for wave in (torch.sin, torch.cos)]
        return Latents(*self.net(torch.cat([xy, tau, tau.log1p(), *waves], dim=-1)).split(1, dim=-1))


def mixture(g: torch.Generator) -> Latents:
    which = torch.multinomial(SHARES, POINTS, replacement=True, generator=g)
    xy = CENTRES[which] + WIDTH * torch.randn(POINTS, 2, generator=g)
    return Latents(*xy[:, None].split(1, dim=-1))


def plane_noise(g: torch.Generator, groups: int = POINTS) -> Latents:
    return Latents(*torch.randn(groups, POINTS // groups, 2, generator=g).split(1, dim=-1))


@torch.no_grad()
def draws(net: Plane, flow: FlowConfig, seed: int = 1) -> Tensor:
    """[DRAWS, 2] from the live sampler."""
    like = Latents(torch.zeros(1, DRAWS, 1), torch.zeros(1, DRAWS, 1))
    g = torch.Generator().manual_seed(seed)
    return torch.cat(draw_unit(lambda z, tau: net(z, torch.full((1, 2), tau)), like, flow, g), dim=-1)[0]


def energy_distance(a: Tensor, b: Tensor) -> float:
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


def modes(xy: Tensor) -> Tensor:
    """Share of the points that lie next to each centre and are no further from it than 4 widths."""
    distance, which = torch.cdist(xy, CENTRES).min(1)
    return torch.bincount(which[distance < 4 * WIDTH], minlength=4) / len(xy)


def descend(optimiser: torch.optim.Optimizer, errors: Latents) -> None:
    optimiser.zero_grad()
    (errors.video.mean() + errors.audio.mean()).backward()
    optimiser.step()


@pytest.fixture(scope="module")
def plane_teacher() -> Plane:
    """Trained on the flow of the mixture, as duplex trains."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Plane()
    g, steps = torch.Generator().manual_seed(0), 1200
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        clean, eps = mixture(g), plane_noise(g)
        tau = torch.rand(POINTS, 1, generator=g).expand(-1, 2)
        descend(optimiser, unit_errors(net(mix(clean, eps, tau), tau), each(velocity_target, clean, eps)))
        schedule.step()
    return net.requires_grad_(False)


def plane_consistency(teacher: Plane, steps: int) -> Plane:
    student, target = copy.deepcopy(teacher).requires_grad_(True), copy.deepcopy(teacher)
    g, grid = torch.Generator().manual_seed(1), torch.tensor(time_grid(48, 3.0))
    optimiser = torch.optim.Adam(student.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        clean, eps = mixture(g), plane_noise(g)
        index = torch.randint(48, (POINTS, 1), generator=g)
        now, following = (grid[index + i].expand(-1, 2) for i in (0, 1))
        noisy = mix(clean, eps, now)
        goal = consistency_goal(teacher, target, noisy, now, following)
        descend(optimiser, unit_errors(denoise(noisy, student(noisy, now), now), goal))
        schedule.step()
        with torch.no_grad():
            for mine, theirs in zip(target.parameters(), student.parameters(), strict=True):
                mine.lerp_(theirs, 1 - min(0.95, (step + 1) / (step + 10)))
    return target


def plane_matching(teacher: Plane, start: Plane, steps: int, ratio: int, early: float) -> Plane:
    student, critic = (copy.deepcopy(net).requires_grad_(True) for net in (start, teacher))
    of_student = torch.optim.Adam(student.parameters(), 2e-4, betas=(0.0, 0.99))
    of_critic = torch.optim.Adam(critic.parameters(), 2e-3, betas=(0.5, 0.99))
    average, times, g = copy.deepcopy(start), torch.tensor(time_grid(2, 3.0)[:-1]), torch.Generator().manual_seed(2)
    for step in range(steps):
        asked: list[Latents] = []
        jumps: list[Latents] = []

        def velocity(noisy: Latents, tau: float) -> Latents:
            slope = student(noisy, torch.full((GROUPS, 2), tau))
            asked.append(noisy)  # noqa: B023
            jumps.append(each(lambda z, v: z - tau * v, noisy, slope))  # noqa: B023
            return slope

        with torch.no_grad():
            draw_unit(velocity, plane_noise(g, GROUPS), FEW, g)
        exit_G = (torch.rand(GROUPS, generator=g) >= early).long()
        inputs, cleans = (pick(each(lambda *z: torch.stack(z, 1), *z), exit_G) for z in (asked, jumps))
        tau = score_times((1, GROUPS, 1), 3.0, RowNoise(3, step, [0]))[0].expand(-1, 2)
        eps = plane_noise(g, GROUPS)
        if step % (ratio + 1) < ratio:
            descend(of_critic, unit_errors(critic(mix(cleans, eps, tau), tau), each(velocity_target, cleans, eps)))
            continue
        exit_tau = times[exit_G][:, None].expand(-1, 2)
        sample = denoise(inputs, student(inputs, exit_tau), exit_tau)
        mixed = mix(each(torch.detach, sample), eps, tau)
        with torch.no_grad():
            fake, real = (denoise(mixed, net(mixed, tau), tau) for net in (critic, teacher))
        descend(of_student, matching_errors(sample, matching_gradient(sample, fake, real)))
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), student.parameters(), strict=True):
                mine.lerp_(theirs, 0.02)
    return average


def test_two_consistent_steps_draw_what_the_teacher_draws_in_32(plane_teacher: Plane) -> None:
    """Nearly as close to the teacher's draws as the teacher's other draws are; all modes as often as there."""
    student, truth = plane_consistency(plane_teacher, 1200), draws(plane_teacher, MANY)
    baseline = energy_distance(draws(plane_teacher, MANY, 2), truth)
    untrained = energy_distance(draws(plane_teacher, FlowConfig(steps=2), 3), truth)
    two, one = (energy_distance(draws(student, flow, 3), truth) for flow in (FEW, ONE))
    print(f"energy: baseline {baseline:.5f}, teacher in 2 {untrained:.5f}, student in 2 {two:.5f}, in 1 {one:.5f}")
    assert untrained > 0.3
    assert two < 0.01
    assert one < 0.01
    assert (modes(draws(student, FEW, 3)) - modes(truth)).abs().max() < 0.05


def test_matching_mends_a_rough_student(plane_teacher: Plane) -> None:
    rough, truth = plane_consistency(plane_teacher, 60), draws(plane_teacher, MANY)
    student = plane_matching(plane_teacher, rough, steps=800, ratio=3, early=DistillConfig().early)
    before, after, baseline = (
        energy_distance(draws(*what, 3), truth) for what in ((rough, FEW), (student, FEW), (plane_teacher, MANY))
    )
    first = energy_distance(draws(student, ONE, 3), truth)
    print(f"energy: baseline {baseline:.5f}, rough {before:.5f}, matched {after:.5f}, its first jump {first:.5f}")
    assert after < 0.4 * before
    assert after < 0.02
    assert (modes(draws(student, FEW, 3)) - modes(truth)).abs().max() < 0.05


# ---- the stages, on the tiny agent

UNITS = 6
SETTINGS = DistillConfig(guidance=Guidance(1.5, 2.0), context=3, ratio=1, teacher_steps=4)
STAGES = {"consistency": ConsistencyStage, "matching": MatchingStage}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_latents(tmp_path_factory.mktemp("latents"), units=8, episodes=2)


@pytest.fixture(scope="module")
def teacher(data: Path) -> Weights:
    """Random weights with the codecs of the data."""
    weights = tiny_weights()
    weights.audio_vae, weights.video_vae = load_codecs(TALKER, data)
    return weights


def make_stage(method: str, data: Path, teacher: Weights, **options: object) -> StudentStage:
    config = TrainConfig(steps=6, lr=1e-3, batch=2, warmup=2, log_every=1, validate_every=3, save_every=3, diverged=0.0)
    config = dataclasses.replace(config, **{"precision": "fp32", **options})  # type: ignore[arg-type]
    student = copy.deepcopy(teacher.streamer).requires_grad_(True)
    stage = STAGES[method](student, tiny_text(), data, config, UNITS, copy.deepcopy(teacher), SETTINGS)
    stage.write_samples = lambda stem: None  # type: ignore[method-assign]  (its own test shows that they can be made)
    return stage


def test_rollout_equals_a_live_session(teacher: Weights) -> None:
    """Self-forcing draws bit for bit what a session with the same noise draws, whose text it is given."""
    flow = FlowConfig(steps=2, renoise=True)
    config = dataclasses.replace(TALKER, flow=flow)
    streamer = copy.deepcopy(teacher.streamer)
    streamer.config = config
    weights = dataclasses.replace(teacher, config=config, streamer=streamer)
    session = Session(weights, seed=5)
    g = torch.Generator().manual_seed(1)
    sound = torch.randn(UNITS, SAMPLES_PER_UNIT, generator=g) * 0.1
    frames = torch.randint(0, 256, (UNITS, 4, 48, 48, 3), generator=g, dtype=torch.uint8)
    drawn, chosen = [], []
    choose = session._choose
    session._choose = lambda logits: chosen.append(choose(logits)) or chosen[-1]  # type: ignore[method-assign,func-returns-value]
    off = 2  # the microphone in this unit
    for k in range(UNITS):
        session.step(UserUnit(None if k == off else sound[k].numpy(), frames[k].numpy()))
        drawn.append(session.last)
    zero = streamer.silence()
    sound[off] = 0
    clips = ClipBatch(
        video_BKNP=zero.video.expand(1, UNITS + 1, -1, -1),
        audio_BKTC=zero.audio.expand(1, UNITS + 1, -1, -1),
        user_audio_BT=sound.flatten()[None],
        microphone_BK=(torch.arange(UNITS) != off)[None],
        user_video=frames.flatten(0, 1)[None],
        camera_BK=torch.full((1, UNITS), True),
        user_text_BKS=torch.full((1, UNITS, 2), SILENCE),
        slot_BKSL=torch.stack(chosen).unflatten(0, (UNITS, 2))[None],
        written_BK=torch.full((1, UNITS), True),
    )
    rollout = continue_clips(streamer, clips, torch.zeros(1), [torch.Generator().manual_seed(5)])
    for k, last in enumerate(drawn):
        assert torch.equal(rollout.emitted.video[0, k], last.video)
        assert torch.equal(rollout.emitted.audio[0, k], last.audio)


def test_one_pass_repeats_the_rollout(data: Path, teacher: Weights) -> None:
    """The pass with gradients gives the jumps of the cached rollout, whatever is hidden or switched off."""
    stage = make_stage("matching", data, teacher)
    clips = stage.batch(3, range(2)).clips
    clips = dataclasses.replace(clips, written_BK=torch.tensor([[True] * UNITS, [False] * UNITS]))
    noise = RowNoise(0, 0, range(2))
    real_B = torch.tensor([0, 3])
    rollout = continue_clips(stage.streamer, clips, real_B, noise.generators)
    assert rollout.rolled_BK.tolist() == [[1.0] * 6, [0.0] * 3 + [1.0] * 3]
    torch.testing.assert_close(rollout.history.video[1, :4], clips.video_BKNP[1, :4])
    for number, time in enumerate(stage.times):
        steps_B = torch.tensor([number, number])
        noisy, zero = pick(rollout.inputs, steps_B), torch.zeros(2, UNITS, 2)
        with torch.no_grad():
            velocity, _ = stage.streamer(clips, rollout.history, zero, noisy, zero + time)
        jumps, cached = denoise(noisy, velocity, zero + time), pick(rollout.cleans, steps_B)
        for row, real in enumerate(real_B.tolist()):
            assert_close(each(lambda z: z[row, real:], jumps), each(lambda z: z[row, real:], cached), 1e-5)  # noqa: B023
    again = continue_clips(stage.streamer, clips, real_B, RowNoise(0, 0, range(2)).generators)
    assert_close(again.emitted, rollout.emitted, 0)


def test_teacher_is_guided_by_its_text(data: Path, teacher: Weights) -> None:
    stage = make_stage("consistency", data, teacher)
    example = stage.batch(0, range(2))
    history, zero = real_history(example.clips)
    noisy = each(lambda z: torch.randn(z.shape, generator=torch.Generator().manual_seed(0)), history)
    plain, _ = stage.streamer(example.clips, history, zero, noisy, zero + 0.5)
    as_is, guided = (
        Teacher(teacher.streamer, Guidance(w, w)).velocity(example, history, zero, noisy, zero + 0.5)[0] for w in (1, 3)
    )
    assert_close(as_is, plain, 1e-6)
    assert (guided.audio - plain.audio).abs().max() > 1e-3


def test_jump_below_the_floor_of_times(teacher: Weights, data: Path) -> None:
    """At tau = 0 the jump stays where it is; above the floor it is what the network puts out."""
    stage = make_stage("consistency", data, teacher)
    clips = stage.batch(0, range(1)).clips
    history, zero = real_history(clips)
    noisy = Latents(clips.video_BKNP[:, 1:], clips.audio_BKTC[:, 1:])
    for time, share in ((0.0, 0.0), (TAU_FLOOR / 2, 0.5), (TAU_FLOOR, 1.0), (0.7, 1.0)):
        with torch.no_grad():
            velocity, _ = stage.streamer(clips, history, zero, noisy, zero + time)
        output = each(lambda z, v: z - max(time, TAU_FLOOR) * v, noisy, velocity)  # noqa: B023
        expected = each(lambda z, x: z + share * (x - z), noisy, output)  # noqa: B023
        assert_close(denoise(noisy, velocity, zero + time), expected, 1e-5)


@pytest.mark.parametrize("method", STAGES)
def test_resumed_equals_uninterrupted(method: str, data: Path, teacher: Weights, tmp_path: Path) -> None:
    """Bit for bit: student, its moving average or critic, EMA, optimiser."""
    options = {"muon_lr": 1e-3} if method == "consistency" else {}
    Trainer(make_stage(method, data, teacher, **options), tmp_path / "whole").run()
    first = Trainer(make_stage(method, data, teacher, **options), tmp_path / "parts")
    loss = first.stage.loss

    def killed(batch: Example, step: int, noise: RowNoise) -> tuple[Tensor, dict[str, Tensor]]:
        if step == 5:
            raise KeyboardInterrupt
        return loss(batch, step, noise)

    first.stage.loss = killed  # type: ignore[method-assign]
    regular = first.save
    first.save = lambda: regular() if first.step == 3 else None  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = Trainer(make_stage(method, data, teacher, **options), tmp_path / "parts")
    second.resume()
    assert second.step == 3
    scores = second.run()
    for name in ("trainer.safetensors", "model.safetensors"):
        left, right = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name
    other = {"consistency": "buffer.target.", "matching": "ema.critic."}[method]
    state = load_file(tmp_path / "whole" / "trainer.safetensors")
    kept, began = state[other + "video_out.weight"], teacher.streamer.video_out.weight
    assert not torch.equal(kept, began)
    assert all(math.isfinite(value) for value in scores.values()), scores
    assert {"video_jump", "audio_jump", "text", "teacher_text", "response_right", "video_motion"} <= set(scores)


@pytest.mark.parametrize("method", STAGES)
def test_parts_of_a_batch_add_up(method: str, data: Path, teacher: Weights, tmp_path: Path) -> None:
    whole, parts = (Trainer(make_stage(method, data, teacher, accumulate=n), tmp_path / str(n)) for n in (1, 2))
    for _ in range(2):  # of matching, one of the critic and one of the student
        left, right = (trainer._train_step(False)[0] for trainer in (whole, parts))
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)


def test_critic_and_student_take_turns(data: Path, teacher: Weights) -> None:
    """Each step changes one of them, in bfloat16 as well; the teacher stays as it is."""
    stage = make_stage("matching", data, teacher, precision="bf16")
    teacher_before = copy.deepcopy(stage.teacher.streamer.state_dict())
    for step, (learner, other) in enumerate((("critic", "streamer"), ("streamer", "critic"))):
        stage.models["critic"].zero_grad()
        stage.models["streamer"].zero_grad()
        loss, numbers = stage.loss(stage.batch(step, range(2)), step, RowNoise(0, step, range(2)))
        loss.backward()
        assert all(p.grad is None or not p.grad.any() for p in stage.models[other].parameters())
        assert stage.models[learner].video_out.weight.grad.any()  # type: ignore[union-attr]
        assert ("text" in numbers) == (learner == "streamer")
    assert stage.streamer.text_in.weight.grad.any()  # type: ignore[union-attr]
    assert all(torch.equal(value, teacher_before[name]) for name, value in stage.teacher.streamer.state_dict().items())


def test_student_without_a_difference_is_not_moved(data: Path, teacher: Weights) -> None:
    """Critic = teacher without guidance: nothing but the text has a gradient."""
    stage = make_stage("matching", data, teacher)
    stage._teacher = Teacher(stage._teacher.streamer, Guidance(1, 1))
    _, numbers = stage.loss(stage.batch(0, range(2)), 1, RowNoise(0, 0, range(2)))
    assert numbers["video"] == numbers["audio"] == 0
    assert numbers["text"] > 0


def test_distilled_checkpoints_talk(
    data: Path, teacher: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher folder -> consistency -> resumed -> matching -> an agent of one step that talks."""
    monkeypatch.setattr(distill, "CLIP_UNITS", UNITS)
    weights = dataclasses.replace(teacher, config=dataclasses.replace(TALKER, flow=FlowConfig(steps=16)))
    save_weights(weights, tmp_path / "teacher")
    folder = str(tmp_path / "teacher")
    settings = dataclasses.replace(SETTINGS, solver_steps=1)
    options = RunOptions(tmp_path / "student", steps=1, batch=2)
    train_distill(data, folder, options, "consistency", settings, "cpu")
    again = dataclasses.replace(options, resume=True, steps=2)
    with pytest.raises(TrainingError, match=r"student: this run has solver_steps 1, expected 2; resume"):
        train_distill(data, folder, again, "consistency", SETTINGS, "cpu")
    assert train_distill(data, folder, again, "consistency", settings, "cpu")["video_jump"] > 0
    options = RunOptions(tmp_path / "matched", start=str(tmp_path / "student"), steps=2, batch=2)
    train_distill(data, folder, options, "matching", settings, "cpu")
    for name in ("student", "matched"):
        agent = WanStreamer.from_pretrained(tmp_path / name)
        assert agent.config.flow == FlowConfig(steps=1, renoise=True)
        session = agent.session(seed=0)
        for _ in range(3):
            unit = session.step(UserUnit(text="hello"))
        assert unit.video.shape == (4, 96, 96, 3)
        assert session.step(UserUnit(), steps=2).audio.shape == (SAMPLES_PER_UNIT,)
    assert load_config(tmp_path / "teacher" / "config.json").flow == FlowConfig(steps=16)


def test_what_does_not_fit_is_refused(data: Path, teacher: Weights, tmp_path: Path) -> None:
    save_weights(teacher, tmp_path / "teacher")
    out = RunOptions(tmp_path / "out", steps=1)
    with pytest.raises(ConfigError, match="unknown method 'magic'"):
        train_distill(data, str(tmp_path / "teacher"), out, "magic")
    with pytest.raises(ConfigError, match="as --from"):
        train_distill(data, str(tmp_path / "teacher"), out, "matching")
    with pytest.raises(ConfigError, match="expected 1 to 4"):
        DistillConfig(solver_steps=5)
    with pytest.raises(CheckpointError, match="nothing there"):
        train_distill(data, str(tmp_path / "nobody"), out, "consistency")
    save_weights(tiny_weights(seed=1), tmp_path / "others")
    with pytest.raises(CheckpointError, match="expected a model of the codecs"):
        train_distill(data, str(tmp_path / "others"), out, "consistency")
    start = dataclasses.replace(out, start=str(tmp_path / "others"))
    with pytest.raises(CheckpointError, match="expected a model of the codecs"):
        train_distill(data, str(tmp_path / "teacher"), start, "matching")
    config = dataclasses.replace(TALKER, backbone=dataclasses.replace(TALKER.backbone, mlp_dim=64))
    save_weights(tiny_weights(config=config), tmp_path / "wider")
    start = dataclasses.replace(out, start=str(tmp_path / "wider"))
    with pytest.raises(CheckpointError, match="expected backbone"):
        train_distill(data, str(tmp_path / "teacher"), start, "matching")
    assert not (tmp_path / "out").exists()
