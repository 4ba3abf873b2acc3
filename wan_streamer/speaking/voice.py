"""The voice: after the words of a unit it chooses the sounds of speech in it, and guesses how they sound.

`Speech`  what it goes on from, a few units back
`Voice`   `choose`: words -> sounds, one for each tick, and where in the ticks they begin;  `guess`: sounds -> latents

Words tell what is said, the sounds when, so the agent knows where in a word it is, however blurred its own voice. Both
networks see a few units and nothing of the Transformer: they learn alone, thousands of steps in the time in which the
Transformer takes a hundred (`training/voice`). What it puts out for the agent's sound is added to the guess, where the
words and the voice before are not enough. (Text before semantic before acoustic tokens, as in Moshi, Défossez et al.
2024, section 3.4; a guess that others correct, as between the decoder and the postnet of Tacotron 2, Shen et al. 2018.)
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.codecs.text import HOLD, SILENCE
from wan_streamer.config import VoiceConfig
from wan_streamer.speaking.sounds import MIDDLE, SOUNDS_PER_TICK, SOUNDS_PER_UNIT, UNKNOWN
from wan_streamer.units import TICKS_PER_UNIT

OFFSETS = (-2, -1, 0, 1)
"""Where a sound may begin, in parts of a tick from the begin of the tick in whose middle it is heard."""


@dataclass(frozen=True)
class Speech:
    """What is said up to a unit, oldest first: words [units, S], sounds [units, 16], latents of it [units, 4, C].

    The latents are those of the units before, since they are what comes next.
    """

    words_US: Tensor
    sounds_UP: Tensor
    audio_UTC: Tensor

    def heard(self, audio_TC: Tensor) -> "Speech":
        """The unit before has been said, and the next one begins without a word."""
        words_US = _then(self.words_US, torch.full_like(self.words_US[-1], SILENCE))
        return Speech(words_US, self.sounds_UP, _then(self.audio_UTC, audio_TC.to(self.audio_UTC)))

    def written(self, slot: int, token: Tensor | int) -> "Speech":
        words_US = self.words_US.clone()
        words_US[-1, slot] = token
        return Speech(words_US, self.sounds_UP, self.audio_UTC)

    def sounding(self, sounds_P: Tensor) -> "Speech":
        return Speech(self.words_US, _then(self.sounds_UP, sounds_P), self.audio_UTC)


class Tower(nn.Module):
    """`layers` residual steps of width `dim` over a flat input."""

    def __init__(self, inputs: int, dim: int, layers: int) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, dim)
        self.steps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)) for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for step in self.steps:
            x = x + step(x)
        return x


class Voice(nn.Module):
    """config;   vocab, slots  of the words in a unit;   channels  C of a latent of sound

    A fresh one guesses zeros. It has no gradients: it learns by itself, and all else with what it says.
    """

    def __init__(self, config: VoiceConfig, vocab: int, slots: int, channels: int) -> None:
        super().__init__()
        self.config, self.slots, self.channels = config, slots, channels
        dim, token_dim, ticks = config.dim, config.token_dim, TICKS_PER_UNIT
        seen, near = (units * ticks * token_dim for units in (config.sound_units, config.near_units))
        told = SOUNDS_PER_TICK * (config.sounds + 1)  # each place in a tick has its own; the last sound is `UNKNOWN`
        self.words = nn.Embedding(vocab, token_dim)
        self.chosen = nn.Embedding(config.sounds + 1, token_dim)
        self.chooser = Tower(config.word_units * slots * token_dim + seen, dim, config.layers)
        self.tick = nn.Parameter(torch.randn(ticks, dim) * 0.1)
        self.before = nn.Embedding(config.sounds + 1, dim)
        self.inner = nn.Linear(dim, dim)
        self.choice = nn.Linear(dim, config.sounds)
        self.timed = nn.Embedding(told, token_dim)
        self.timer = Tower(near, dim // 2, 1)
        self.offsets = nn.Linear(dim // 2, ticks * len(OFFSETS))
        self.told = nn.Embedding(told, token_dim)
        self.drawer = Tower(near + config.past_units * ticks * channels, dim, config.layers)
        self.drawn = nn.Linear(dim, channels)
        self.longer_V: Tensor
        self.register_buffer("longer_V", torch.zeros(vocab))  # seconds that tokens take longer than their letters tell
        self.requires_grad_(False)

    def reset(self) -> None:
        """Weights to begin with, where those of a whole model are set."""
        nn.init.zeros_(self.drawn.weight)

    def begin(self) -> Speech:
        """Nothing is said yet."""
        config, device = self.config, self.tick.device
        return Speech(
            torch.full((config.word_units, self.slots), SILENCE, device=device),
            torch.full((config.sound_units, SOUNDS_PER_UNIT), UNKNOWN, device=device),
            torch.zeros(config.past_units, TICKS_PER_UNIT, self.channels, device=device),
        )

    def read(self, words: Tensor, ticks: Tensor) -> Tensor:
        """Words [..., units, S] up to a unit, sounds [..., units, 4] before it -> what to choose from [..., dim]."""
        told = self.chosen(ticks % (self.config.sounds + 1))  # `UNKNOWN` is the last row
        return self.chooser(torch.cat([self.words(words).flatten(-3), told.flatten(-3)], dim=-1))

    def logits(self, read: Tensor, tick: int, before: Tensor) -> Tensor:
        """Of the sounds of a tick [..., sounds], from `read` and the sound before it [...]."""
        hidden = read + self.tick[tick] + self.before(before % (self.config.sounds + 1))
        return self.choice(F.gelu(self.inner(F.layer_norm(hidden, hidden.shape[-1:])))).float()

    def choose(self, words: Tensor, sounds: Tensor) -> Tensor:
        """The likeliest sounds [..., 16] of a unit: that of each tick, one after the other, and where they begin.

        words [..., units, S] up to the unit;   sounds [..., units, 16] before it
        """
        ticks = sounds[..., MIDDLE::SOUNDS_PER_TICK]
        read, before, chosen = self.read(words, ticks), ticks[..., -1, -1], []
        for tick in range(TICKS_PER_UNIT):
            before = self.logits(read, tick, before).argmax(-1)
            chosen.append(before)
        now = torch.stack(chosen, dim=-1)
        begin = self.begins(sounds, now)
        begin[..., 0, : -OFFSETS[0]] = -torch.inf  # what is said is said
        return cut(sounds[..., -1, -1], now, begin.argmax(-1) + OFFSETS[0])

    def begins(self, sounds: Tensor, ticks: Tensor) -> Tensor:
        """Logits [..., 4, `OFFSETS`] of where the sounds of a unit's ticks [..., 4] begin, from those before it."""
        now = ticks.repeat_interleave(SOUNDS_PER_TICK, dim=-1)
        near = torch.cat([sounds[..., 1 - self.config.near_units :, :].flatten(-2), now], dim=-1)
        read = self.timer(self._told(self.timed, near).flatten(-2))
        return self.offsets(read).float().unflatten(-1, (TICKS_PER_UNIT, len(OFFSETS)))

    def say(self, speech: Speech, known: bool = True) -> tuple[Speech, Tensor]:
        """Choose the sounds of a unit whose words are written, and guess its latents [4, C].

        known  False: its words are hidden, and so are its sounds
        """
        nothing_P = torch.full_like(speech.sounds_UP[-1], UNKNOWN)
        speech = speech.sounding(self._choose(speech) if known else nothing_P)
        return speech, self._guess(speech, self.foresee(speech) if known else nothing_P)

    def say_instead(self, speech: Speech, sounds_P: Tensor, following_P: Tensor) -> tuple[Speech, Tensor]:
        """The same with other sounds [16] in the place of those of the unit and of those foreseen behind it."""
        speech = Speech(speech.words_US, torch.cat([speech.sounds_UP[:-1], sounds_P[None]]), speech.audio_UTC)
        return speech, self._guess(speech, following_P)

    def foresee(self, speech: Speech) -> Tensor:
        """The sounds [16] of the unit behind, should it have no word: words run ahead of their sounds."""
        words_S = speech.words_US[-1]
        waits = torch.where((words_S == SILENCE).all(), SILENCE, torch.full_like(words_S, HOLD))
        return self._choose(Speech(_then(speech.words_US, waits), speech.sounds_UP, speech.audio_UTC))

    def _choose(self, speech: Speech) -> Tensor:
        return self.choose(speech.words_US[None], speech.sounds_UP[None])[0]  # packed layers want rows

    def _guess(self, speech: Speech, following_P: Tensor) -> Tensor:
        return self.guess(speech.sounds_UP[None], speech.audio_UTC[None], following_P[None])[0]

    def guess(self, sounds: Tensor, audio: Tensor, following: Tensor) -> Tensor:
        """Sounds [..., units, 16] up to a unit, latents [..., units, 4, C] before it -> its latents [..., 4, C].

        One tick after the other by the same weights: each sees the sounds around it, three ticks ahead.

        following  [..., 16] sounds of the unit behind, as they are foreseen
        """
        near, ahead = self.config.near_units * TICKS_PER_UNIT, TICKS_PER_UNIT - 1
        known = [sounds[..., -self.config.near_units :, :].flatten(-2), following[..., : ahead * SOUNDS_PER_TICK]]
        told = self._told(self.told, torch.cat(known, dim=-1))
        past, guessed = audio.flatten(-3, -2), []
        for tick in range(TICKS_PER_UNIT):
            read = torch.cat([told[..., tick : tick + near, :].flatten(-2), past.flatten(-2)], dim=-1)
            guessed.append(self.drawn(self.drawer(read)).float())
            past = torch.cat([past[..., 1:, :], guessed[-1][..., None, :].to(past)], dim=-2)
        return torch.stack(guessed, dim=-2)

    def guess_clip(self, sounds_BKP: Tensor, audio_BKTC: Tensor) -> Tensor:
        """Latents [B, K, 4, C] of the units of clips.

        sounds_BKP  [B, K + 2, 16], those before the clip first;   audio_BKTC  [B, K, 4, C] of the units before each
        """
        units, past = self.config.sound_units, self.config.past_units
        following_BKP, sounds_BKP = sounds_BKP[:, -audio_BKTC.shape[1] :], sounds_BKP[:, :-1]
        first = sounds_BKP.shape[1] - audio_BKTC.shape[1] - (units - 1)  # that the first unit looks at
        sounds_BKP = F.pad(sounds_BKP, (0, 0, max(0, -first), 0), value=UNKNOWN)[:, max(0, first) :]
        audio_BKTC = F.pad(audio_BKTC, (0, 0, 0, 0, past - 1, 0))
        sounds_BKUP, audio_BKUTC = sounds_BKP.unfold(1, units, 1).mT, audio_BKTC.unfold(1, past, 1).movedim(-1, 2)
        return self.guess(sounds_BKUP, audio_BKUTC, following_BKP)

    def _told(self, embedding: nn.Embedding, sounds: Tensor) -> Tensor:
        """Sounds [..., 4 x ticks] -> [..., ticks, token_dim]: of a tick the sum over its parts."""
        kinds = self.config.sounds + 1
        rows = sounds.unflatten(-1, (-1, SOUNDS_PER_TICK)) % kinds  # `UNKNOWN` is the last
        return embedding(rows + kinds * torch.arange(SOUNDS_PER_TICK, device=rows.device)).sum(-2)


def cut(before: Tensor, ticks: Tensor, offset: Tensor) -> Tensor:
    """Sounds of ticks [..., 4] -> of their parts [..., 16]: each begins so many parts, `offset`, behind its tick.

    before  [...]: the sound before the unit
    """
    before = torch.where(before == UNKNOWN, ticks[..., 0], before)
    left = torch.cat([before[..., None], ticks[..., :-1]], dim=-1)[..., None]
    right, late = ticks.roll(-1, -1)[..., None], offset.roll(-1, -1)[..., None]
    late = torch.cat([late[..., :-1, :], torch.zeros_like(late[..., -1:, :])], dim=-2)  # the next unit is not known
    place = torch.arange(SOUNDS_PER_TICK, device=ticks.device)
    early = torch.where(place < offset[..., None], left, ticks[..., None])
    return torch.where(place >= SOUNDS_PER_TICK + late, right, early).flatten(-2)


def _then(past: Tensor, now: Tensor) -> Tensor:
    return torch.cat([past[1:], now[None]])
