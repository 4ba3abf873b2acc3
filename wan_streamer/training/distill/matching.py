"""Stage `matching`: the student goes on alone, and what it draws is moved towards what its teacher would draw.

Self-forcing with distribution matching (arXiv 2506.08009, 2311.18828). The student rolls clips out with the live
sampler. Its units are noised, and two models guess what they were: the teacher, who knows what they should be, and the
critic, who is trained on the student's units and so knows what they are. The difference of their guesses, relative to
how far the unit is from the teacher's guess, moves the student.

`score_times`         times at which units are noised
`matching_gradient`   how each unit should change
`matching_errors`     a loss with that gradient;   `student_errors`  the same, from velocities of teacher and critic
`MatchingStage`       student and critic
"""

import copy

import torch
from torch import Tensor

from wan_streamer.flow.joint import denoise, each, mix, velocity_goal
from wan_streamer.flow.noise import RowNoise
from wan_streamer.flow.path import shift_tau
from wan_streamer.model.layout import Latents
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.distill.consistency import Velocity
from wan_streamer.training.distill.self_forcing import Rollout, continue_clips
from wan_streamer.training.distill.student import StudentStage, unit_errors
from wan_streamer.training.examples.clips import Example
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.stages.objective import TEXT_WEIGHT, text_errors

EARLIEST, LATEST = 0.02, 0.98  # of the times at which units are noised: the ends tell nothing apart
# 11 steps between lines of the log have no factor in common with any usual cycle, so it shows student and critic.
CONFIG = TrainConfig(
    steps=1200, lr=2e-5, batch=4, warmup=30, ema=0.99, betas=(0.0, 0.99), weight_decay=0.01, diverged=0.0,
    log_every=11, validate_every=120, save_every=120,
)  # fmt: skip


def score_times(shape: tuple[int, ...], shift: float, noise: RowNoise) -> Tensor:
    """Even times, shifted towards noise, without the ends."""
    return shift_tau(noise.uniform(shape), shift).clamp(EARLIEST, LATEST)


def matching_gradient(sample: Latents, fake: Latents, real: Latents) -> Latents:
    """(z0_fake - z0_real) / mean |z - z0_real|, the mean over one unit of one modality: [..., tokens, numbers].

    fake, real  what critic and teacher guess that the noised `sample` was
    """

    def gradient(z: Tensor, guess_fake: Tensor, guess_real: Tensor) -> Tensor:
        distance = (z - guess_real).abs().mean((-2, -1), keepdim=True)
        return torch.nan_to_num((guess_fake - guess_real) / distance)

    return each(gradient, each(torch.detach, sample), fake, real)


def matching_errors(sample: Latents, gradient: Latents) -> Latents:
    """Half the mean squared difference of z and the constant z - gradient, per unit: [...]."""
    goal = each(lambda z, g: (z - g).detach(), sample, gradient)
    return each(lambda error: error / 2, unit_errors(sample, goal))


def student_errors(sample: Latents, eps: Latents, tau: Tensor, teacher: Velocity, critic: Velocity) -> Latents:
    """`matching_errors` of what the student drew, noised to times `tau` and guessed by teacher and critic."""
    with torch.no_grad():
        mixed = mix(sample, eps, tau)
        real, fake = (denoise(mixed, velocity(mixed, tau), tau) for velocity in (teacher, critic))
    return matching_errors(sample, matching_gradient(sample, fake, real))


class MatchingStage(StudentStage):
    """In every `ratio` + 1 steps the critic learns `ratio` times and the student once."""

    name = "matching"
    steady = {"critic": 1.0}  # noqa: RUF012  (a Mapping in the base class)

    def second_model(self) -> tuple[str, Streamer]:
        self.critic = copy.deepcopy(self._teacher.streamer).requires_grad_(True)
        if self.critic.voice is not None:
            self.critic.voice.requires_grad_(False)
        return "critic", self.critic

    def loss(self, batch: Example, step: int, noise: RowNoise) -> tuple[Tensor, dict[str, Tensor]]:
        example, steps = batch.map(self.move), self.settings.solver_steps
        B = len(batch.video_BK)
        real_B = (noise.uniform((B,)) * min(self.settings.context + 1, self.units)).long()
        with self.autocast():
            rollout = continue_clips(self.actor(), self.served.flow, example.clips, real_B, noise.generators)
        early = noise.uniform((B,)) < self.settings.early
        exit_B = torch.where(early, (noise.uniform((B,)) * (steps - 1)).long(), steps - 1)  # the jump that counts
        of_student = step % (self.settings.ratio + 1) == self.settings.ratio
        return (self._student_loss if of_student else self._critic_loss)(example, rollout, exit_B, noise)

    def _critic_loss(
        self, example: Example, rollout: Rollout, exit_B: Tensor, noise: RowNoise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow matching of the student's jumps; every unit at a time of its own."""
        clean = pick(rollout.cleans, exit_B)
        B, K = rollout.rolled_BK.shape
        tau = self.move(score_times((B, K, 1), self.streamer.config.flow.shift, noise).expand(B, K, 2).contiguous())
        eps = self._noise(clean, noise)
        with self.autocast():
            noisy = mix(clean, eps, tau)
            velocity, _ = self.critic(example.clips, rollout.history, torch.zeros_like(tau), noisy, tau)
        errors_BK = unit_errors(velocity, velocity_goal(clean, eps, tau))
        video, audio = self.stream_losses(errors_BK, example, rollout.rolled_BK)
        return video + audio, {"critic_video": video.detach(), "critic_audio": audio.detach()}

    def _student_loss(
        self, example: Example, rollout: Rollout, exit_B: Tensor, noise: RowNoise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """loss = video + audio + 0.25 text. One pass repeats the rollout's jumps; the history has no gradients."""
        B, K = rollout.rolled_BK.shape
        noisy, zero = pick(rollout.inputs, exit_B), torch.zeros(B, K, 2, device=self.device)
        exit_tau = self.move(torch.tensor(self.times)[exit_B])[:, None, None].expand(B, K, 2)
        with self.autocast():
            velocity, logits = self.streamer(example.clips, rollout.history, zero, noisy, exit_tau)
        sample = denoise(noisy, velocity, exit_tau)
        tau = self.move(score_times((B, 1, 1), self.streamer.config.flow.shift, noise)).expand(B, K, 2)
        past = (rollout.history, zero)
        with self.autocast():
            errors_BK = student_errors(
                sample, self._noise(sample, noise), tau,
                teacher=lambda z, tau: self.teacher.velocity(example, *past, z, tau)[0],
                critic=lambda z, tau: self.critic(example.clips, *past, z, tau)[0],
            )  # fmt: skip
        video, audio = self.stream_losses(errors_BK, example, rollout.rolled_BK)
        text_B, numbers = text_errors(logits, example)
        numbers |= {"video": video, "audio": audio, "text": text_B.mean()}
        loss = video + audio + TEXT_WEIGHT * text_B.mean()
        return loss, {name: value.detach() for name, value in numbers.items()}

    def _noise(self, like: Latents, noise: RowNoise) -> Latents:
        return each(noise.like, like)


def pick(latents: Latents, step_B: Tensor) -> Latents:
    """[B, steps, K, ...] -> [B, K, ...]: one solver step of each row."""
    return each(lambda z: z[torch.arange(len(z)), step_B.to(z.device)], latents)
