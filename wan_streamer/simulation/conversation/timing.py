"""How long people wait, from the AMI meetings (`scripts/ami_timing.py`), within what an agent can learn.

`PAUSE`, `draw_pause`  inside a user's turn      `SENTENCES`  between two sentences of a turn
`LISTENING`            how late a listener's "mm-hm" begins after the end of a phrase
"""

import numpy as np

PAUSE = (0.4, 1.2)  # shortest and longest, seconds
PAUSE_LOG = (-0.489, 0.256)  # mean and deviation of the logarithm of people's pauses of 0.4 s and more
SENTENCES = (0.06, 0.2)  # shorter than any answer of the agent
LISTENING = (0.12, 0.5)  # between the quartiles of people: 0.12-0.67 s


def draw_pause(rng: np.random.Generator) -> float:
    """Seconds of silence inside a turn: people's distribution, limited to `PAUSE`."""
    return round(float(np.clip(np.exp(rng.normal(*PAUSE_LOG)), *PAUSE)), 3)
