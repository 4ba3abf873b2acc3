"""What a room, a microphone and a call do to the user's voice.

`capture`  a clean voice -> what the other end hears, and what was done to it

The stages, in the order of the sound; each is a pure function and never delays the voice:

    `reverberate`     direct sound, a few reflections, a late tail; their ratio follows from the distance
    `acoustic_echo`   the agent's own voice out of the user's loudspeaker
    `background`      one kind of noise, see `noises`, or babble
    `drift`           level, and how it slowly changes
    `overdrive`       soft clipping
    `band_limit`      telephone, 8 kHz and 16 kHz devices
    `noise_floor`     the hiss of every line
    `opus_call`       an Opus round trip at 12 to 32 kbit/s
    `lose_packets`    holes of 20 to 80 ms, concealed by a fading repetition
"""

from fractions import Fraction
from typing import Any

import av
import numpy as np

from wan_streamer.errors import ShapeError
from wan_streamer.simulation.sound.noises import NOISES, Noise, coloured, fast_size, swell
from wan_streamer.units import SAMPLE_RATE

DEGRADED = 0.5  # share of the episodes at strength 1 that are more than a quiet room
PEAK = 0.97
NO_SPEECH_DBFS = -21.0  # what noise is measured against if the voice is silent
OPUS_DELAY = 156  # samples at 24 kHz: the 6.5 ms that the encoder looks ahead
PACKET = SAMPLE_RATE // 50
SNR = {  # decibels below the voice
    "white": (15, 32), "pink": (8, 28), "brown": (2, 22), "hum": (8, 28), "fan": (8, 26), "street": (3, 22),
    "keys": (14, 30), "babble": (12, 26),
}  # fmt: skip
CHANCES = {  # of each stage in a degraded episode
    "room": 0.6, "echo": 0.6, "noise": 0.7, "level": 0.6, "clipping": 0.15, "band": 0.15, "opus": 0.3, "loss": 0.25,
}  # fmt: skip
BANDS = {"telephone": (300.0, 3400.0), "8 kHz": (60.0, 3800.0), "16 kHz": (40.0, 7600.0)}

Done = dict[str, Any]


def capture(
    voice_T: np.ndarray,
    rng: np.random.Generator,
    echo_T: np.ndarray | None = None,
    strength: float = 1.0,
    babble: Noise | None = None,
) -> tuple[np.ndarray, dict]:
    """The voice as it arrives at the other end of a call: a pure function of its arguments.

    voice_T   float32 [T], the user's clean voice, mono, 24 kHz
    echo_T    float32 [T], what the user's loudspeaker plays (the agent's voice); None means headphones
    strength  0 leaves a quiet room and a noise floor, 1 degrades every second call, 2 every call
    babble    (samples, rng) -> float32 [samples], other people talking; None leaves this noise out

    Returns float32 [T] in step with `voice_T` (no stage delays it), peaks at most 0.97, and a dict for the labels:
    one entry for each thing that was done, with its amounts. Raises `ShapeError`.
    """
    _check("voice_T", voice_T)
    if echo_T is not None:
        _check("echo_T", echo_T)
        if len(echo_T) != len(voice_T):
            raise ShapeError(f"echo_T: expected as many samples as voice_T ({len(voice_T)}), got {len(echo_T)}")
    level = speech_rms(voice_T)
    degraded = bool(rng.random() < DEGRADED * strength)
    chosen = {name: bool(rng.random() < chance) for name, chance in CHANCES.items()}
    if not degraded:
        light = bool(rng.random() < 0.5)
        sound_T, done = light_room(voice_T, rng) if light else (voice_T, {})
    else:
        sound_T, done = reverberate(voice_T, rng) if chosen["room"] else (voice_T, {})
        if chosen["echo"] and echo_T is not None:
            sound_T, what = acoustic_echo(sound_T, echo_T, rng)
            done |= what
        if chosen["noise"]:
            sound_T, what = background(sound_T, level, rng, babble)
            done |= what
    for name, stage in STAGES.items():
        if name == "floor" or (degraded and chosen[name]):
            sound_T, what = stage(sound_T, rng)
            done |= what
    peak = float(np.abs(sound_T).max(initial=0.0))
    if peak > PEAK:
        sound_T = sound_T * np.float32(PEAK / peak)
    return sound_T.astype(np.float32, copy=False), {"degraded": degraded, **done}


def _check(name: str, audio_T: np.ndarray) -> None:
    if audio_T.ndim != 1 or audio_T.dtype != np.float32:
        raise ShapeError(f"{name}: expected float32 [T], got {audio_T.dtype} {list(audio_T.shape)}")


def _draw(rng: np.random.Generator, low: float, high: float, digits: int = 1) -> float:
    """A number as it is written into the labels."""
    return round(float(rng.uniform(low, high)), digits)


def _gain(decibels: float) -> np.float32:
    return np.float32(10 ** (decibels / 20))


