"""Conversations -> stretches of what the agent says: its words, their sounds, its voice.

`Stretch`     a batch of them
`Stretches`   those of encoded conversations, and sentences made of their words
"""

import functools
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wan_streamer.codecs.text import HOLD, TextCodec
from wan_streamer.config import StreamerConfig, VoiceConfig
from wan_streamer.data.lanes import conversation_lanes
from wan_streamer.data.latents import LatentStore
from wan_streamer.errors import DataError
from wan_streamer.model.layout import LANES
from wan_streamer.speaking.sounds import QUIET, SOUNDS_PER_UNIT, UNKNOWN, sounds_of
from wan_streamer.training.voice.pace import longer
from wan_streamer.units import AUDIO_LATENTS_PER_UNIT, TICKS_PER_UNIT, UNIT_S

RESPONSE = LANES.index("response")
POOL, POOL_UNITS, POOL_STEPS = 16, 400, 25  # sentences made of words: so many rows, so long, for so many steps
LONGEST_PAUSE = 0.4  # seconds between two words of them


class Stretch(NamedTuple):
    """R rows of N units, and before them what the voice looks back at.

    words_RUS    int64 [R, word_units - 1 + N, S]
    ticks_RUT    int64 [R, sound_units + N, 4]: the sounds of ticks
    sounds_RUP   int64 [R, sound_units + N + 1, 16]: those of their parts
    audio_RUTC   [R, past_units + N, 4, C]
    heard_R      bool: False where only words and sounds are known
    """

    words_RUS: Tensor
    ticks_RUT: Tensor
    sounds_RUP: Tensor
    audio_RUTC: Tensor
    heard_R: Tensor


@dataclass(frozen=True)
class Said:
    """A word as it was said: its sounds (symbol, begin, end) from its own begin, in seconds, and the pause behind."""

    text: str
    sounds: tuple[tuple[str, float, float], ...]
    seconds: float
    pause: float


class Spoken(NamedTuple):
    """A conversation: words [U, S], sounds of ticks [U, 4] and their parts [U, 16], latents [U, 4, C] or nothing."""

    words_US: Tensor
    ticks_UT: Tensor
    sounds_UP: Tensor
    audio_UTC: Tensor | None


