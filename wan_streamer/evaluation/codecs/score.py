"""Quality of the two codecs on data that neither has seen: what their round trip costs.

`score_codecs`   the whole table;   `score_audio`, `score_video`  one part of it

audio   word error of a recogniser and predicted opinion score (MOS) of the original and of the round trip
video   PSNR, SSIM, PSNR around the mouth; does the mouth still open at the same time; do pictures jump between units
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.video_vae import VideoVAE, frames_to_video, video_to_frames
from wan_streamer.data.media import read_units
from wan_streamer.data.recordings.sources import PICTURE
from wan_streamer.data.shards import Episode, read_episodes
from wan_streamer.errors import DataError
from wan_streamer.evaluation.codecs import clips as speech
from wan_streamer.evaluation.codecs.clips import Clip
from wan_streamer.evaluation.readers.judges import MosPredictor, Recogniser, word_errors
from wan_streamer.evaluation.readers.pictures import (
    border_flicker,
    delayed_correlation,
    mouth_box,
    mouth_gap_track,
    mouth_shape_track,
    psnr,
    ssim,
)
from wan_streamer.evaluation.suite.pairs import letterbox
from wan_streamer.units import FRAMES_PER_UNIT

READERS = {"gap": mouth_gap_track, "shape": mouth_shape_track}
STILL = 0.02  # standard deviation of a true opening (0..1) below which the mouth rests
CHUNK = 4 * FRAMES_PER_UNIT  # frames that go through the codec at a time


def score_codecs(
    audio_vae: AudioVAE | None,
    video_vae: VideoVAE | None,
    data_dir: str | Path,
    *,
    count: int = 22,
    films: int = 8,
    frames: int = 200,
    seed: int = 0,
    voices: str | Path | None = None,
    human: str | Path | None = None,
    footage: str | Path | None = None,
    progress: Callable[[str, dict], None] = lambda name, scores: None,
) -> dict:
    """{"audio": {set: scores}, "video": {side: scores}}; a codec that is None is left out.

    data_dir  with `codec/voice_cache`, to which the agent's sentences are added, and test shards in `sim/test`
    count     clips of each set of voices;   films, frames  how many films of each side and how much of each
    voices    a folder of recordings of unseen voices (`wav_clips`);   human  a root for `human_clips`
    footage   a folder of films of anything, scored one by one (`score_footage`)
    progress  called with every set of voices when it is done

    Raises `ConfigError` or `ImportError` if a judge is missing, `DataError` if data is.
    """
    data = Path(data_dir)
    report: dict[str, dict] = {}
    if audio_vae is not None:
        sets: dict[str, Iterator[Clip]] = {
            "agent": speech.agent_clips(data / "codec" / "voice_cache", seed, count),
            "espeak": speech.clear_clips(seed, count),
            "espeak_hard": speech.espeak_clips(seed, count),
        }
        if voices is not None:
            sets["voices"] = speech.wav_clips(voices, count)
        if human is not None:
            with_text: list[Clip] = []
            without_text: list[Clip] = []
            for clip in speech.human_clips(human, count):
                (without_text if clip.text is None else with_text).append(clip)
            sets |= {"human": iter(with_text), "human_prompts": iter(without_text)}
        recognise, predict = Recogniser(), MosPredictor()
        report["audio"] = {}
        for name, clips in sets.items():
            report["audio"][name] = score_audio(audio_vae.reconstruct, clips, recognise, predict)
            progress(name, report["audio"][name])
    if video_vae is not None:
        report["video"] = score_video(video_vae, read_episodes(data / "sim" / "test"), films, frames)
        if footage is not None:
            report["footage"] = score_footage(video_vae, footage, frames)
    return report


def score_audio(
    round_trip: Callable[[np.ndarray], np.ndarray],
    clips: Iterable[Clip],
    recognise: Callable[[np.ndarray], str],
    predict: Callable[[np.ndarray], float],
) -> dict[str, float]:
    """Word error in % (errors of all clips over words of all clips) and MOS, before and after the round trip.

    A clip without a text is compared with what the recogniser hears in the original, whose error is then 0.
    """
    errors, words, number, seconds = np.zeros(2), 0, 0, 0.0
    opinions: list[tuple[float, float]] = []
    for clip in clips:
        rebuilt_T = round_trip(clip.audio_T)
        heard = recognise(clip.audio_T)
        text = heard if clip.text is None else clip.text
        pair = [word_errors(text, heard), word_errors(text, recognise(rebuilt_T))]
        errors += [pair[0][0], pair[1][0]]
        words += pair[0][1]
        opinions.append((predict(clip.audio_T), predict(rebuilt_T)))
        number, seconds = number + 1, seconds + len(clip.audio_T) / 24_000
    before, after = errors / max(1, words) * 100
    mos_before, mos_after = np.mean(opinions, axis=0) if opinions else (float("nan"),) * 2
    row = {
        "wer_original": before, "wer_round_trip": after, "wer_points": after - before, "mos_original": mos_before,
        "mos_round_trip": mos_after, "mos_drop": mos_before - mos_after, "seconds": seconds,
    }  # fmt: skip
    return {key: round(float(value), 3) for key, value in row.items()} | {"clips": number, "words": words}


def score_video(video_vae: VideoVAE, episodes: Iterable[Episode], films: int, frames: int) -> dict[str, dict]:
    """Scores of the agent's films and of others', averaged over films.

    gap_kept, gap_delay      correlation of `mouth_gap_track` before and after the round trip; delay in frames
    gap_truth_original, gap_truth_round_trip   the same track against the simulator's truth
    shape_...                the same for `mouth_shape_track`, which is meant for the agent
    flicker_original, flicker_round_trip       `border_flicker`

    Films in which the mouth rests say nothing about mouths and have no gap and shape.
    """
    rows: dict[str, list[dict[str, float]]] = {"agent": [], "other": []}
    for episode in episodes:
        sides = {"agent": (episode.agent_video, "agent"), "other": (episode.user_video, "user")}
        for side, (video, label) in sides.items():
            if video is not None and len(rows[side]) < films:
                length = min(frames, len(video)) // FRAMES_PER_UNIT * FRAMES_PER_UNIT
                truth_T = np.asarray(episode.labels["mouth_open"][label][:length])
                rows[side].append(score_film(video_vae, video[:length], truth_T))
        if all(len(done) >= films for done in rows.values()):
            break
    return {side: _mean(done) for side, done in rows.items() if done}


def score_film(video_vae: VideoVAE, film_THWC: np.ndarray, truth_T: np.ndarray) -> dict[str, float]:
    rebuilt_THWC = rebuild(video_vae, film_THWC)
    row = {
        "psnr": psnr(film_THWC, rebuilt_THWC),
        "ssim": ssim(film_THWC, rebuilt_THWC),
        "mouth_psnr": psnr(film_THWC, rebuilt_THWC, mouth_box(*film_THWC.shape[1:3])),
        "flicker_original": border_flicker(film_THWC),
        "flicker_round_trip": border_flicker(rebuilt_THWC),
    }
    if truth_T.std() > STILL:
        for name, read in READERS.items():
            before_T, after_T = read(film_THWC), read(rebuilt_THWC)
            row[f"{name}_kept"], row[f"{name}_delay"] = delayed_correlation(after_T, before_T)
            row[f"{name}_truth_original"] = delayed_correlation(before_T, truth_T)[0]
            row[f"{name}_truth_round_trip"] = delayed_correlation(after_T, truth_T)[0]
    return row


def score_footage(video_vae: VideoVAE, folder: str | Path, frames: int) -> dict[str, dict]:
    """PSNR, SSIM and flicker of the first `frames` frames of every film in a folder, scaled to fit 192 x 336.

    Raises `DataError` if there is none.
    """
    rows = {}
    for path in sorted(path for path in Path(folder).iterdir() if path.suffix in PICTURE):
        with read_units(path) as reader:
            units = itertools.islice(reader, frames // FRAMES_PER_UNIT)
            film_THWC = np.concatenate([letterbox(unit.video) for unit in units if unit.video is not None])
        rebuilt_THWC = rebuild(video_vae, film_THWC)
        rows[path.stem] = {
            "psnr": round(psnr(film_THWC, rebuilt_THWC), 2),
            "ssim": round(ssim(film_THWC, rebuilt_THWC), 4),
            "flicker_original": round(border_flicker(film_THWC), 3),
            "flicker_round_trip": round(border_flicker(rebuilt_THWC), 3),
            "frames": len(film_THWC),
        }
    if not rows:
        raise DataError(f"{folder}: expected films ({', '.join(sorted(PICTURE))}), found none")
    return rows


@torch.inference_mode()
def rebuild(video_vae: VideoVAE, film_THWC: np.ndarray) -> np.ndarray:
    """The round trip as it streams, some units at a time, latents in the codec's own type; the same shape."""
    like, parts = video_vae.stats.mean_C, []
    encoder_state = decoder_state = None
    for start in range(0, len(film_THWC), CHUNK):
        frames = torch.from_numpy(np.ascontiguousarray(film_THWC[None, start : start + CHUNK]))
        latent, encoder_state = video_vae.encode(frames_to_video(frames, like.device).to(like.dtype), encoder_state)
        video, decoder_state = video_vae.decode(latent.to(like.dtype), decoder_state)
        parts.append(video_to_frames(video)[0].cpu().numpy())
    return np.concatenate(parts)


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every column over the rows that have it, and the number of rows."""
    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    means = {name: round(float(np.mean([row[name] for row in rows if name in row])), 4) for name in names}
    return means | {"films": len(rows)}