def speech_rms(voice_T: np.ndarray) -> float:
    """RMS over the 20 ms blocks that carry speech."""
    blocks = voice_T[: len(voice_T) // PACKET * PACKET].reshape(-1, PACKET)
    power = np.einsum("ij,ij->i", blocks, blocks) / PACKET
    loud = power[power > power.max(initial=0.0) * 1e-3]
    return float(np.sqrt(loud.mean())) if len(loud) else float(_gain(NO_SPEECH_DBFS))


# ---------------------------------------------------------------- the room


def _filtered(audio_T: np.ndarray, response_T: np.ndarray) -> np.ndarray:
    """Linear convolution, cut to the length of `audio_T`."""
    size = fast_size(len(audio_T) + len(response_T))
    spectrum = np.fft.rfft(audio_T, size) * np.fft.rfft(response_T.astype(np.float32), size)
    return np.fft.irfft(spectrum, size)[: len(audio_T)].astype(np.float32, copy=False)


def _tail(seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Noise that falls by 60 dB in `seconds`, dull as rooms are, with energy 1; float32 [T]."""
    length = max(2, round(seconds * SAMPLE_RATE))
    white_T = rng.standard_normal(length + 1, np.float32)
    tail_T = (white_T[1:] + 0.6 * white_T[:-1]) * np.exp(np.linspace(0, -6.9, length)).astype(np.float32)
    return tail_T / np.sqrt(np.square(tail_T).sum())


def light_room(voice_T: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Done]:
    """A furnished room with the microphone near."""
    seconds, late_db = _draw(rng, 0.08, 0.3, 3), _draw(rng, -22, -10)
    response_T = _tail(seconds, rng) * _gain(late_db)
    response_T[0] = 1.0
    return _filtered(voice_T, response_T), {"room": {"seconds": seconds, "late_db": late_db}}


def reverberate(voice_T: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Done]:
    """A room of 25 to 150 m³ with the speaker 0.3 to 2 m away from the microphone.

    Late energy equals direct energy at the critical distance 0.057 * sqrt(volume / reverberation time) metres
    (Kuttruff, Room Acoustics) and grows with the square of the distance. The direct sound keeps its level.
    """
    seconds, volume = _draw(rng, 0.15, 0.6, 2), _draw(rng, 25, 150, 0)
    distance = round(float(np.exp(rng.uniform(np.log(0.3), np.log(2.0)))), 2)
    late_db = round(min(4.0, 20 * float(np.log10(distance / (0.057 * np.sqrt(volume / seconds))))), 1)
    response_T = np.zeros(round((seconds + 0.012) * SAMPLE_RATE) + 2, np.float32)
    late_T = _tail(seconds, rng) * _gain(late_db)
    start = round(0.008 * SAMPLE_RATE)
    response_T[start : start + len(late_T)] = late_T
    for _ in range(6):  # table, walls, ceiling: longer ways are weaker
        way = rng.uniform(0.3, 4.0)
        response_T[round(way / 343 * SAMPLE_RATE)] += rng.choice([-1, 1]) * 0.6 * distance / (distance + way)
    response_T[0] = 1.0
    return _filtered(voice_T, response_T), {"room": {"seconds": seconds, "late_db": late_db, "distance": distance}}


def acoustic_echo(sound_T: np.ndarray, echo_T: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Done]:
    """Add the loudspeaker's sound: late, thin, and what an echo canceller leaves of it."""
    delay_ms, db = _draw(rng, 40, 250, 0), _draw(rng, -45, -25)
    response_T = np.zeros(round(delay_ms / 1000 * SAMPLE_RATE) + round(0.15 * SAMPLE_RATE), np.float32)
    tail_T = _tail(0.15, rng)
    tail_T[0] = 1.0
    response_T[-len(tail_T) :] = np.diff(tail_T, prepend=np.float32(0))  # a small loudspeaker has no bass
    response_T *= _gain(db) / np.sqrt(np.square(response_T).sum())
    return sound_T + _filtered(echo_T, response_T), {"echo": {"delay_ms": delay_ms, "db": db}}


# ---------------------------------------------------------------- noise


def noise_floor(sound_T: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Done]:
    """The hiss that every microphone and line has."""
    dbfs, slope = _draw(rng, -72, -50), _draw(rng, 0.2, 0.9, 2)
    hiss_T = coloured(len(sound_T), slope, rng)
    return sound_T + hiss_T * _gain(dbfs), {"floor": {"dbfs": dbfs, "slope": slope}}


def background(
    sound_T: np.ndarray, level: float, rng: np.random.Generator, babble: Noise | None = None, kind: str | None = None
) -> tuple[np.ndarray, Done]:
    """Add one kind of noise below a voice of RMS `level`; the kind is drawn if it is not given."""
    kinds: dict[str, Noise] = dict(NOISES) if babble is None else {**NOISES, "babble": babble}
    kind = kind or str(rng.choice(list(kinds)))
    snr_db = _draw(rng, *SNR[kind])
    noise_T = kinds[kind](len(sound_T), rng)
    rms = max(float(np.sqrt(np.mean(np.square(noise_T)))), 1e-9)
    return sound_T + noise_T * np.float32(level * 10 ** (-snr_db / 20) / rms), {
        "noise": {"kind": kind, "snr_db": snr_db}
    }


# ---------------------------------------------------------------- the microphone


def drift(sound_T: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Done]:
    """A wrong level that wanders, as of somebody who moves about."""
    db, span = _draw(rng, -14, 5), _draw(rng, 0, 4)
    gain_T = np.exp(swell(len(sound_T), 0.3, rng) * np.float32(span * np.log(10) / 20)) * _gain(db)
    return sound_T * gain_T, {"level": {"db": db, "drift_db": span}}


def overdrive(sound_T: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Done]:
    """Soft clipping: the loudest samples are `db` above what the converter takes."""
    db = _draw(rng, 2, 10)
    peak = max(float(np.abs(sound_T).max(initial=0.0)), 1e-6)
    limit = np.float32(min(0.9, peak) * 10 ** (-db / 20))
    return np.tanh(sound_T / limit) * limit, {"clipping": {"db": db}}


def band_limit(sound_T: np.ndarray, rng: np.random.Generator, name: str | None = None) -> tuple[np.ndarray, Done]:
    """Only the band of a telephone or of a device at 8 or 16 kHz, with soft edges and no delay."""
    name = name or str(rng.choice(list(BANDS)))
    low, high = BANDS[name]
    size = fast_size(len(sound_T) + 2400)
    spectrum = np.fft.rfft(sound_T, size)
    hz = np.arange(len(spectrum), dtype=np.float32) * (SAMPLE_RATE / size)
    edges = np.clip((hz - 0.75 * low) / (0.25 * low), 0, 1) * np.clip((1.05 * high - hz) / (0.05 * high), 0, 1)
    spectrum *= edges.astype(np.float32)
    return np.fft.irfft(spectrum, size)[: len(sound_T)].astype(np.float32, copy=False), {"band": name}


# ---------------------------------------------------------------- the call


def opus_call(sound_T: np.ndarray, rng: np.random.Generator, kbps: int | None = None) -> tuple[np.ndarray, Done]:
    """Encode and decode with Opus as a call does (20 ms packets); the codec's delay is taken out."""
    kbps = kbps or int(rng.choice([12, 16, 20, 24, 32]))
    encoder: Any = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format, encoder.bit_rate = SAMPLE_RATE, "mono", "flt", kbps * 1000
    encoder.options = {"application": "voip", "compression_level": "2"}  # the fast setting of small devices
    padded_T = np.pad(np.clip(sound_T, -1, 1), (0, OPUS_DELAY + PACKET)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(padded_T[None], format="flt", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
    decoder: Any = av.CodecContext.create("opus", "r")
    decoder.sample_rate, decoder.layout = 2 * SAMPLE_RATE, "mono"
    frames = [f for packet in encoder.encode(frame) + encoder.encode(None) for f in decoder.decode(packet)]
    decoded_T = np.concatenate([f.to_ndarray()[0] for f in frames])  # 48 kHz with nothing above 12 kHz
    heard_T = decoded_T[::2][OPUS_DELAY : OPUS_DELAY + len(sound_T)]
    return heard_T.astype(np.float32, copy=False), {"opus": {"kbps": kbps}}


def lose_packets(sound_T: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Done]:
    """Drop one to four packets in a row; what came before is repeated backwards (no jump) and fades out."""
    percent = _draw(rng, 0.5, 5)
    packets = len(sound_T) // PACKET
    starts = np.flatnonzero(rng.random(packets) < percent / 100 / 2)  # a hole is two packets on average
    lengths = rng.choice([1, 2, 3, 4], len(starts), p=[0.4, 0.3, 0.2, 0.1])
    out_T = sound_T.copy()
    ramp = PACKET // 4
    rise_T = np.linspace(0, 1, ramp, dtype=np.float32)
    lost = 0
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        first, last = start * PACKET, min((start + length) * PACKET, len(out_T))
        hole_T = np.zeros(last - first, np.float32)
        copied = min(first, len(hole_T), 2 * PACKET)
        hole_T[:copied] = out_T[first - copied : first][::-1] * np.linspace(1, 0, 2 * PACKET, dtype=np.float32)[:copied]
        out_T[first:last] = hole_T
        after = min(ramp, len(out_T) - last)
        out_T[last : last + after] *= rise_T[:after]
        lost += length
    return out_T, {"loss": {"percent": percent, "packets": lost}}


STAGES = {
    "level": drift, "clipping": overdrive, "band": band_limit, "floor": noise_floor, "opus": opus_call,
    "loss": lose_packets,
}  # fmt: skip
"""What follows the air, in order. The floor comes after the band: no real line is digitally silent above it."""
