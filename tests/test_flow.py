"""The flow against closed forms: where the exact velocity is known, the solver arrives at the data."""

import math
from itertools import pairwise

import pytest
import torch

from wan_streamer.config import FlowConfig
from wan_streamer.errors import ConfigError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.flow.path import interpolate, sample_tau, shift_tau, velocity_target
from wan_streamer.flow.sampler import unit_noise
from wan_streamer.flow.solver import solve, time_grid
from wan_streamer.model.layout import Latents


def noise(seed: int = 0) -> Latents:
    g = torch.Generator().manual_seed(seed)
    return Latents(
        torch.randn(5, 7, generator=g, dtype=torch.float64), torch.randn(4, 3, generator=g, dtype=torch.float64)
    )


def gaussian_velocity(z: torch.Tensor, tau: float, mean: float, deviation: float) -> torch.Tensor:
    """E[eps - z0 | z_tau] for z0 ~ N(mean, deviation^2): the marginal velocity of eq. 1-3."""
    variance = (1 - tau) ** 2 * deviation**2 + tau**2
    return -mean + (tau - (1 - tau) * deviation**2) / variance * (z - (1 - tau) * mean)


def solved(mean: float, deviation: float, steps: int, shift: float) -> tuple[Latents, Latents]:
    start = noise()
    grid = time_grid(steps, shift)
    return start, solve(lambda z, tau: Latents(*(gaussian_velocity(x, tau, mean, deviation) for x in z)), start, grid)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_point_mass_is_reached_in_any_number_of_steps(steps: int, shift: float) -> None:
    """All data in one point: paths are straight lines, so even one Euler step is exact."""
    _, end = solved(0.7, 0.0, steps, shift)
    for z in end:
        torch.testing.assert_close(z, torch.full_like(z, 0.7))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_gaussian_is_reached_and_the_error_halves_with_the_step(shift: float) -> None:
    """The flow carries eps to mean + deviation eps."""
    errors = []
    for steps in (50, 100, 200):
        start, end = solved(-0.4, 0.5, steps, shift)
        errors.append(max((z - (-0.4 + 0.5 * eps)).abs().max().item() for z, eps in zip(end, start, strict=True)))
    assert errors[-1] < 0.02
    assert 1.8 < errors[0] / errors[1] < 2.2
    assert 1.8 < errors[1] / errors[2] < 2.2


def test_sound_jumps_to_its_mean_while_the_picture_goes_on() -> None:
    """Of all data the first jump gives the mean, whatever the noise; later ones are nearer to what is drawn."""

    def ends(audio_steps: int, steps: int = 4) -> Latents:
        def velocity(z: Latents, tau: float) -> Latents:
            return Latents(*(gaussian_velocity(x, tau, 0.3, 0.5) for x in z))

        return solve(velocity, noise(), time_grid(steps, 3.0), audio_steps)

    whole, spread = ends(0), [ends(n).audio.std().item() for n in (1, 2, 3)]
    torch.testing.assert_close(ends(1).audio, torch.full_like(whole.audio, 0.3))
    assert 0.001 > spread[0] < spread[1] < spread[2] < whole.audio.std()
    assert all(torch.equal(ends(n).video, whole.video) for n in (1, 2, 3))
    for same in (ends(4), ends(7)):  # the last step is the jump, and there are no more than four
        torch.testing.assert_close(same, whole)
    with pytest.raises(ConfigError, match="audio_steps 0 with renoise"):
        FlowConfig(renoise=True, audio_steps=1)


def test_path_ends_and_slope() -> None:
    clean, eps = noise(1).video, noise(2).video
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert torch.equal(interpolate(clean, eps, zero), clean)
    assert torch.equal(interpolate(clean, eps, one), eps)
    slope = (interpolate(clean, eps, 0.75 * one) - interpolate(clean, eps, 0.25 * one)) / 0.5
    torch.testing.assert_close(slope, velocity_target(clean, eps))


def test_time_grid() -> None:
    assert time_grid(4, 1.0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert time_grid(4, 3.0) == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    for steps, shift in ((1, 1.0), (2, 3.0), (32, 5.0)):
        grid = time_grid(steps, shift)
        assert (len(grid), grid[0], grid[-1]) == (steps + 1, 1.0, 0.0)
        assert all(now > following for now, following in pairwise(grid))


def test_shift() -> None:
    tau = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shift_tau(tau, 1.0), tau)
    torch.testing.assert_close(shift_tau(shift_tau(tau, 4.0), 0.25), tau)  # the inverse of a shift
    assert shift_tau(torch.tensor(0.5, dtype=torch.float64), 3.0).item() == 0.75


def test_training_times() -> None:
    def draw(uniform: float, seed: int = 0) -> torch.Tensor:
        return sample_tau((1, 20_000), 3.0, RowNoise(seed, 0, [0]), uniform)

    assert torch.equal(draw(0.1), draw(0.1))
    assert not torch.equal(draw(0.1), draw(0.1, seed=1))
    assert ((draw(0.1) > 0) & (draw(0.1) < 1)).all()
    assert draw(0.0).median().item() == pytest.approx(0.75, abs=0.01)  # the median of the logit-normal, shifted
    assert draw(1.0).mean().item() == pytest.approx(0.5, abs=0.01)
    assert draw(1.0).std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.01)


def test_solver_asks_once_per_step_and_leaves_the_noise() -> None:
    start, asked = noise(), []
    kept = Latents(*(z.clone() for z in start))

    def velocity(z: Latents, tau: float) -> Latents:
        asked.append(tau)
        return Latents(*(torch.ones_like(x) for x in z))

    end = solve(velocity, start, time_grid(5, 3.0))
    assert asked == time_grid(5, 3.0)[:-1]
    for before, after, left in zip(kept, end, start, strict=True):
        torch.testing.assert_close(after, before - 1)
        assert torch.equal(before, left)


@pytest.mark.parametrize("renoise", [False, True])
def test_pictures_may_begin_with_more_noise(renoise: bool) -> None:
    """The same noise as before, that of pictures larger."""

    def drawn(**options: float) -> list[Latents]:
        return unit_noise(noise(), FlowConfig(steps=3, renoise=renoise, **options), torch.Generator().manual_seed(4))

    plain, scaled = drawn(), drawn(temperature=0.5, picture_temperature=3.0)
    assert len(plain) == len(scaled) == (3 if renoise else 1)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other.video, 1.5 * one.video)
        torch.testing.assert_close(other.audio, 0.5 * one.audio)
