"""What both methods of stage 3 have in common: a student that draws a unit in few steps, its teacher, its scores.

`DistillConfig`  numbers of both methods
`StudentStage`   the base of their stages
"""

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from wan_streamer.codecs.folder import codec_hash
from wan_streamer.codecs.text import TextCodec
from wan_streamer.config import StreamerConfig
from wan_streamer.errors import ConfigError
from wan_streamer.flow.joint import Guidance, advance, denoise, each
from wan_streamer.flow.noise import RowNoise
from wan_streamer.flow.solver import time_grid
from wan_streamer.model.layout import ClipBatch, Latents
from wan_streamer.model.pretrained import Weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.tensors import whole
from wan_streamer.training.distill.self_forcing import continue_clips
from wan_streamer.training.distill.teacher import Teacher, check_same_kind
from wan_streamer.training.examples.clips import Example
from wan_streamer.training.examples.conversations import ConversationClips
from wan_streamer.training.loop.means import means
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.stages.objective import mean_of_targets, text_errors
from wan_streamer.training.stages.streamer import StreamerStage

VALIDATION = (2, 4)  # batches and rows of each


@dataclass(frozen=True)
class DistillConfig:
    """Numbers of stage 3.

    solver_steps   of the student
    guidance       of the teacher
    grid           consistency: times of the teacher's path
    target_decay   consistency: of the moving average of the student that is its target
    context        matching: the most real units in front of the student's own
    ratio          matching: updates of the critic for one of the student
    early          matching: share of clips in which an earlier jump of the solver counts instead of the last. One
                   critic judges all jumps, so it sees their mixture, and what is emitted is blurred by what is not;
                   without any, the first jump forgets how to end, which a late unit needs
    teacher_steps  validation: solver steps of the teacher
    """

    solver_steps: int = 2
    guidance: Guidance = field(default_factory=Guidance)
    grid: int = 48
    target_decay: float = 0.99
    context: int = 8
    ratio: int = 5
    early: float = 0.1
    teacher_steps: int = 24

    def __post_init__(self) -> None:
        if not 1 <= self.solver_steps <= 4 or self.teacher_steps % self.solver_steps:
            raise ConfigError(
                f"solver steps: expected 1 to 4 that divide the teacher's {self.teacher_steps}, got {self.solver_steps}"
            )


