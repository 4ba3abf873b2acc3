"""Encoded conversations -> what a training step of the model reads.

`Example`      a batch of clips, and how much each of their targets counts
`told`         what was said before a conversation, as memory
`hide`         an example without some of its conditions, so that the model can be guided by them
`ClipReader`   random or given clips of a latent store, as examples
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wan_streamer.codecs.patches import patchify
from wan_streamer.codecs.text import END, HOLD, SILENCE, TextCodec
from wan_streamer.config import StreamerConfig
from wan_streamer.data.lanes import conversation_lanes
from wan_streamer.data.latents import LatentStore
from wan_streamer.model.layout import LANES, ClipBatch
from wan_streamer.model.memory import PADDING, RESPONSE, SOURCES, latest, spoken
from wan_streamer.speaking.sounds import UNKNOWN, sounds_of
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_UNIT

STREAMS = ("response", "transcript", "audio", "video")
MADE = {"audio", "video"}
SAYS = {"agent": "response", "user": "transcript"}  # lane of what a side says
MEMORY_STEP = 64  # tokens; a compiled layer is made for every length that it meets
MASKS = ("video_BK", "audio_BK", "lane_BKL", "recalled_BK")


@dataclass(frozen=True)
class Example:
    """Clips of K units, and whether each stream of the agent is a target in each unit.

    video_BK, audio_BK  float: 1, or 0 where there is nothing to learn from
    lane_BKL            float, likewise for the text lanes
    recalled_BK         bool: False where the agent's own past sound and pictures are hidden from it
    """

    clips: ClipBatch
    video_BK: Tensor
    audio_BK: Tensor
    lane_BKL: Tensor
    recalled_BK: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "Example":
        """The same with every tensor changed, such as moved to another device."""
        clips = ClipBatch(*(change(getattr(self.clips, field.name)) for field in dataclasses.fields(ClipBatch)))
        return Example(clips, *(change(getattr(self, name)) for name in MASKS))

    def pin_memory(self) -> "Example":
        """The same in memory that a GPU copies from by itself."""
        return self.map(Tensor.pin_memory)


def stack(examples: Iterable[Example]) -> Example:
    """Examples of the same length as one batch, with one of a few sizes of memory, for the longest one."""
    rows = list(examples)
    names = [field.name for field in dataclasses.fields(ClipBatch)]
    clips = ClipBatch(*(torch.cat([getattr(row.clips, name) for row in rows]) for name in names))
    there = int((clips.memory_BM2[..., 0] != PADDING).sum(1).max())
    # Never nothing: the processes of a step have to train the same parameters.
    kept = MEMORY_STEP * 2 ** max(0, math.ceil(math.log2(max(1, there) / MEMORY_STEP)))
    clips = dataclasses.replace(clips, memory_BM2=clips.memory_BM2[:, max(0, clips.memory_BM2.shape[1] - kept) :])
    return Example(clips, *(torch.cat([getattr(row, name) for row in rows]) for name in MASKS))


def hide(
    example: Example, text: bool = False, user: bool = False, history: bool = False, memory: bool = False
) -> Example:
    """`example` with some conditions of sound and pictures taken away.

    text     the agent's own words, of the memory too: neither read nor learned
    user     microphone and camera are off, nothing is typed or remembered of the user; words are not learned, since
             they answer the user
    history  the agent's past sound and pictures
    memory   all that was said before the clip
    """
    clips, no = example.clips, torch.zeros_like(example.recalled_BK)
    if text:
        clips = dataclasses.replace(clips, written_BK=no)
    if user:
        silent = torch.full_like(clips.user_text_BKS, SILENCE)
        own_BM2 = torch.where(clips.memory_BM2[..., :1] == RESPONSE, clips.memory_BM2, PADDING)
        clips = dataclasses.replace(clips, microphone_BK=no, camera_BK=no, user_text_BKS=silent, memory_BM2=own_BM2)
        example = dataclasses.replace(example, lane_BKL=torch.zeros_like(example.lane_BKL))
    if memory:
        clips = dataclasses.replace(clips, memory_BM2=torch.full_like(clips.memory_BM2, PADDING))
    return dataclasses.replace(example, clips=clips, recalled_BK=no if history else example.recalled_BK)


def told(turns: Iterable[dict], text: TextCodec) -> Tensor:
    """Memory tokens [N, 2] of what was said before a conversation (`before` of its labels)."""
    pairs = [
        (SOURCES.index(SAYS[turn["side"]]), token) for turn in turns for token in [*text.encode(turn["text"]), END]
    ]
    return torch.tensor(pairs, dtype=torch.long).view(-1, 2)


class ClipReader:
    """Clips of `units` units from `store`, for a model of `config`, with the text of `text`.

    Raises `ConfigError` if text would leave the window inside a clip and the model has a memory: in training the memory
    holds what was said before the clip, and stays the same in all of it.
    """

    def __init__(self, store: LatentStore, config: StreamerConfig, text: TextCodec, units: int) -> None:
        self.store, self.config, self.text, self.units = store, config, text, units
        self.length = np.array([labels["units"] for labels in store.labels])
        self.lanes = functools.lru_cache(maxsize=4096)(self._read_lanes)
        self.sounds = functools.lru_cache(maxsize=4096)(lambda number: sounds_of(store.labels[number]))

    def read(
        self,
        number: int,
        first: int,
        typed: bool = False,
        microphone: bool = True,
        camera: bool = True,
        units: int | None = None,
        between: Sequence[dict] = (),
    ) -> Example:
        """One clip of conversation `number` from unit `first`; beyond its end there is silence that nothing learns.

        typed       the user writes instead of speaking (and the microphone is off, if only what ears heard is known)
        microphone  False: it is off;   camera  False: it is off, as where the recording has no picture
        units       length of the clip (default: the reader's)
        between     turns that were said after what was before the conversation, and before it
        """
        K, config, labels = units or self.units, self.config, self.store.labels[number]
        known, lead = min(K, int(self.length[number]) - first), config.perception.lead_units
        clip = self.store.read(number, first, known, lead)
        whole = [torch.from_numpy(part) for part in self.lanes(number, typed)]
        user_text, lanes = (part[first : first + known] for part in whole)
        before = torch.cat([whole[1][:first], whole[0][:first, :, None]], dim=2)
        sound, shown = clip["user_audio"], clip.get("user_video")
        if typed and self.store.hears:
            microphone = False
        elif typed:
            hiss = torch.randn(sound.shape, generator=torch.Generator().manual_seed(number)) * 1e-3
            sound = hiss * microphone
        camera = camera and shown is not None
        nothing = self._unseen(K)
        seen = "video" in clip
        latents = clip["video"] if seen else torch.zeros(known + 1, *self._latent_size())
        transcribed = labels.get("transcribed", {})
        targets = set(labels.get("targets", STREAMS))
        heard = {"response": transcribed.get("agent", True), "transcript": transcribed.get("user", True)}
        inside = (torch.arange(K) < known).float()

        def counts(stream: str, there: bool = True) -> Tensor:
            return inside * (stream in targets and there)

        clips = ClipBatch(
            _pad(patchify(latents, config), K + 1),
            _pad(clip["audio"], K + 1),
            _pad(sound, K if self.store.hears else (lead + K) * SAMPLES_PER_UNIT),
            torch.full((K,), microphone),
            nothing if shown is None or not camera else _pad(shown, len(nothing)),
            torch.full((K,), camera),
            _pad(user_text, K),
            _pad(lanes, K),
            torch.full((K,), heard["response"]),  # speech without known words is speech without shown text
            latest(
                torch.cat([told([*labels.get("before", ()), *between], self.text), spoken(before)]),
                config.cache.memory_tokens,
            ),
            self._sounds(number, first, K),
        )
        clips = ClipBatch(*(getattr(clips, field.name)[None] for field in dataclasses.fields(ClipBatch)))
        lane = torch.stack([counts(name, there) for name, there in heard.items()], dim=-1)
        recalled = torch.ones(1, K, dtype=torch.bool)
        return Example(clips, counts("video", seen)[None], counts("audio")[None], lane[None], recalled)

    def _sounds(self, number: int, first: int, units: int) -> Tensor:
        """Of a clip, of the unit before it and of that behind it."""
        known_KP = torch.from_numpy(self.sounds(number)[max(0, first - 1) : first + units + 1])
        missing = 1 if first == 0 else 0
        return F.pad(known_KP, (0, 0, missing, units + 2 - missing - len(known_KP)), value=UNKNOWN)

    def busiest(self, number: int) -> int:
        """The first unit of the clip of a conversation in which the agent says most."""
        words_K = (self.lanes(number)[1][..., LANES.index("response")] > HOLD).sum(1)
        return int(np.convolve(words_K, np.ones(self.units, int))[self.units - 1 : len(words_K)].argmax())

    def _unseen(self, units: int) -> Tensor:
        """What takes the place of the user's pictures while the camera is off."""
        perception = self.config.perception
        if self.store.sees:
            rows, columns = perception.video_grid
            return torch.zeros(units, perception.video_ticks * rows * columns, perception.video_features)
        size = (perception.video_height, perception.video_width, 3)
        return torch.full((units * FRAMES_PER_UNIT, *size), 128, dtype=torch.uint8)

    def _latent_size(self) -> tuple[int, int, int]:
        vae = self.config.video_vae
        return vae.latent_channels, vae.latent_height, vae.latent_width

    def _read_lanes(self, number: int, typed: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """What is typed in a conversation and what is said, as `conversation_lanes` gives it."""
        labels = self.store.labels[number]
        user_text, lanes = conversation_lanes(labels, self.config.text, self.text, typed)
        idle = [lane for lane, name in enumerate(LANES) if name not in labels.get("targets", LANES)]
        lanes[..., idle] = SILENCE  # what the model is not to write, it must not read either
        return user_text, lanes


def _pad(x: Tensor, length: int) -> Tensor:
    """Zeros behind the first axis. Zero is silence for sound, latents and text alike."""
    return F.pad(x, (0, 0) * (x.ndim - 1) + (0, length - len(x)))
