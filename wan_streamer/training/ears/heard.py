"""What the full-context teacher hears in recordings that nobody wrote down.

`padded`              samples up to a whole number of units
`transcribe_corpus`   writes `NAME.heard.json` for a source
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wan_streamer.training.ears.corpus import read_clip, read_index, save_heard
from wan_streamer.training.ears.moonshine import Tokenizer
from wan_streamer.training.ears.reader import load_reader
from wan_streamer.training.ears.teacher import Teacher
from wan_streamer.units import SAMPLES_PER_UNIT

LONGEST = 16.0
"""Seconds; longer recordings are left without text, and so out of training."""


def padded(audio_T: np.ndarray) -> Tensor:
    """float32 [T] with silence behind it up to a whole number of units."""
    return F.pad(torch.from_numpy(audio_T), (0, -len(audio_T) % SAMPLES_PER_UNIT))


def transcribe_corpus(folder: str | Path, source: str) -> int:
    """Listen to every utterance of `source` that has no text; returns how many there are."""
    teacher, reader, tokenizer = Teacher(), load_reader(), Tokenizer()
    texts = {}
    for clip in read_index(Path(folder) / f"{source}.jsonl"):
        if not clip.text and clip.seconds <= LONGEST:
            features_TD = teacher(padded(read_clip(folder, clip))[None])[-1][0]
            tokens = reader.transcribe(features_TD[None], torch.tensor([len(features_TD)]))[0]
            texts[str(clip.start)] = tokenizer.decode(tokens)
    save_heard(folder, source, texts)
    return len(texts)
