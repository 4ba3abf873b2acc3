"""A model on its own over the user's side of a clip, unit by unit, as in a session."""

from collections.abc import Callable

import torch
from torch import Tensor

from wan_streamer.flow.joint import stack
from wan_streamer.flow.live import UserInput, live_unit
from wan_streamer.flow.solver import Velocity
from wan_streamer.model.layout import ClipBatch, Latents
from wan_streamer.model.memory import PADDING, readable
from wan_streamer.model.streamer import Streamer


@torch.no_grad()
def roll_out(
    streamer: Streamer,
    clips: ClipBatch,
    row: int,
    pick: Callable[[Tensor], Tensor],
    draw: Callable[[int, Velocity, Latents], Latents],
    written_K: list[bool],
    told: bool = False,
) -> tuple[Tensor, Latents]:
    """Tokens [K, S, lanes] and latents [K, ...] of one row of `clips`.

    pick  tokens of a slot from their logits;   draw  latents of unit k;   both as in `live_unit`
    told  the sounds of speech are those of the clip, as where its words are given

    The user's side, the memory and the latents before the clip are those of the data.
    """
    microphone, camera = (flags_BK[row].tolist() for flags_BK in (clips.microphone_BK, clips.camera_BK))
    written_B = torch.tensor([all(written_K)], device=clips.memory_BM2.device)
    memory_N2 = readable(clips.memory_BM2[row : row + 1], written_B)[0]
    live = streamer.open(memory_N2[memory_N2[:, 0] != PADDING])
    K, lead = len(microphone), streamer.config.perception.lead_units
    before_LT, audio_KT = clips.user_audio[row].unflatten(0, (lead + K, -1)).split([lead, K])
    if lead:
        _, live.hearing = streamer.hearing(before_LT.flatten()[None])
    frames_THWC = clips.user_video[row]
    shown = frames_THWC.unflatten(0, (K, -1)) if len(frames_THWC) else [None] * K
    last = Latents(clips.video_BKNP[row, 0], clips.audio_BKTC[row, 0])
    if live.speech is not None:
        live.speech = live.speech.sounding(clips.sound_BKP[row, 0])
    units = []
    for k in range(K):
        audio, frames = audio_KT[k] if microphone[k] else None, shown[k] if camera[k] else None
        user = UserInput(audio, frames, clips.user_text_BKS[row, k])
        told_2P = clips.sound_BKP[row, k + 1 : k + 3] if told else None

        def draw_unit(velocity: Velocity, last: Latents, k: int = k, told_2P: Tensor | None = told_2P) -> Latents:
            if told_2P is not None and live.speech is not None and streamer.voice is not None:
                live.speech, live.guessed = streamer.voice.say_instead(live.speech, *told_2P)
            return draw(k, velocity, last)

        units.append(live_unit(streamer, live, last, user, pick, draw_unit, written_K[k]))
        last = units[-1][1]
    tokens, latents = zip(*units, strict=True)
    return torch.stack(tokens), stack(latents)
