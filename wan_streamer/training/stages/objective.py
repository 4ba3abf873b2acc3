"""The objective of the model: flow matching of video and audio, cross-entropy of text (paper eq. 1-3).

Every stream is averaged over its own elements of a clip, so that 28 video tokens do not drown 4 audio tokens, and the
loss is the mean over clips, so that parts of a batch add up. A clip in which a stream is no target adds nothing to it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wan_streamer.codecs.text import END, HOLD, SILENCE
from wan_streamer.config import FlowConfig
from wan_streamer.flow.joint import denoise, each, mix, velocity_goal
from wan_streamer.flow.noise import RowNoise
from wan_streamer.flow.path import sample_tau
from wan_streamer.flow.solver import time_grid
from wan_streamer.model.layout import LANES, ClipBatch, Latents
from wan_streamer.model.memory import PADDING
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.examples.clips import Example

RESPONSE, TRANSCRIPT = (LANES.index(name) for name in ("response", "transcript"))
TEXT_WEIGHT = 0.25
PAD_WEIGHT = {SILENCE: 0.3, HOLD: 0.4}  # most slots are pads; at full weight the agent would learn never to speak
NOISED_HISTORY_SHARE = 0.7  # of units; the others keep clean history, as it is live
RECYCLED_SHARE, RECYCLED_ALONE = 0.5, 0.8  # of units whose history the model makes itself, in a step that recycles
OVERHEARD_WEIGHT = 0.1  # of the user's words, where nothing but words is learned
MISREAD_SHARE = 0.2  # of the words in the transcript
OWN_TAU_SHARE = 0.2  # of units in which audio and video have their own times
SERVED_SHARE = 0.5  # of units that are asked when the solver asks live, which for two steps is twice


@dataclass(frozen=True)
class FlowSample:
    """One draw of times and noise for a batch: what a forward pass reads, and where its velocities should point.

    history, history_tau_BK2  latents of units -1 ... K-2, lightly noised, and how much
    noisy, tau_BK2            latents of units 0 ... K-1 on the path, and where
    clean, noise              both ends of the path
    """

    history: Latents
    history_tau_BK2: Tensor
    noisy: Latents
    tau_BK2: Tensor
    clean: Latents
    noise: Latents


def draw_flow(
    clips: ClipBatch,
    flow: FlowConfig,
    noise: RowNoise,
    move: Callable[[Tensor], Tensor],
    recalled_BK: Tensor | None = None,
    served: Sequence[float] = (),
) -> FlowSample:
    """Times and noise for `clips`; `move` brings what was drawn to their device.

    recalled_BK  bool: where it is False, the history is nothing but noise, and the model is told so
    served       times of which `SERVED_SHARE` of the units have one
    """
    B, K = clips.microphone_BK.shape
    shared = sample_tau((B, K, 1), flow.shift, noise).expand(B, K, 2)
    own = noise.uniform((B, K, 1)) < OWN_TAU_SHARE
    tau = move(torch.where(own, sample_tau((B, K, 2), flow.shift, noise), shared))
    if served:
        live = noise.uniform((B, K, 1)) < SERVED_SHARE
        index = (noise.uniform((B, K, 1)) * len(served)).long().clamp(max=len(served) - 1)
        tau = torch.where(move(live), move(torch.tensor(served)[index]), tau)
    noised = noise.uniform((B, K, 1)) < NOISED_HISTORY_SHARE
    history_tau = move(torch.where(noised, noise.uniform((B, K, 2)) * flow.history_noise, 0.0))
    if recalled_BK is not None:
        history_tau = torch.where(recalled_BK[..., None], history_tau, 1.0)
    whole = Latents(clips.video_BKNP, clips.audio_BKTC)
    past, clean = each(lambda z: z[:, :-1], whole), each(lambda z: z[:, 1:], whole)
    past_noise, eps = (each(noise.like, clean) for _ in range(2))
    return FlowSample(mix(past, past_noise, history_tau), history_tau, mix(clean, eps, tau), tau, clean, eps)


def served_times(flow: FlowConfig, pictures: bool) -> list[float]:
    """When a live solver asks: for the sound alone, until it has what it jumps to data from (`flow.audio_steps`)."""
    times = time_grid(flow.steps, flow.shift)[:-1]
    return times if pictures or not flow.audio_steps else times[: flow.audio_steps]


def streamer_loss(
    streamer: Streamer,
    example: Example,
    noise: RowNoise,
    move: Callable[[Tensor], Tensor],
    autocast: AbstractContextManager,
    recycled: int = 0,
    drawn: bool = True,
    misread: float = 0.0,
    pictures: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar to minimise and its parts. `example` is on the model's device; one draw of times and noise.

    recycled  go on from the model's own mistakes (`recycle`), made so many times one after the other; each time costs a
              third of the step
    drawn     False: only the text is learned; nothing is drawn, and what was drawn before is left out
    misread   share of the transcript's words that are read as others (`misread_words`), if it is not recycled
    pictures  False: of what is drawn only the sound is learned, and the agent's pictures are left out
    """
    read = example.clips
    served = served_times(streamer.config.flow, pictures)
    sample = draw_flow(read, streamer.config.flow, noise, move, example.recalled_BK, served)
    if not pictures:
        sample = sound_alone(sample)
    for _ in range(recycled):
        read, sample = recycle(streamer, read, sample, noise, move, autocast)
    if misread and not recycled:
        read = misread_words(read, misread, streamer.config.text.vocab_size, noise, move)
    history, noisy = (sample.history, sample.noisy) if drawn else (None, None)
    with autocast:
        velocity, logits = streamer(read, history, sample.history_tau_BK2, noisy, sample.tau_BK2)
    text_B, numbers = text_errors(logits, example)
    errors = [("text", text_B, TEXT_WEIGHT, _lane_counts(example))]
    if velocity is not None:
        errors += [("audio", audio_error(velocity, sample, example), 1.0, example.audio_BK)]
        if pictures:
            errors += [("video", video_error(velocity, sample, example), 1.0, example.video_BK)]
    for name, error_B, _, counts_BK in errors:
        numbers[name] = error_B.sum() / counts_BK.flatten(1).any(1).sum()  # over the clips that have it as a target
    loss = torch.stack([weight * error_B.mean() for _, error_B, weight, _ in errors]).sum()
    return loss, {name: value.detach() for name, value in numbers.items()}


