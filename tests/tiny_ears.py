"""Small ears, and sounds for them."""

import math
from pathlib import Path

import numpy as np
import torch

from wan_streamer.config import EarsConfig
from wan_streamer.perception.ears import Ears
from wan_streamer.simulation.voice.users import UserVoice
from wan_streamer.training.ears.corpus import CorpusWriter
from wan_streamer.units import SAMPLES_PER_UNIT

TEXTS = ("Hello there.", "How are you?", "One two three.", "Stop it now.")
SMALL = EarsConfig(width=32, wide=1, layers=2, heads=4, rotary=4, feed=2, window=21, piece=6)


def small_ears() -> Ears:
    torch.manual_seed(0)
    return Ears(SMALL).eval().requires_grad_(False)


def sound(units: int, seed: int = 0, rows: int = 1) -> torch.Tensor:
    """Noise whose level goes up and down by 40 dB."""
    generator = torch.Generator().manual_seed(seed)
    level = 10 ** (2 * torch.rand(rows, units, 1, generator=generator) - 2.5)
    return (torch.randn(rows, units, SAMPLES_PER_UNIT, generator=generator) * level).flatten(1)


def tone(hz: float, rate: int, count: int, late: float = 0.0) -> torch.Tensor:
    return torch.sin(2 * math.pi * hz * (torch.arange(count, dtype=torch.float64) / rate - late)).float()[None]


def said_corpus(folder: Path) -> Path:
    """`TEXTS`, each once for training and once held out, with the times of their words."""
    writer = CorpusWriter(folder, "espeak")
    for i, text in enumerate(TEXTS * 2):
        speech = UserVoice("en-us", "m3").speak(text)
        words = tuple((word.text, word.start, word.end) for word in speech.words)
        writer.add(speech.audio, "m3", text, "train" if i < len(TEXTS) else "valid", "", words)
    return folder


def small_corpus(folder: Path) -> Path:
    """Noise of two voices, twelve clips each."""
    rng = np.random.default_rng(0)
    for source, voice in (("people", "anna"), ("piper", "joe")):
        writer = CorpusWriter(folder, source)
        for i in range(12):
            audio_T = 0.1 * rng.standard_normal(20_000 + 3_000 * i, np.float32)
            writer.add(audio_T, voice, f"{voice} says {i}", "test" if i == 0 else "train")
    return folder