class StudentStage(StreamerStage):
    """Trains `streamer` to draw what `teacher` would draw. The agent's text is always shown.

    Raises `CheckpointError` if student, teacher and data do not have the same shape and codecs.
    """

    def __init__(
        self,
        streamer: Streamer,
        text: TextCodec,
        data: Path,
        config: TrainConfig,
        teacher: Weights,
        settings: DistillConfig,
    ) -> None:
        super().__init__(streamer, text, data, config, config.clip_units)
        self.settings = settings
        self.train_talks, self.valid_talks = (
            ConversationClips(clips, data) for clips in (self.train_clips, self.valid_clips)
        )
        check_same_kind(streamer.config, teacher.config, codec_hash(self.audio_vae, self.video_vae), teacher.codec_hash)
        self._teacher = Teacher(teacher.streamer.eval().requires_grad_(False), settings.guidance)
        self._paths: dict[int, tuple[list[Latents], Tensor]] = {}
        self._whole: Streamer | None = None
        name, self._second = self.second_model()
        self.models[name] = self._second

    @abstractmethod
    def second_model(self) -> tuple[str, Streamer]:
        """The model that learns beside the student, and its name. Called once, when student and teacher are there."""

    @property
    def teacher(self) -> Teacher:
        """On the stage's device. It is no model of the trainer: not saved, not split over processes."""
        self._teacher.streamer.to(self.device)
        return self._teacher

    @property
    def served(self) -> StreamerConfig:
        """The student's few steps, each of which jumps to data."""
        config = self.streamer.config
        few = dataclasses.replace(config.flow, steps=self.settings.solver_steps, renoise=True, audio_steps=0)
        return dataclasses.replace(config, flow=few)

    def streamers(self) -> list[Streamer]:
        return [self.streamer, self._teacher.streamer, self._second]

    @property
    def times(self) -> list[float]:
        """When the student's solver asks the model."""
        return time_grid(self.settings.solver_steps, self.streamer.config.flow.shift)[:-1]

    def actor(self) -> Streamer:
        """The student for live calls. A model that is split over processes answers `forward` only, so it is copied."""
        if not any(hasattr(p, "full_tensor") for p in self.streamer.parameters()):
            return self.streamer
        if self._whole is None:
            self._whole = Streamer(self.streamer.config).to(self.device).eval().requires_grad_(False)
        self._whole.load_state_dict({name: whole(value) for name, value in self.streamer.state_dict().items()})
        return self._whole

    def batch(self, step: int, rows: range) -> Example:
        return self.train_talks.batch(self.config.seed, step, rows)

    def stream_losses(self, errors_BK: Latents, example: Example, counts_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Errors of video and audio, each [B, K], as means over rows; of the units that are targets and count."""
        video = mean_of_targets(errors_BK.video, example.video_BK * counts_BK)
        audio = mean_of_targets(errors_BK.audio, example.audio_BK * counts_BK)
        return video.mean(), audio.mean()

    def validate(self) -> dict[str, float]:
        """How far the student's jumps end from where its teacher ends, what it says, how lively it is alone."""
        batches, rows = VALIDATION
        scores = [self._score(number, self.valid_talks.valid(number, range(rows))) for number in range(batches)]
        return means(scores)

    @torch.no_grad()
    def _score(self, number: int, batch: Example) -> dict[str, float]:
        example, rows = batch.map(self.move), range(len(batch.video_BK))
        if number not in self._paths:  # the same at every validation
            self._paths[number] = self._teacher_path(example, RowNoise(1, number, rows))
        path, teacher_text = self._paths[number]
        history, zero = real_history(example.clips)
        errors = []
        for time, noisy in zip(self.times, path, strict=False):  # the path has one more: where it ends
            with self.autocast():
                velocity, logits = self.streamer(example.clips, history, zero, noisy, zero + time)
            errors.append(unit_errors(denoise(noisy, velocity, zero + time), path[-1]))
        jump = each(lambda *parts: torch.stack(parts).mean(0), *errors)
        video, audio = self.stream_losses(jump, example, torch.ones_like(example.video_BK))
        text_B, scores = text_errors(logits, example)
        scores |= {"video_jump": video, "audio_jump": audio, "text": text_B.mean(), "teacher_text": teacher_text}
        scores |= self._alone(example, RowNoise(2, number, rows))
        return {name: value.item() for name, value in scores.items()}

    def _teacher_path(self, example: Example, noise: RowNoise) -> tuple[list[Latents], Tensor]:
        """The teacher's guided path from noise, at the student's times and at its end; the teacher's error in text."""
        history, zero = real_history(example.clips)
        steps, shift = self.settings.teacher_steps, self.streamer.config.flow.shift
        noisy = each(noise.like, history)
        path = []
        for i, (now, following) in enumerate(pairwise(time_grid(steps, shift))):
            if i % (steps // self.settings.solver_steps) == 0:
                path.append(noisy)
            with self.autocast():
                velocity, logits = self.teacher.velocity(example, history, zero, noisy, zero + now)
            noisy = advance(noisy, velocity, now - following)
        return [*path, noisy], text_errors(logits, example)[0].mean()

    def _alone(self, example: Example, noise: RowNoise) -> dict[str, Tensor]:
        """How much the picture moves and how loud the sound is when the student goes on alone; 1 is like the data."""
        real_B = torch.full((len(noise.generators),), min(self.settings.context, self.units - 1))
        with self.autocast():
            rollout = continue_clips(self.actor(), self.served.flow, example.clips, real_B, noise.generators)
        data, history = real_latents(example.clips), real_history(example.clips)[0]
        counts = Latents(example.video_BK * rollout.rolled_BK, example.audio_BK * rollout.rolled_BK)

        def amount(latents: Latents, before: Latents) -> Latents:
            moved_BK, loud_BK = (z.square().mean((-2, -1)) for z in (latents.video - before.video, latents.audio))
            return Latents((moved_BK * counts.video).sum(), (loud_BK * counts.audio).sum())

        ratio = each(torch.div, amount(rollout.emitted, rollout.history), amount(data, history))
        return {"video_motion": ratio.video, "audio_energy": ratio.audio}


def real_latents(clips: ClipBatch) -> Latents:
    """Latents of units 0 ... K-1."""
    return Latents(clips.video_BKNP[:, 1:], clips.audio_BKTC[:, 1:])


def real_history(clips: ClipBatch) -> tuple[Latents, Tensor]:
    """Clean latents of units -1 ... K-2, and zeros [B, K, 2]: how much noise is on them."""
    history = Latents(clips.video_BKNP[:, :-1], clips.audio_BKTC[:, :-1])
    return history, torch.zeros(*clips.microphone_BK.shape, 2, device=history.video.device)


def unit_errors(got: Latents, goal: Latents) -> Latents:
    """Mean squared difference of each unit: [..., tokens, numbers] -> [...]."""
    return each(lambda a, b: (a - b).square().mean((-2, -1)), got, goal)
