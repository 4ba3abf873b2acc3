"""Stage 3: every loss against a closed form, and a toy problem whose answer is known."""

import copy
from functools import partial

import pytest
import torch
from tiny import assert_close
from torch import Tensor, nn

from wan_streamer.config import FlowConfig
from wan_streamer.flow.joint import Guidance, advance, denoise, each, guide, mix
from wan_streamer.flow.noise import RowNoise
from wan_streamer.flow.path import shift_tau, velocity_target
from wan_streamer.flow.sampler import draw_unit
from wan_streamer.flow.solver import solve, time_grid
from wan_streamer.model.layout import Latents
from wan_streamer.training.distill.consistency import consistency_goal
from wan_streamer.training.distill.matching import (
    EARLIEST,
    LATEST,
    matching_errors,
    matching_gradient,
    pick,
    score_times,
    student_errors,
)
from wan_streamer.training.distill.self_forcing import recorded
from wan_streamer.training.distill.student import DistillConfig, unit_errors

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
    assert_close(advance(mix(clean, eps, now), slope, now - following), mix(clean, eps, following))
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
        critic = partial(gaussian_velocity, mean=shift.item())
        errors = student_errors(sample, more, tau, gaussian_velocity, critic)
        loss = sum(e.mean() for e in errors)
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
        velocity = recorded(lambda z, tau: student(z, torch.full((GROUPS, 2), tau)), asked, jumps)
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
        descend(of_student, student_errors(sample, eps, tau, teacher, critic))
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), student.parameters(), strict=True):
                mine.lerp_(theirs, 0.02)
    return average


@pytest.mark.slow
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
