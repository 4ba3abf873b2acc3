"""Conversations in which one side or both are not heard -> batches that teach what to say, and how it sounds.

`WrittenClips`   planned as simulated conversations are, one after another without end; nothing is heard or seen
`PlainClips`     of the same, with nothing but what is said: whole conversations, as the memory keeps them
`ShownClips`     of encoded conversations in which nothing is heard
`AskedClips`     of encoded conversations in which only the user is heard
`SpokenClips`    of encoded conversations in which only the agent is heard

What is said to whom takes more examples than there are hours of sound and pictures, and none of either.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wan_streamer.codecs.text import SILENCE, TextCodec
from wan_streamer.config import StreamerConfig
from wan_streamer.data.lanes import HEARD, conversation_lanes
from wan_streamer.model.layout import LANES, ClipBatch
from wan_streamer.model.memory import PADDING, latest, spoken
from wan_streamer.simulation.conversation.facts import chatter, drill
from wan_streamer.simulation.conversation.free import free_texts
from wan_streamer.simulation.conversation.lines.many import MANY
from wan_streamer.simulation.conversation.partners import written_conversation
from wan_streamer.simulation.conversation.talk import typing_s
from wan_streamer.speaking.sounds import no_sounds
from wan_streamer.training.examples.clips import ClipReader, Example, hide, stack, told

CLIPS, SHOWN_CLIPS, SPOKEN_CLIPS, WRITTEN_CLIPS = 2, 4, 4, 6  # of a row, all from one conversation
PLAIN_CLIPS, PLAIN_TOKENS = 6, 192  # conversations of a row, and the most tokens of each
DRILLS, EXCHANGES = 3, 16  # of those, and in each
BEFORE = (1 / 6, 5 / 6)  # of the clip's units before an utterance of the agent
LATER = (1, 3)  # units: without sound, a question is known only when it is written down
FEWER = 4  # where so much talk lies in between, for a memory of five times the length
LONG, CHATTER = 0.25, (12, 40)  # share of the steps in which so much talk lies between what was before and the rest
TYPED = 0.4  # share of conversations of words alone in which the user types what they would say
RESPONSE = LANES.index("response")


class WrittenClips:
    """Clips of `units` units around what the agent says; ears, eyes and all that is drawn are left out."""

    def __init__(self, split: str, config: StreamerConfig, text: TextCodec, units: int) -> None:
        self.split, self.config, self.text, self.units = split, config, text, units

    def batch(self, seed: int, step: int, rows: range) -> Example:
        """These rows of the batch of `step`, `WRITTEN_CLIPS` clips each."""
        return stack(clip for row in rows for clip in self._clips(seed, step, row))

    def _clips(self, seed: int, step: int, row: int) -> list[Example]:
        rng = np.random.default_rng((seed, step, row))
        labels = written_conversation(seed, self.split, (step << 16) + row)
        if rng.random() < TYPED:
            labels = _typed_out(labels)
        typed, lanes = map(torch.from_numpy, conversation_lanes(labels, self.config.text, self.text))
        later = int(rng.integers(LATER[0], LATER[1] + 1))
        lanes = _answered_later(lanes, later)
        said = torch.cat([lanes, typed[..., None]], dim=2)
        return [
            self._example(said, first, labels["before"]) for first in _chosen(lanes, self.units, rng, WRITTEN_CLIPS)
        ]

    def _example(self, said_KSs: Tensor, first: int, before: list[dict]) -> Example:
        K, config = self.units, self.config
        lanes, typed = said_KSs[first : first + K, :, : len(LANES)], said_KSs[first : first + K, :, -1]
        on = torch.ones(1, K, dtype=torch.bool)
        memory = torch.cat([told(before, self.text), spoken(said_KSs[:first])])
        clips = ClipBatch(
            torch.zeros(1, K + 1, 0, config.patch_dim),
            torch.zeros(1, K + 1, config.audio_tokens, config.audio_vae.latent_dim),
            torch.zeros(1, 0),
            on,
            torch.zeros(1, 0, config.perception.video_height, config.perception.video_width, 3, dtype=torch.uint8),
            ~on,
            typed[None],
            lanes[None],
            on,
            latest(memory, config.cache.memory_tokens)[None],
            no_sounds(1, K + 2),
        )
        return Example(clips, torch.zeros(1, K), torch.zeros(1, K), _response_alone(K), ~on)


class PlainClips:
    """Conversations without the time in between: memory tokens, one after the other, some 150 instead of 1 600.

    What they are for is to find in what was said the words that an answer is made of.
    """

    def __init__(self, split: str, config: StreamerConfig, text: TextCodec) -> None:
        self.split, self.config, self.text = split, config, text

    def batch(self, seed: int, step: int, rows: range) -> Tensor:
        """Memory tokens [B, M, 2] of `PLAIN_CLIPS` conversations a row, with padding behind."""
        said = [self._said(seed, step, row * PLAIN_CLIPS + i, i < DRILLS) for row in rows for i in range(PLAIN_CLIPS)]
        return nn.utils.rnn.pad_sequence(said, batch_first=True, padding_value=PADDING)

    def _said(self, seed: int, step: int, number: int, drilled: bool) -> Tensor:
        if drilled:
            rng = np.random.default_rng((seed, step, number))
            return told(drill(EXCHANGES, free_texts(self.split), rng, MANY), self.text)[:PLAIN_TOKENS]
        index = (step << 16) + number
        labels = written_conversation(seed, self.split, index)
        typed, lanes = map(torch.from_numpy, conversation_lanes(labels, self.config.text, self.text))
        # Live, an answer begins while the end of the question is not written down yet. Here it often comes after it.
        lanes = _answered_later(lanes, index % (LATER[1] + 1))
        memory = torch.cat([told(labels["before"], self.text), spoken(torch.cat([lanes, typed[..., None]], dim=2))])
        return memory[:PLAIN_TOKENS]


class EncodedClips(ABC):
    """Some clips of a conversation of `reader` for every row.

    recalls  whether it is about what was said, too, so that in some steps much was said in between
    """

    recalls = True

    def __init__(self, reader: ClipReader) -> None:
        self.reader = reader

    def batch(self, seed: int, step: int, rows: range) -> Example:
        """These rows of the batch of `step`, each of one conversation."""
        long = bool(np.random.default_rng((seed, step)).random() < LONG)
        return stack(clip for row in rows for clip in self._row(np.random.default_rng((seed, step, row)), long))

    def _row(self, rng: np.random.Generator, long: bool) -> list[Example]:
        number = int(rng.integers(len(self.reader.length)))
        texts = free_texts(self.reader.store.labels[number]["split"])
        (apart,) = rng.spawn(1)  # the rest of the row is the same with it and without
        between = chatter(int(apart.integers(*CHATTER)), texts, apart) if long and self.recalls else []
        clips = self.clips(number, torch.from_numpy(self.reader.lanes(number)[1]), between, rng)
        return clips[: max(1, len(clips) // FEWER)] if between else clips

    @abstractmethod
    def clips(self, number: int, lanes_KSL: Tensor, between: Sequence[dict], rng: np.random.Generator) -> list[Example]:
        """Those of conversation `number`, whose text is `lanes_KSL`; `between` as for `ClipReader.read`."""


class ShownClips(EncodedClips):
    """Clips around what the agent says; only what is seen, and words. `SHOWN_CLIPS` a row."""

    def clips(self, number: int, lanes_KSL: Tensor, between: Sequence[dict], rng: np.random.Generator) -> list[Example]:
        chosen = _chosen(lanes_KSL, self.reader.units, rng, SHOWN_CLIPS)
        return [self._silent(self.reader.read(number, first, between=between)) for first in chosen]

    def _silent(self, example: Example) -> Example:
        clips = dataclasses.replace(
            example.clips, user_audio=torch.zeros(1, 0), video_BKNP=example.clips.video_BKNP[:, :, :0]
        )
        return dataclasses.replace(example, clips=clips, lane_BKL=_response_alone(self.reader.units))


class AskedClips(EncodedClips):
    """Clips around what the agent says, and as many from anywhere; what is heard, and words. Twice `CLIPS` a row."""

    def clips(self, number: int, lanes_KSL: Tensor, between: Sequence[dict], rng: np.random.Generator) -> list[Example]:
        units = self.reader.units
        anywhere = rng.integers(max(1, len(lanes_KSL) - units + 1), size=CLIPS).tolist()
        chosen = (*_chosen(lanes_KSL, units, rng), *anywhere)
        return [self._unseen(self.reader.read(number, first, camera=False, between=between)) for first in chosen]

    def _unseen(self, example: Example) -> Example:
        clips = example.clips
        clips = dataclasses.replace(clips, user_video=clips.user_video[:, :0], video_BKNP=clips.video_BKNP[:, :, :0])
        return dataclasses.replace(example, clips=clips)


class SpokenClips(EncodedClips):
    """Clips around what the agent says; its words and its voice, and the user's words. `SPOKEN_CLIPS` a row.

    hidden  share of clips without the agent's words, so that its voice can be guided by them
    """

    recalls = False

    def __init__(self, reader: ClipReader, hidden: float = 0.0) -> None:
        super().__init__(reader)
        self.hidden = hidden

    def clips(self, number: int, lanes_KSL: Tensor, between: Sequence[dict], rng: np.random.Generator) -> list[Example]:
        clips = [self._later(number, first, int(rng.integers(LATER[0], LATER[1] + 1)), between)
                 for first in _chosen(lanes_KSL, self.reader.units, rng, SPOKEN_CLIPS)]  # fmt: skip
        return [hide(clip, text=bool(rng.random() < self.hidden)) for clip in clips]

    def _later(self, number: int, first: int, later: int, between: Sequence[dict]) -> Example:
        """One clip, in which the agent does everything `later` units after the user than in the conversation."""
        K = self.reader.units
        whole = self.reader.read(number, first, microphone=False, camera=False, units=K + later, between=between)
        clips, config = whole.clips, self.reader.config
        said = clips.slot_BKSL[:, later:].clone()
        said[..., RESPONSE] = clips.slot_BKSL[:, :K, :, RESPONSE]
        # What the user says while the agent does nothing yet is before the clip.
        missed = torch.cat([clips.slot_BKSL[0, :later], clips.user_text_BKS[0, :later, :, None]], dim=2)
        missed[..., RESPONSE] = SILENCE
        memory = torch.cat([clips.memory_BM2[0], spoken(missed)])
        clips = ClipBatch(
            clips.video_BKNP[:, : K + 1, :0],
            clips.audio_BKTC[:, : K + 1],
            torch.zeros(1, 0),
            clips.microphone_BK[:, :K],
            clips.user_video[:, :0],
            clips.camera_BK[:, :K],
            clips.user_text_BKS[:, later:],
            said,
            clips.written_BK[:, :K],
            latest(memory, config.cache.memory_tokens)[None],
            clips.sound_BKP[:, : K + 2],
        )
        inside_BK = whole.audio_BK[:, later:]
        lane_BKL = _response_alone(K) * whole.lane_BKL[:, later:]
        return Example(clips, torch.zeros(1, K), inside_BK, lane_BKL, whole.recalled_BK[:, :K])


def _typed_out(labels: dict) -> dict:
    """The same conversation with a user who types: a message is sent so early that it is read when it would be said."""

    def message(event: dict) -> dict:
        words = [w for w in labels["words"]["user"] if event["start"] - 0.05 <= w["start"] < event["end"]]
        text = " ".join(word["text"] for word in words)
        sent = max(0.0, event["end"] - typing_s(text))
        return event | {"type": "typed", "label": text, "start": sent, "end": sent + 0.01}

    events = labels["events"]
    spoken = [event["side"] == "user" and event["type"] in HEARD for event in events]
    return labels | {"events": [message(e) if said else e for e, said in zip(events, spoken, strict=True)]}


def _answered_later(lanes_KSL: Tensor, units: int) -> Tensor:
    """The agent says everything so many units later; what then is beyond the end is left out."""
    response_KS = lanes_KSL[..., RESPONSE]
    return torch.stack([F.pad(response_KS, (0, 0, units, 0))[: len(response_KS)], lanes_KSL[..., 1 - RESPONSE]], dim=-1)


def _chosen(lanes_KSL: Tensor, units: int, rng: np.random.Generator, clips: int = CLIPS) -> list[int]:
    """First units of so many clips, each soon before an utterance of the agent, different ones if there are."""
    silent_K = (lanes_KSL[..., RESPONSE] == SILENCE).all(1)
    begins = (~silent_K[1:] & silent_K[:-1]).nonzero()[:, 0].tolist() or [0]
    least, most = (int(units * share) for share in BEFORE)
    order = [begins[i] for i in rng.permutation(len(begins))]
    chosen = [order[i % len(order)] - int(rng.integers(least, most)) for i in range(clips)]
    return [max(0, min(first, len(lanes_KSL) - units)) for first in chosen]


def _response_alone(units: int) -> Tensor:
    return torch.tensor([float(name == "response") for name in LANES]).expand(1, units, -1)
