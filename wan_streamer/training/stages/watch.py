"""The model on its own with the user's side of held-out clips: what a run has learned, to look at and hear.

`Take`          what the agent says and does in a clip, as it is or as a model plays it
`write_takes`   a sheet of pictures and spectrograms, a WAV and the captions, the truth beside the model's
`write_heard`   what it writes down of speech, likewise
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.text import TextCodec
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.config import StreamerConfig
from wan_streamer.device import working_dtype
from wan_streamer.flow.live import UnitDecoder
from wan_streamer.flow.sampler import TokenSampler, draw_unit
from wan_streamer.model.layout import LANES, ClipBatch, Latents
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.codecs.samples import mel_sheet, pair_sheet, stack_images, write_png, write_wav
from wan_streamer.training.ears.score import normal_words, words_wrong
from wan_streamer.training.stages.rollout import roll_out

CHUNK_UNITS = 4  # decoded at once


@dataclass(frozen=True)
class Take:
    """K units of the agent: latents video [K, N, P] and audio [K, 4, C], tokens int64 [K, S, lanes]."""

    latents: Latents
    slot_KSL: Tensor


def play(streamer: Streamer, config: StreamerConfig, clips: ClipBatch, seed: int = 0, drawn: bool = True) -> Take:
    """The model's take of the first row of `clips`, with the settings of `config` and noise of `seed`, as served.

    drawn  False: sound and pictures stay what they were before the clip
    """
    generator = torch.Generator().manual_seed(seed)
    clips = ClipBatch(**{name: value[:1].to(streamer.device) for name, value in vars(clips).items()})
    slot_KSL, latents = roll_out(
        streamer,
        clips,
        row=0,
        pick=TokenSampler(config.text, generator),
        draw=lambda k, velocity, last: draw_unit(velocity, last, config.flow, generator) if drawn else last,
        written_K=[True] * clips.microphone_BK.shape[1],
    )
    return Take(Latents(*(z.cpu() for z in latents)), slot_KSL.cpu())


def decode(
    config: StreamerConfig, audio_vae: AudioVAE, video_vae: VideoVAE, latents: Latents
) -> tuple[np.ndarray, np.ndarray]:
    """Sound float32 [T] and frames uint8 [4 K, H, W, 3] of K units."""
    decoder = UnitDecoder(config, audio_vae, video_vae)
    chunks = zip(*(z.split(CHUNK_UNITS) for z in latents), strict=True)
    sounds, films = zip(*(decoder.decode(Latents(*chunk)) for chunk in chunks), strict=True)
    return np.concatenate(sounds), np.concatenate(films)


def write_takes(
    streamer: Streamer,
    config: StreamerConfig,
    audio_vae: AudioVAE,
    video_vae: VideoVAE,
    text: TextCodec,
    clips: Sequence[ClipBatch],
    stem: Path,
) -> None:
    """`stem`.png, .wav and .txt: of every clip the truth, as the codecs give it back, and then the model.

    config  what the model would be served with
    """
    dtype = working_dtype(streamer.device)  # as in a session
    video_vae = copy.deepcopy(video_vae).to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, sounds, lines = [], [], []
    for clip in clips:
        truth = Take(Latents(clip.video_BKNP[0, 1:], clip.audio_BKTC[0, 1:]), clip.slot_BKSL[0])
        takes = {"true": truth, "model": play(streamer, config, clip)}
        made = [decode(config, audio_vae, video_vae, take.latents) for take in takes.values()]
        images += [pair_sheet([film for _, film in made]), mel_sheet([sound for sound, _ in made])]
        sounds += [sound for sound, _ in made]
        typed = text.decode(clip.user_text_BKS.flatten().tolist())
        lines += [f"user typed: {typed}"] if typed else []
        for whose, take in takes.items():
            for lane, name in enumerate(LANES):
                lines.append(f"{whose} {name}: {text.decode(take.slot_KSL[..., lane].flatten().tolist())}")
        lines.append("")
    write_png(stack_images(images), stem.with_suffix(".png"))
    write_wav(sounds, stem.with_suffix(".wav"))
    stem.with_suffix(".txt").write_text("\n".join(lines), encoding="utf-8")


def write_heard(
    streamer: Streamer, config: StreamerConfig, text: TextCodec, clips: Sequence[ClipBatch], stem: Path
) -> dict[str, float]:
    """`stem`-heard.txt: of every clip what was said, and what the model has written down by itself; it draws nothing.

    Returns `words_wrong`: the share of words that it gets wrong, leaves out or makes up.
    """
    lane, lines, wrong, said = LANES.index("transcript"), [], 0, 0
    for clip in clips:
        taken = play(streamer, config, clip, drawn=False).slot_KSL
        true, heard = (text.decode(slot_KSL[..., lane].flatten().tolist()) for slot_KSL in (clip.slot_BKSL[0], taken))
        wrong += words_wrong(normal_words(true), normal_words(heard))
        said += len(normal_words(true))
        lines += [f"true:  {true}", f"model: {heard}", ""]
    Path(f"{stem}-heard.txt").write_text("\n".join(lines), encoding="utf-8")
    return {"words_wrong": wrong / max(1, said)}
