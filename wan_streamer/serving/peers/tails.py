"""An empty packet behind every picture that is sent, so that a lost end is noticed at once.

`use_tails`  puts it behind those of a sender

A browser asks for a packet again when one behind it has come. Behind the last packet of a picture, often its only one,
comes nothing until the next picture, 40 ms later. Packets without a payload are no part of a picture (RFC 3550 has them
as padding, libwebrtc counts their numbers only).
"""

from aiortc import RTCRtpSender
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtcrtpsender import RTCEncodedFrame

from wan_streamer.serving.peers.private import private


def use_tails(sender: RTCRtpSender) -> None:
    """Call before media are sent. Raises `ServingError` for another aiortc than the one it is made for."""
    encoded, behind = private(sender, "_next_encoded_frame"), list[RTCEncodedFrame]()

    async def one_after_the_other(codec: RTCRtpCodecParameters) -> RTCEncodedFrame | None:
        if behind:
            return behind.pop()
        picture: RTCEncodedFrame | None = await encoded(codec)
        if picture is not None:
            behind.append(RTCEncodedFrame([b""], picture.timestamp, picture.audio_level))
        return picture

    sender._next_encoded_frame = one_after_the_other  # type: ignore[method-assign]
