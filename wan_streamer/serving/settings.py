"""Settings of the server, in one frozen record."""

from dataclasses import dataclass, field

from wan_streamer.serving.doors.access import Access
from wan_streamer.serving.doors.limits import Limits


@dataclass(frozen=True)
class ServingConfig:
    """Times of a call, and who may call. The defaults are for a call on one machine or a local network.

    connect_timeout_s    an offer whose peer never connects is freed after this long
    idle_timeout_s       a call from which nothing arrives (media, pings) is freed after this long
    model_timeout_s      a worker that owes an answer for this long is ended and restarted
    max_recoveries       how many lost model sessions one call survives
    own_jitter_buffers   deliver what arrived at once instead of aiortc's deep buffers (see `jitter`)
    video_playout_ms     wish sent to the browser in the playout-delay RTP extension; None: the browser keeps lips and
                         voice together. 0 shows the picture at once, well before its sound is heard.
    prebuffer_ms         audio and video kept back before the first unit is played; late units add to it by themselves
    max_playout_ms       a playout queue longer than this is cut back
    access               who is let in
    limits               how much one address may ask for
    """

    connect_timeout_s: float = 20.0
    idle_timeout_s: float = 12.0
    model_timeout_s: float = 8.0
    max_recoveries: int = 3
    own_jitter_buffers: bool = True
    video_playout_ms: int | None = None
    prebuffer_ms: int = 20
    max_playout_ms: int = 480
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
