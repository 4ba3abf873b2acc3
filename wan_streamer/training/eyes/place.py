"""Where things are in the drawn picture: -1..1 from left to right and from top to bottom.

`head_place`  middle of the face and its tilt;  `palm_place`  middle of a hand;  `thing_place`  middle of what it holds
"""

import math

from wan_streamer.simulation.conversation.partners import HEIGHT, WIDTH
from wan_streamer.simulation.face.hands import PROP_Y
from wan_streamer.simulation.face.parts import HEAD_Y, LEAN, LEAN_Y, ROLL, ROLL_Y, head_shift
from wan_streamer.simulation.face.person import FacePose, HandPose


def head_place(pose: FacePose) -> tuple[float, float, float]:
    """x, y, and degrees, clockwise."""
    (x, y), (across, down) = head_shift(pose), _turned(0.0, 0.0, pose.roll * ROLL, ROLL_Y)
    x, y = _turned(x + across, y + down, pose.lean * LEAN, LEAN_Y)
    return x / (WIDTH / 2), y / (HEIGHT / 2) + 2 * HEAD_Y - 1, pose.lean * LEAN + pose.roll * ROLL


def palm_place(hand: HandPose) -> tuple[float, float]:
    return hand.x, hand.y


def thing_place(hand: HandPose) -> tuple[float, float]:
    """Above the palm, where fingers would be."""
    x = hand.x - PROP_Y * math.sin(hand.angle) / (WIDTH / 2)
    return x, hand.y + PROP_Y * math.cos(hand.angle) / (HEIGHT / 2)


def _turned(x: float, y: float, degrees: float, below: float) -> tuple[float, float]:
    """Clockwise around the point (0, below), y down."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cos * x - sin * (y - below), below + sin * x + cos * (y - below)
