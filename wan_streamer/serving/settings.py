"""Settings of the server, in one frozen record."""

from dataclasses import dataclass, field

from wan_streamer.serving.about import About
from wan_streamer.serving.doors.access import Access
from wan_streamer.serving.doors.ice import IceServers
from wan_streamer.serving.doors.limits import Limits


@dataclass(frozen=True)
class ServingConfig:
    """Times of a call, and who may call. The defaults are for a call on one machine or a local network.

    connect_timeout_s    an offer whose peer never connects is freed after this long
    idle_timeout_s       a call from which nothing arrives (media, pings) is freed after this long
    resume_s             a conversation whose connection was lost can be gone on with for this long, and keeps its place
    ticket_s             a ticket of the line that nobody asks about for this long is dropped
    turn_s               whose turn it is has this long to make an offer
    secret_s             a client secret can be used for this long
    max_call_s           a conversation ends after this long, over all its connections; None: never
    model_timeout_s      a worker that owes an answer for this long is ended and restarted
    max_recoveries       how many lost model sessions one call survives
    own_jitter_buffers   deliver what arrived at once instead of aiortc's deep buffers (see `jitter`)
    video_playout_ms     wish sent to the browser in the playout-delay RTP extension; None: the browser keeps lips and
                         voice together. 0 shows the picture at once, well before its sound is heard.
    prebuffer_ms         audio and video kept back before the first unit is played; late units add to it by themselves
    max_playout_ms       a playout queue longer than this is cut back
    access               who is let in
    ice                  STUN and TURN servers for the page and for this server
    limits               how much one address may ask for
    about                what the agent understands, for the page
    mark                 the beginning of every id, ticket, token and secret, by which a balancer knows whose it is
    """

    connect_timeout_s: float = 20.0
    idle_timeout_s: float = 12.0
    resume_s: float = 30.0
    ticket_s: float = 10.0
    turn_s: float = 10.0
    secret_s: float = 60.0
    max_call_s: float | None = None
    model_timeout_s: float = 8.0
    max_recoveries: int = 3
    own_jitter_buffers: bool = True
    video_playout_ms: int | None = None
    prebuffer_ms: int = 20
    max_playout_ms: int = 480
    access: Access = field(default_factory=Access)
    ice: IceServers = field(default_factory=IceServers)
    limits: Limits = field(default_factory=Limits)
    about: About | None = None
    mark: str = ""