def plain_loss(streamer: Streamer, memory_BM2: Tensor, autocast: AbstractContextManager) -> tuple[Tensor, Tensor]:
    """(cross-entropy of conversations that are nothing but words [B, M, 2], share of the agent's that are right).

    Every token is foretold from those before, given who says it; those of the user count little.
    """
    with autocast:
        logits_BMV, _ = streamer.text_logits(memory_BM2[:, :-1])
    source_BM, token_BM = memory_BM2[:, 1:].unbind(-1)
    own_BM = source_BM == RESPONSE
    weight_BM = torch.where(own_BM, 1.0, OVERHEARD_WEIGHT) * (source_BM != PADDING)
    error_BM = F.cross_entropy(logits_BMV.mT, token_BM.clamp(min=0), reduction="none")
    return mean_of_targets(error_BM, weight_BM).mean(), _share(logits_BMV.argmax(-1) == token_BM, own_BM)


def misread_words(
    clips: ClipBatch, share: float, vocabulary: int, noise: RowNoise, move: Callable[[Tensor], Tensor]
) -> ClipBatch:
    """`clips` in which a share of the words that stand in the transcript are any others.

    Live, a model reads what it has misheard before. One that has only ever read the true words goes on from them
    instead of from what it hears.
    """
    said_BKS = clips.slot_BKSL[..., TRANSCRIPT]
    chance, other = (move(noise.uniform(tuple(said_BKS.shape))) for _ in range(2))
    words_BKS = (other * (vocabulary - END - 1)).long() + END + 1
    return _with_words(clips, (said_BKS > END) & (chance < share), words_BKS)


@torch.no_grad()
def recycle(
    streamer: Streamer,
    clips: ClipBatch,
    sample: FlowSample,
    noise: RowNoise,
    move: Callable[[Tensor], Tensor],
    autocast: AbstractContextManager,
) -> tuple[ClipBatch, FlowSample]:
    """`sample` with a history that is in part what the model makes of the same units from noise, told to be clean.

    In as many units of `clips` the words of the transcript are those that it finds likeliest, right or wrong.

    Live, the history is never the data but what the model made; its errors then are those it has met here (after the
    error recycling of LongLive 2.0, without a buffer: one pass gives the errors of all units, a second one those that
    come of them, as in a Jacobi iteration). Sound alone is made from nothing but noise, as where it jumps to data.
    """
    alone = sample.clean.video.shape[2] == 0
    noisy, tau_BK2 = (sample.noise, torch.ones_like(sample.tau_BK2)) if alone else (sample.noisy, sample.tau_BK2)
    with autocast:
        velocity, logits_BKSLV = streamer(clips, sample.history, sample.history_tau_BK2, noisy, tau_BK2)
    B, K = clips.microphone_BK.shape
    own = move(noise.uniform((B, K, 1)) < (RECYCLED_ALONE if alone else RECYCLED_SHARE))
    word_BKS = logits_BKSLV[..., TRANSCRIPT, END + 1 :].argmax(-1) + END + 1
    clips = _with_words(clips, own & (clips.slot_BKSL[..., TRANSCRIPT] > END), word_BKS)
    own[:, 0] = False  # nothing is known of the unit before the clip
    own = own & (sample.history_tau_BK2 < 1).all(-1, keepdim=True)  # a hidden history stays hidden
    made = denoise(noisy, velocity, tau_BK2)

    def mixed(past: Tensor, made: Tensor) -> Tensor:
        return torch.where(own[..., None], torch.cat([past[:, :1], made[:, :-1]], dim=1), past)

    history = each(mixed, sample.history, made)
    history_tau = torch.where(own, 0.0, sample.history_tau_BK2)
    return clips, dataclasses.replace(sample, history=history, history_tau_BK2=history_tau)


