"""Stage `consistency`: the student learns to jump from any point of its teacher's path to where the path ends.

Causal consistency distillation (arXiv 2605.15141): one guided Euler step of the teacher from tau to tau', and the
student's jump from tau has to end where the jump of its own moving average from tau' ends. At tau' = 0 that is the
teacher's step itself, and from there the right ends spread to all times.

`Velocity`           of noisy latents at times [..., 2]
`consistency_goal`   where the student's jump should end
`ConsistencyStage`   the student and its moving average
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from wan_streamer.flow.joint import advance, denoise, mix
from wan_streamer.flow.noise import RowNoise
from wan_streamer.flow.solver import time_grid
from wan_streamer.model.layout import Latents
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.distill.student import StudentStage, unit_errors
from wan_streamer.training.examples.clips import Example
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.stages.objective import TEXT_WEIGHT, draw_flow, text_errors

Velocity = Callable[[Latents, Tensor], Latents]

# The loss starts near zero and grows while the right ends spread, so it tells nothing about divergence.
CONFIG = TrainConfig(steps=3000, lr=2e-4, muon_lr=5e-4, batch=4, warmup=100, ema=0.995, weight_decay=0.01, diverged=0.0)


@torch.no_grad()
def consistency_goal(
    teacher: Velocity, target: Velocity, noisy: Latents, now_2: Tensor, following_2: Tensor
) -> Latents:
    """One step of the teacher, then a jump of the target."""
    moved = advance(noisy, teacher(noisy, now_2), now_2 - following_2)
    return denoise(moved, target(moved, following_2), following_2)


class ConsistencyStage(StudentStage):
    name = "consistency"

    def second_model(self) -> tuple[str, Streamer]:
        self.target = copy.deepcopy(self.streamer).eval().requires_grad_(False)
        return "target", self.target

    def loss(self, batch: Example, step: int, noise: RowNoise) -> tuple[Tensor, dict[str, Tensor]]:
        """loss = video + audio + 0.25 text: errors of the jump's end, and cross-entropy of the same pass."""
        example, flow = batch.map(self.move), self.streamer.config.flow
        sample = draw_flow(example.clips, flow, noise, self.move, example.recalled_BK)
        grid = torch.tensor(time_grid(self.settings.grid, flow.shift))
        index_BK1 = (noise.uniform((*example.video_BK.shape, 1)) * self.settings.grid).long()
        now, following = (self.move(grid[index_BK1 + i].expand(-1, -1, 2).contiguous()) for i in (0, 1))
        noisy = mix(sample.clean, sample.noise, now)
        past = (sample.history, sample.history_tau_BK2)
        with self.autocast():
            goal = consistency_goal(
                lambda z, tau: self.teacher.velocity(example, *past, z, tau)[0],
                lambda z, tau: self.target(example.clips, *past, z, tau)[0],
                noisy, now, following,
            )  # fmt: skip
        with self.autocast():
            velocity, logits = self.streamer(example.clips, *past, noisy, now)
        errors_BK = unit_errors(denoise(noisy, velocity, now), goal)
        video, audio = self.stream_losses(errors_BK, example, torch.ones_like(example.video_BK))
        text_B, numbers = text_errors(logits, example)
        numbers |= {"video": video, "audio": audio, "text": text_B.mean()}
        loss = video + audio + TEXT_WEIGHT * text_B.mean()
        return loss, {name: value.detach() for name, value in numbers.items()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """The target follows the student, faster in the first steps."""
        decay = min(self.settings.target_decay, (step + 1) / (step + 10))
        theirs = self.streamer.state_dict()  # its values are parts where the models are split, those of a module not
        for name, mine in self.target.state_dict().items():
            if mine.is_floating_point():
                mine.lerp_(theirs[name], 1 - decay)
