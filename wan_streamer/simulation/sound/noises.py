"""Background sounds, made from nothing but random numbers.

`coloured`    stationary noise with a spectral slope: white, pink, brown and everything between
`NOISES`      the kinds by name; each is (samples, rng) -> float32 [T] at an arbitrary level
`fast_size`   the next length that an FFT likes
"""

from collections.abc import Callable

import numpy as np

from wan_streamer.units import SAMPLE_RATE

Noise = Callable[[int, np.random.Generator], np.ndarray]


def fast_size(count: int) -> int:
    """The smallest even 2^a 3^b 5^c that is at least `count`."""
    best = 1 << max(1, (count - 1).bit_length())
    five = 1
    while five < best:
        three = five
        while three < best:
            two = max(2, 1 << max(0, (-(-count // three) - 1).bit_length()))
            best = min(best, three * two)
            three *= 3
        five *= 5
    return best


def shaped(samples: int, gain: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise whose amplitude over frequency (Hz, float32 [F]) is `gain`; float32 [samples], RMS about 1."""
    size = fast_size(samples)
    bins = size // 2 + 1
    spectrum = rng.standard_normal(2 * bins, np.float32).view(np.complex64)
    gain_F = gain(np.arange(bins, dtype=np.float32) * (SAMPLE_RATE / size)).astype(np.float32)
    gain_F[0] = 0.0
    gain_F *= np.sqrt(size**2 / 4 / float(np.square(gain_F).sum()))
    return np.fft.irfft(spectrum * gain_F, size)[:samples].astype(np.float32, copy=False)


def coloured(samples: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    """Noise that falls as frequency ** -slope above 30 Hz: 0 white, 0.5 pink, 1 brown."""
    return shaped(samples, lambda hz: np.maximum(hz, 30.0) ** -slope, rng)


def swell(samples: int, hz: float, rng: np.random.Generator) -> np.ndarray:
    """A random curve in -1..1 that changes about `hz` times a second; float32 [samples]."""
    knots = rng.uniform(-1.0, 1.0, int(samples / SAMPLE_RATE * hz) + 3)
    coarse = np.linspace(0.0, len(knots) - 2.0, samples // 240 + 2)  # every 10 ms is fine enough
    left = coarse.astype(int)
    ease = 0.5 - 0.5 * np.cos(np.pi * (coarse - left))
    curve = knots[left] * (1 - ease) + knots[left + 1] * ease
    return np.interp(np.arange(samples) / 240, np.arange(len(curve)), curve).astype(np.float32)


def _tones(samples: int, base_hz: float, count: int, fall: float, rng: np.random.Generator) -> np.ndarray:
    """A base tone with harmonics of random phase and falling strength."""
    period = round(SAMPLE_RATE * 10 / base_hz)  # ten periods, repeated: the tone stays exact and costs little
    time = 2 * np.pi * 10 * np.arange(period) / period
    one = np.zeros(period)
    for k in range(1, count + 1):
        one += rng.uniform(0.3, 1.0) * k**-fall * np.sin(k * time + rng.uniform(0, 2 * np.pi))
    return np.resize(one.astype(np.float32), samples)


def white(samples: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(samples, np.float32)


def pink(samples: int, rng: np.random.Generator) -> np.ndarray:
    return coloured(samples, 0.5, rng)


def brown(samples: int, rng: np.random.Generator) -> np.ndarray:
    return coloured(samples, 1.0, rng)


def hum(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Mains hum, 50 or 60 Hz with harmonics, and some hiss."""
    hum_T = _tones(samples, float(rng.choice([50.0, 60.0])), 12, 0.7, rng)
    return hum_T + 0.05 * rng.standard_normal(samples, np.float32)


def fan(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Air noise with one broad resonance, and the tone of the blades."""
    centre, width = rng.uniform(250, 900), rng.uniform(150, 500)
    air_T = shaped(
        samples, lambda hz: np.maximum(hz, 60.0) ** -0.6 * (1 + 2 * np.exp(-(((hz - centre) / width) ** 2))), rng
    )
    return air_T + rng.uniform(0.1, 0.4) * _tones(samples, float(rng.uniform(70, 240)), 5, 1.0, rng)


def street(samples: int, rng: np.random.Generator) -> np.ndarray:
    """A low rumble that slowly comes and goes, as of passing cars."""
    corner = rng.uniform(120, 400)
    rumble_T = shaped(samples, lambda hz: 1.0 / (1.0 + (hz / corner) ** 1.2), rng)
    return rumble_T * np.exp(1.1 * swell(samples, 0.4, rng))


def keys(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Keyboard clicks in runs; a press is 6 to 14 ms of bright noise and a softer release."""
    out_T = np.zeros(samples + SAMPLE_RATE, np.float32)
    at, end = rng.uniform(0.1, 1.5), samples / SAMPLE_RATE
    while at < end:
        for _ in range(int(rng.integers(4, 22))):
            for delay, loud in ((0.0, 1.0), (rng.uniform(0.06, 0.11), 0.4)):
                length = round(rng.uniform(0.006, 0.014) * SAMPLE_RATE)
                click_T = np.diff(rng.standard_normal(length + 1)) * np.exp(-6 * np.arange(length) / length)
                first = round(min(at + delay, end) * SAMPLE_RATE)
                out_T[first : first + length] += (loud * rng.uniform(0.4, 1.0) * click_T).astype(np.float32)
            at += rng.uniform(0.09, 0.3)
        at += rng.uniform(0.5, 3.0)
    return out_T[:samples]


NOISES: dict[str, Noise] = {
    "white": white, "pink": pink, "brown": brown, "hum": hum, "fan": fan, "street": street, "keys": keys,
}  # fmt: skip
