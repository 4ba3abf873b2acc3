"""A fast, friendly 2-D person drawn with Skia: `FaceRenderer`, identity and pose -> uint8 [H, W, 3]."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import skia

from wan_streamer.errors import ConfigError, ShapeError
from wan_streamer.simulation.face.hands import Hands
from wan_streamer.simulation.face.parts import Parts
from wan_streamer.simulation.face.person import FaceIdentity, FacePose, HandPose, Prop


class FaceRenderer:
    """Draws one person. Not thread safe; make one per process and identity.

    height, width  of the frames; the picture is designed at 192 x 336 and scales with the height

    The same identity and pose give the same bytes on one machine, whatever was drawn before.
    """

    def __init__(self, identity: FaceIdentity, height: int = 192, width: int = 336) -> None:
        self.identity, self.height, self.width = identity, height, width
        self._pixels = np.zeros((height, width, 4), np.uint8)
        self._pixel_words = self._pixels.view(np.uint32).reshape(-1)
        self._surface = skia.Surface(self._pixels, colorType=skia.kRGBA_8888_ColorType)
        self._canvas: Any = self._surface.getCanvas()
        self._parts = Parts(identity, height, width)
        self._hands = Hands(identity, height, width)
        self._canvas.drawImage(self._parts.background(), 0, 0)
        self._background = self._pixels.copy()

    def render(self, pose: FacePose, hand: HandPose | None = None, prop: Prop | None = None) -> np.ndarray:
        """The frame as uint8 [H, W, 3], RGB.

        hand  None for a person whose hands are out of the picture
        prop  what a hand of the shape "hold" holds

        Raises ConfigError if there is a thing but no hand that holds it.
        """
        return self.film([pose], [hand], [prop])[0]

    def film(
        self,
        poses: Sequence[FacePose],
        hands: Sequence[HandPose | None] | None = None,
        props: Sequence[Prop | None] | None = None,
    ) -> np.ndarray:
        """All frames as uint8 [T, H, W, 3] in one array. `hands` and `props` have one entry per pose.

        Raises ShapeError if the lengths differ, ConfigError as `render` does.
        """
        frames, size = len(poses), self.height * self.width
        hands = [None] * frames if hands is None else hands
        props = [None] * frames if props is None else props
        if not len(hands) == len(props) == frames:
            raise ShapeError(
                f"film: expected one hand and one prop (or None) for each of {frames} poses, "
                f"got {len(hands)} hands and {len(props)} props"
            )
        # RGBA becomes RGB by storing each 4-byte pixel 3 bytes after the one before: the next pixel overwrites alpha.
        # It is 12 times as fast as copying [..., :3] and needs one byte behind the last pixel.
        memory = np.empty(frames * size * 3 + 1, np.uint8)
        for i, (pose, hand, prop) in enumerate(zip(poses, hands, props, strict=True)):
            self._draw(pose, hand, prop)
            np.ndarray(size, np.uint32, memory, i * size * 3, (3,))[...] = self._pixel_words
        return memory[:-1].reshape(frames, self.height, self.width, 3)

    def _draw(self, pose: FacePose, hand: HandPose | None, prop: Prop | None) -> None:
        if prop is not None and (hand is None or hand.shape != "hold"):
            raise ConfigError(f'a thing needs a hand of the shape "hold", got {hand}: give one or leave {prop} out')
        np.copyto(self._pixels, self._background)
        self._parts.draw(self._canvas, pose)
        if hand is not None:
            self._hands.draw(self._canvas, hand, prop)