def _with_words(clips: ClipBatch, where_BKS: Tensor, word_BKS: Tensor) -> ClipBatch:
    """`clips` with other tokens in these slots of the transcript."""
    slot_BKSL = clips.slot_BKSL.clone()
    slot_BKSL[..., TRANSCRIPT] = torch.where(where_BKS, word_BKS, slot_BKSL[..., TRANSCRIPT])
    return dataclasses.replace(clips, slot_BKSL=slot_BKSL)


def sound_alone(sample: FlowSample) -> FlowSample:
    """`sample` without the tokens of the agent's pictures."""
    history, noisy, clean, noise = (
        Latents(z.video[:, :, :0], z.audio) for z in (sample.history, sample.noisy, sample.clean, sample.noise)
    )
    return dataclasses.replace(sample, history=history, noisy=noisy, clean=clean, noise=noise)


def audio_error(velocity: Latents, sample: FlowSample, example: Example) -> Tensor:
    """Squared error of the velocity of the sound [B]: means over the units of a clip that are targets."""
    target = velocity_goal(sample.clean, sample.noise, sample.tau_BK2)
    return mean_of_targets((velocity.audio - target.audio).square().mean((2, 3)), example.audio_BK)


def video_error(velocity: Latents, sample: FlowSample, example: Example) -> Tensor:
    """Likewise of the pictures."""
    # Patches that move (mouth, lids, head outline) count more than walls.
    before = example.clips.video_BKNP[:, :-1]
    motion = (sample.clean.video - before).square().mean(-1)
    weight = (0.5 + motion / _typical(motion, example.video_BK).clamp(min=1e-6)).clamp(max=4)
    weight = (weight / _typical(weight, example.video_BK).clamp(min=1e-6))[..., None]
    target = velocity_goal(sample.clean, sample.noise, sample.tau_BK2)
    return mean_of_targets((weight * (velocity.video - target.video).square()).mean((2, 3)), example.video_BK)


def text_errors(logits_BKSLV: Tensor, example: Example) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted cross-entropy of the slots [B], and shares of slots that are right.

    Of each lane, its words and turn ends; and of what the agent does when, in slots of the response lane:

    begin  the first word of an utterance;   end  where one ends
    wait   silence while the user is in a turn and says nothing new, as in a pause
    """
    clips = example.clips
    target_BKSL = clips.slot_BKSL
    weight_V = torch.ones(logits_BKSLV.shape[-1], device=target_BKSL.device)
    for token, pad_weight in PAD_WEIGHT.items():
        weight_V[token] = pad_weight
    counts = _lane_counts(example)[:, :, None]
    error = F.cross_entropy(logits_BKSLV.flatten(0, -2), target_BKSL.flatten(), reduction="none").view_as(target_BKSL)
    loss_B = mean_of_targets(error, weight_V[target_BKSL] * counts)
    spoken = (target_BKSL > HOLD) & (counts > 0)
    guessed = logits_BKSLV.argmax(-1) == target_BKSL
    scores = {f"{name}_right": _share(guessed[..., i], spoken[..., i]) for i, name in enumerate(LANES)}
    of_agent, own = guessed[..., RESPONSE].flatten(1), (counts[..., RESPONSE] > 0).expand(target_BKSL.shape[:3])
    for name, where_BT in decisions(target_BKSL).items():
        scores[f"{name}_right"] = _share(of_agent, where_BT & own.flatten(1))
    return loss_B, scores


def decisions(target_BKSL: Tensor) -> dict[str, Tensor]:
    """The slots in which it matters what the agent does, bool [B, K S]: see `text_errors`."""
    response_BT, transcript_BT = (target_BKSL[..., lane].flatten(1) for lane in (RESPONSE, TRANSCRIPT))
    before_BT = F.pad(response_BT[:, :-1], (1, 0), value=HOLD)  # what was before the clip is not known
    quiet_BT = (before_BT == SILENCE) | (before_BT == END)
    return {
        "begin": (response_BT > END) & quiet_BT,
        "end": response_BT == END,
        "wait": (response_BT == SILENCE) & (transcript_BT == HOLD),
    }


def _share(right: Tensor, where: Tensor) -> Tensor:
    """Not a number where there is none."""
    return (right & where).sum() / where.sum()


def _typical(value_BKN: Tensor, counts_BK: Tensor) -> Tensor:
    """The mean [B, 1, 1] over the units that are targets: the end of a short clip is a cut to nothing."""
    units_B11 = counts_BK.sum(1)[:, None, None].clamp(min=1)
    return (value_BKN.mean(2, keepdim=True) * counts_BK[..., None]).sum(1, keepdim=True) / units_B11


def _lane_counts(example: Example) -> Tensor:
    """float [B, K, lanes]: hidden text is no target."""
    return example.lane_BKL * example.clips.written_BK[..., None]


def mean_of_targets(error: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over all axes but the first; 0 where no weight is."""
    weight = weight.expand_as(error).flatten(1)
    return (error.flatten(1) * weight).sum(1) / weight.sum(1).clamp(min=1e-6)
