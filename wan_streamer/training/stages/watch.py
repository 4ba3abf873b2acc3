"""The model on its own, live, with the user's side of held-out clips: what a run has learned, to look at and hear.

`act`          one clip, unit by unit, with the calls of a session
`write_acts`   a sheet of pictures and spectrograms, a WAV and the captions, the truth beside the model's
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
from wan_streamer.codecs.video_vae import VideoVAE, video_to_frames
from wan_streamer.flow.sampler import draw_unit
from wan_streamer.model.layout import LANES, Latents
from wan_streamer.model.streamer import ClipBatch, Streamer
from wan_streamer.training.stages.samples import mel_sheet, pair_sheet, stack_images, write_png, write_wav
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_UNIT

CHUNK_UNITS = 4  # decoded at once


@dataclass(frozen=True)
class Act:
    """What the agent does in K units: latents video [K, N, P] and audio [K, 4, C], tokens int64 [K, S, lanes]."""

    latents: Latents
    slot_KSL: Tensor


@torch.no_grad()
def act(streamer: Streamer, clips: ClipBatch, seed: int = 0) -> Act:
    """The agent's side of the first row of `clips`: the likeliest tokens, and latents drawn with a generator of `seed`.

    The user's side and the latents before the clip are those of the data; nothing else of the agent's is.
    """
    generator, live, device = torch.Generator().manual_seed(seed), streamer.open(), streamer.place.device
    clips = ClipBatch(**{name: value[0].to(device) for name, value in vars(clips).items()})
    last = Latents(clips.video_BKNP[0], clips.audio_BKTC[0])
    past: list[Latents] = []
    slots: list[Tensor] = []
    for k in range(len(clips.microphone_BK)):
        sound = clips.user_audio_BT[k * SAMPLES_PER_UNIT : (k + 1) * SAMPLES_PER_UNIT]
        frames = clips.user_video[k * FRAMES_PER_UNIT : (k + 1) * FRAMES_PER_UNIT]
        logits_LV = streamer.observe(
            live,
            last,
            sound if clips.microphone_BK[k] else None,
            frames if clips.camera_BK[k] else None,
            clips.user_text_BKS[k],
        )
        for slot in range(streamer.config.text.slots):
            slots.append(logits_LV.argmax(-1))
            logits_LV = streamer.speak(live, slot, slots[-1])
        last = draw_unit(lambda z, tau: streamer.velocity(live, z, tau), last, streamer.config.flow, generator)
        past.append(last)
    latents = Latents(*(torch.stack(z).cpu() for z in zip(*past, strict=True)))
    return Act(latents, torch.stack(slots).unflatten(0, (len(past), -1)).cpu())


@torch.no_grad()
def decode(streamer: Streamer, audio_vae: AudioVAE, video_vae: VideoVAE, latents: Latents) -> tuple[np.ndarray, ...]:
    """Sound float32 [T] and frames uint8 [4 K, H, W, 3] of K units."""
    audio_T = audio_vae.decode(latents.audio.flatten(0, 1)[None])[0][0]
    films, state = [], None
    for chunk_KNP in latents.video.split(CHUNK_UNITS):
        chunk_BTCHW = streamer.unpatchify(chunk_KNP)[None].to(video_vae.stats.mean_C.dtype)
        film, state = video_vae.decode(chunk_BTCHW, state)
        films.append(video_to_frames(film)[0])
    return audio_T.clamp(-1, 1).numpy(), torch.cat(films).numpy()


def write_acts(
    streamer: Streamer,
    audio_vae: AudioVAE,
    video_vae: VideoVAE,
    text: TextCodec,
    clips: Sequence[ClipBatch],
    stem: Path,
) -> None:
    """`stem`.png, .wav and .txt: of every clip the truth, as the codecs give it back, and then the model."""
    video_vae = copy.deepcopy(video_vae).bfloat16().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, sounds, lines = [], [], []  # in bfloat16, as in a session: it takes a third of the time
    for clip in clips:
        truth = Act(Latents(clip.video_BKNP[0, 1:], clip.audio_BKTC[0, 1:]), clip.slot_BKSL[0])
        acts = {"true": truth, "model": act(streamer, clip)}
        made = [decode(streamer, audio_vae, video_vae, done.latents) for done in acts.values()]
        images += [pair_sheet([film for _, film in made]), mel_sheet([sound for sound, _ in made])]
        sounds += [sound for sound, _ in made]
        typed = text.decode(clip.user_text_BKS.flatten().tolist())
        lines += [f"user typed: {typed}"] if typed else []
        for whose, done in acts.items():
            for lane, name in enumerate(LANES):
                lines.append(f"{whose} {name}: {text.decode(done.slot_KSL[..., lane].flatten().tolist())}")
        lines.append("")
    write_png(stack_images(images), stem.with_suffix(".png"))
    write_wav(sounds, stem.with_suffix(".wav"))
    stem.with_suffix(".txt").write_text("\n".join(lines), encoding="utf-8")
