"""Stage `voice`: small networks learn which sounds the agent's words have, when they begin, and how they sound.

`VoiceStage`   stretches of what is said, on which the voice goes on from its own
`train_voice`  the whole run

What is chosen and what is guessed becomes the past of the next, as live: a voice that has only ever gone on from true
speech loses its place as soon as it goes on from its own. Words are mostly learned from sentences that are made of
them anew, so that none is known by those around it.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.codecs.folder import codec_hash
from wan_streamer.config import VoiceConfig
from wan_streamer.data.latents import LatentStore
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.pretrained import Weights, find_checkpoint, grown, load_weights, save_weights
from wan_streamer.speaking.sounds import MIDDLE, QUIET, SOUNDS_PER_TICK, UNKNOWN
from wan_streamer.speaking.voice import OFFSETS, Voice
from wan_streamer.training.codecs.samples import mel_sheet, write_png, write_wav
from wan_streamer.training.loop.alone import AloneOptions, train_alone
from wan_streamer.training.loop.stage import Stage, TrainConfig
from wan_streamer.training.voice.place import Place
from wan_streamer.training.voice.stretches import Spoken, Stretch, Stretches
from wan_streamer.units import TICKS_PER_UNIT

FOLDER = "agent"
"""Where a run writes the agent with its new voice."""
UNITS = 6  # of a stretch
MADE = 0.6  # share of the rows in which the words are put together anew
GIVEN = 0.2  # share of the training in which sounds follow the true ones
WRONG = 0.1  # of the sounds before a stretch that are others, in every second step
FORESEEN = 0.7  # share of the rows in which it is told the sounds of the unit behind
UNTOLD = 0.05  # share of the rows whose voice is not told its sounds
BLUR = 0.2  # deviation of the noise on the voice that it goes on from; that of the latents is 1
LOOKED_AT = 24  # held-out conversations
SHOWN, SHOWN_UNITS = 3, 25  # of those in samples


class VoiceStage(Stage):
    """folder  encoded conversations, with `train` and `valid`;  start  folder of the agent whose voice learns

    Raises `DataError` for conversations without phonemes or of other codecs.
    """

    name = "voice"

    def __init__(self, folder: Path, start: Path, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.weights = config, with_voice(load_weights(start))
        voice = self.weights.streamer.voice
        assert voice is not None
        self.voice: Voice = voice.float().train().requires_grad_(True)
        self.models: dict[str, nn.Module] = {"voice": self.voice}
        streamer, text = self.weights.streamer, self.weights.text
        fingerprint = codec_hash(self.weights.audio_vae, self.weights.video_vae)
        self.train_part, self.valid_part = (
            Stretches(LatentStore(Path(folder) / split, fingerprint), streamer.config, voice.config, text)
            for split in ("train", "valid")
        )

        self.voice.longer_V[: len(self.train_part.longer_V)] = self.train_part.longer_V

    def is_hidden(self, name: str, p: nn.Parameter) -> bool:
        return p.ndim == 2 and (".steps." in name or name.endswith("inner.weight"))

    def batch(self, step: int, rows: range) -> Stretch:
        return self.train_part.rows(self.config.seed, step, rows, UNITS, MADE)

    def loss(self, batch: Stretch, step: int, noise: RowNoise) -> tuple[Tensor, Mapping[str, Tensor]]:
        words, ticks, sounds, audio, heard = (self.move(part) for part in batch)
        shape = tuple(batch.ticks_RUT.shape)
        other = (noise.uniform(shape) * self.voice.config.sounds).long()
        wrong = (noise.uniform(shape) < WRONG) & (step % 2 == 1)
        untold = self.move(noise.uniform((shape[0], 1, 1)) < UNTOLD)
        past = torch.where(self.move(wrong), self.move(other), ticks)
        told = past[:, : self.voice.config.sound_units]
        chosen, right = self._choosing(words, told, ticks, own=step >= GIVEN * self.config.steps)
        timed = self._timing(ticks, sounds)
        blur = self.move(noise.normal((shape[0], UNITS, *batch.audio_RUTC.shape[2:])) * BLUR)
        foreseen = self.move(noise.uniform((shape[0], 1)) < FORESEEN)
        guessed = self._guessing(
            torch.where(untold, UNKNOWN, sounds)[heard], audio[heard], blur[heard], foreseen[heard]
        )
        parts = {"sounds": chosen, "sounds_right": right, "begins": timed, "voice": guessed}
        return chosen + timed + guessed, {name: part.detach() for name, part in parts.items()}

    def _choosing(self, words: Tensor, past: Tensor, sounds: Tensor, own: bool) -> tuple[Tensor, Tensor]:
        """Cross-entropy of what is due in every tick and the share of it that is right, of what is not quiet.

        past  sounds before the stretch, as they are told;   own  go on from what is chosen, else from what is true
        """
        seen, voice = self.voice.config.sound_units, self.voice
        place = Place(sounds.flatten(1), seen * TICKS_PER_UNIT)
        errors, right = [], []
        for unit in range(sounds.shape[1] - seen):
            with self.autocast():
                read = voice.read(words[:, unit : unit + voice.config.word_units], past)
            before, said = past[:, -1, -1], []
            for tick in range(TICKS_PER_UNIT):
                due = place.due((seen + unit) * TICKS_PER_UNIT + tick)
                with self.autocast():
                    logits = voice.logits(read, tick, before)
                errors.append(F.cross_entropy(logits, due, ignore_index=UNKNOWN))
                before = logits.argmax(-1)
                right.append((before == due)[due > QUIET])
                before = before if own else sounds[:, seen + unit, tick]
                place.says(before)
                said.append(before)
            past = torch.cat([past[:, 1:], torch.stack(said, dim=1)[:, None]], dim=1)
        return torch.stack(errors).nan_to_num().mean(), torch.cat(right).float().mean()

    def _timing(self, ticks: Tensor, sounds: Tensor) -> Tensor:
        """Cross-entropy of where in their ticks the true sounds begin."""
        seen, errors = self.voice.config.sound_units, []
        for unit in range(seen, ticks.shape[1]):
            begin = begins(sounds[:, unit - 1 : unit + 1].flatten(1), ticks[:, unit - 1 : unit + 1].flatten(1))
            with self.autocast():
                logits = self.voice.begins(sounds[:, unit - seen : unit], ticks[:, unit])
            errors.append(F.cross_entropy(logits.flatten(0, 1), begin.flatten(), ignore_index=UNKNOWN))
        return torch.stack(errors).nan_to_num().mean()

    def _guessing(self, sounds: Tensor, audio: Tensor, blur: Tensor, foreseen: Tensor) -> Tensor:
        """Squared error of the voice that goes on from itself, told the true sounds; `foreseen`, those to come, too."""
        if not len(audio):
            return audio.sum()
        seen, past = self.voice.config.sound_units, self.voice.config.past_units
        before, errors = audio[:, :past], []
        for unit in range(audio.shape[1] - past):
            with self.autocast():
                following = torch.where(foreseen, sounds[:, unit + 1 + seen], UNKNOWN)
                guess = self.voice.guess(sounds[:, unit + 1 : unit + 1 + seen], before, following)
            errors.append(F.mse_loss(guess, audio[:, past + unit]))
            before = torch.cat([before[:, 1:], (guess + blur[:, unit])[:, None]], dim=1)
        return torch.stack(errors).mean()

    def validate(self) -> dict[str, float]:
        """Of held-out conversations, by itself: `sounds_right` of the ticks, `sounds_wrong` errors of insertion,
        deletion and exchange for each sound, `voice` squared error of the latents with the true sounds told.
        """
        right, errors, count, squared = [], 0, 0, []
        for spoken in self.valid_part.spoken[:LOOKED_AT]:
            sounds = self.pronounce(spoken)
            due = spoken.ticks_UT.flatten()
            right.append((sounds[:, MIDDLE::SOUNDS_PER_TICK].flatten() == due)[due > QUIET])
            errors += distance(collapsed(sounds), collapsed(spoken.ticks_UT))
            count += len(collapsed(spoken.ticks_UT))
            assert spoken.audio_UTC is not None
            squared.append(F.mse_loss(self.say(spoken.sounds_UP), spoken.audio_UTC.float()).item())
        scores = {"sounds_right": torch.cat(right).float().mean().item(), "sounds_wrong": errors / max(1, count)}
        return {"loss": float(np.mean(squared)) + scores["sounds_wrong"], **scores, "voice": float(np.mean(squared))}

    @torch.no_grad()
    def pronounce(self, spoken: Spoken) -> Tensor:
        """The sounds [U, 16] that the voice chooses for the words of a conversation, after its own."""
        speech, chosen = self.voice.begin(), []
        for words_S in spoken.words_US.to(self.device):
            speech = speech.heard(speech.audio_UTC[-1])
            for slot, token in enumerate(words_S):
                speech = speech.written(slot, token)
            chosen.append(self.voice.choose(speech.words_US, speech.sounds_UP))
            speech = speech.sounding(chosen[-1])
        return torch.stack(chosen).cpu()

    @torch.no_grad()
    def say(self, sounds_UP: Tensor) -> Tensor:
        """Latents [U, 4, C] of sounds [U, 16], after its own."""
        speech, said = self.voice.begin(), []
        sounds_UP = F.pad(sounds_UP.to(self.device), (0, 0, 0, 1), value=UNKNOWN)
        for sounds_P, following_P in pairwise(sounds_UP):
            speech = speech.sounding(sounds_P)
            said.append(self.voice.guess(speech.sounds_UP, speech.audio_UTC, following_P))
            speech = speech.heard(said[-1])
        return torch.stack(said).cpu()

    def write_samples(self, stem: Path) -> dict[str, float]:
        """Of held-out conversations: from the codec, of the voice with the true sounds, and with those it chooses."""
        takes = []
        for spoken in self.valid_part.spoken[:SHOWN]:
            assert spoken.audio_UTC is not None
            audio_UTC = spoken.audio_UTC[:SHOWN_UNITS]
            words_US, ticks_UT, sounds_UP = (x[:SHOWN_UNITS] for x in spoken[:3])
            part = Spoken(words_US, ticks_UT, sounds_UP, audio_UTC)
            takes += [audio_UTC.float(), self.say(part.sounds_UP), self.say(self.pronounce(part))]
        with torch.no_grad():
            sounds = [self.weights.audio_vae.decode(take.flatten(0, 1)[None])[0][0].numpy() for take in takes]
        longest = max(map(len, sounds))
        write_png(mel_sheet([np.pad(sound, (0, longest - len(sound))) for sound in sounds]), stem.with_suffix(".png"))
        write_wav(sounds, stem.with_suffix(".wav"))
        return {}

    def export(self, out_dir: Path) -> None:
        nn.init.zeros_(self.weights.streamer.audio_out.weight)  # it was learned for another guess
        nn.init.zeros_(self.weights.streamer.audio_out.bias)
        save_weights(self.weights, out_dir / FOLDER)


def with_voice(weights: Weights) -> Weights:
    """The agent, with a fresh voice if it has none."""
    if weights.streamer.voice is not None:
        return weights
    return grown(weights, replace(weights.config, voice=VoiceConfig()))


def begins(sounds_RP: Tensor, ticks_RT: Tensor) -> Tensor:
    """[R, 4]: which of `OFFSETS` the sounds of the second of two units begin with; `UNKNOWN` where none begins."""
    first = ticks_RT.shape[1] // 2
    parts = sounds_RP[:, SOUNDS_PER_TICK * first + OFFSETS[0] :].unfold(1, len(OFFSETS), SOUNDS_PER_TICK)
    left, right = (ticks_RT[:, first + shift : first + shift + first, None] for shift in (-1, 0))
    before, after = (parts == left).long(), parts == right
    begun = torch.cat([before, torch.zeros_like(before[..., :1])], dim=-1).argmin(-1)  # the first that is not before
    known = (before.bool() | after).all(-1) & (left != right)[..., 0] & (left >= 0)[..., 0] & (right >= 0)[..., 0]
    return torch.where(known, begun.clamp(max=len(OFFSETS) - 1), UNKNOWN)


def collapsed(sounds_UT: Tensor) -> list[int]:
    """Each sound once, however long, and none that is quiet."""
    return [sound for sound, _ in groupby(sounds_UT.flatten().tolist()) if sound > QUIET]


def distance(left: list[int], right: list[int]) -> int:
    """Levenshtein's."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        corner, row[0] = row[0], i
        for j, b in enumerate(right, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1]


CONFIG = TrainConfig(
    steps=8000,
    lr=1.5e-3,
    muon_lr=5e-3,
    batch=192,
    warmup=100,
    ema=0.995,
    weight_decay=0.03,
    log_every=20,
    validate_every=500,
    save_every=250,
)


def train_voice(
    folder: str | Path, start: str | Path, out_dir: str | Path, options: AloneOptions = AloneOptions()
) -> dict[str, float]:
    """Train the voice of the agent `start` on the conversations in `folder`; the agent is written to `out_dir`/agent.

    Returns the last validation. Raises `ConfigError`, `DataError`, `CheckpointError`, `TrainingError`.
    """
    agent = find_checkpoint(str(start))
    return train_alone(lambda config: VoiceStage(Path(folder), agent, config), CONFIG, out_dir, options)