class Stretches:
    """Of the conversations of `store` whose phonemes are known. Raises `DataError` if there are none."""

    def __init__(self, store: LatentStore, config: StreamerConfig, voice: VoiceConfig, text: TextCodec) -> None:
        self.config, self.voice, self.text = config, voice, text
        known = [n for n, labels in enumerate(store.labels) if labels.get("phonemes", {}).get("agent")]
        if not known:
            raise DataError(
                f"{store.folder}: expected conversations with the agent's phonemes; make some with simulate --spoken"
            )
        self.spoken = [
            self._spoken(store.labels[n], store.read(n, 0, store.labels[n]["units"])["audio"][1:]) for n in known
        ]
        self.longer_V = longer([store.labels[n] for n in known], text)
        self.said: dict[str, list[Said]] = defaultdict(list)
        for n in known:
            for said in words_said(store.labels[n]):
                self.said[said.text].append(said)
        self.places = np.array([(i, unit) for i, part in enumerate(self.spoken) for unit in _busy(part)])
        self.pool = functools.lru_cache(maxsize=2)(self._pool)

    def _spoken(self, labels: dict, audio_UTC: Tensor | None) -> Spoken:
        lanes = conversation_lanes(labels, self.config.text, self.text)[1]
        audio_UTC = None if audio_UTC is None else audio_UTC.half()  # days of it fit into memory
        ticks_UT, sounds_UP = (
            torch.from_numpy(sounds_of(labels, parts)) for parts in (TICKS_PER_UNIT, SOUNDS_PER_UNIT)
        )
        return Spoken(torch.from_numpy(lanes[..., RESPONSE]), ticks_UT, sounds_UP, audio_UTC)

    def rows(self, seed: int, step: int, rows: range, units: int, made: float) -> Stretch:
        """Random stretches of `units` units; of so large a share, `made`, the words are put together anew."""
        pool, chosen = self.pool(seed, step // POOL_STEPS), []
        for row in rows:
            rng = np.random.default_rng((seed, step, row))
            if rng.random() < made:
                chosen.append(self._cut(pool[int(rng.integers(POOL))], int(rng.integers(POOL_UNITS - units)), units))
            else:
                number, unit = self.places[int(rng.integers(len(self.places)))]
                chosen.append(self._cut(self.spoken[number], unit - int(rng.integers(units)), units))
        return Stretch(*(torch.stack(parts) for parts in zip(*chosen, strict=True)))

    def _cut(self, spoken: Spoken, first: int, units: int) -> tuple[Tensor, ...]:
        voice, last = self.voice, first + units
        audio_UTC = spoken.audio_UTC
        if audio_UTC is None:
            audio_UTC = torch.zeros(0, AUDIO_LATENTS_PER_UNIT, self.config.audio_vae.latent_dim)
        return (
            _between(spoken.words_US, first - voice.word_units + 1, last, 0),
            _between(spoken.ticks_UT, first - voice.sound_units, last, UNKNOWN),
            _between(spoken.sounds_UP, first - voice.sound_units, last + 1, UNKNOWN),
            _between(audio_UTC.float(), first - voice.past_units, last, 0),
            torch.tensor(spoken.audio_UTC is not None),
        )

    def _pool(self, seed: int, number: int) -> list[Spoken]:
        rng = np.random.default_rng((seed, number, 1 << 20))
        return [self._spoken(self._sentence(rng), None) for _ in range(POOL)]

    def _sentence(self, rng: np.random.Generator) -> dict:
        """Labels of an utterance of any words, each as likely as the others, as they were said somewhere."""
        texts, at, words, phonemes = list(self.said), 0.3, [], []
        while at < POOL_UNITS * UNIT_S - 2:
            ways = self.said[texts[int(rng.integers(len(texts)))]]
            said = ways[int(rng.integers(len(ways)))]
            words.append({"text": said.text, "start": at, "end": at + said.seconds})
            phonemes += [{"symbol": s, "start": at + a, "end": at + b} for s, a, b in said.sounds]
            at += said.seconds + said.pause
        speech = {"type": "speech", "side": "agent", "start": words[0]["start"], "end": at}
        return {
            "units": POOL_UNITS,
            "words": {"agent": words, "user": []},
            "phonemes": {"agent": phonemes, "user": []},
            "events": [speech],
        }


def words_said(labels: dict) -> list[Said]:
    """The agent's words with their sounds."""
    phonemes, said, number = labels["phonemes"]["agent"], [], 0
    words = labels["words"]["agent"]
    for word, following in zip(words, [*words[1:], None], strict=True):
        inside = []
        while number < len(phonemes) and phonemes[number]["start"] < word["end"] - 1e-3:
            sound = phonemes[number]
            if sound["start"] >= word["start"] - 1e-3:
                inside.append((sound["symbol"], sound["start"] - word["start"], sound["end"] - word["start"]))
            number += 1
        pause = 0.0 if following is None else min(LONGEST_PAUSE, max(0.0, following["start"] - word["end"]))
        if inside:
            said.append(Said(word["text"], tuple(inside), word["end"] - word["start"], pause))
    return said


def _busy(spoken: Spoken) -> list[int]:
    """Units in which something is said or written."""
    busy = (spoken.ticks_UT > QUIET).any(1) | (spoken.words_US > HOLD).any(1)
    return busy.nonzero().flatten().tolist()


def _between(x: Tensor, first: int, behind: int, value: int) -> Tensor:
    """Entries first ... behind - 1; those that there are not are `value`."""
    inside, front = x[max(0, first) : max(0, behind)], min(max(0, -first), behind - first)
    back = behind - first - front - len(inside)
    return F.pad(inside, (0, 0) * (x.ndim - 1) + (front, back), value=value)
