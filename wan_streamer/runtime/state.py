"""A session as a record: everything that its next unit depends on, to be kept, sent or written to a file.

`SessionState`               the record;   `STATES` the classes in it
`session_state`              of a session, between two units;   `resume_session`  the reverse
`save_session`, `load_session`   the same with a file;   `describe_session`  what is in it
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from wan_streamer.codecs.audio_vae import AudioDecoderState
from wan_streamer.codecs.video_vae import VideoDecoderState
from wan_streamer.errors import CheckpointError
from wan_streamer.files import parse_json
from wan_streamer.model.cache import MEMORY, CacheState
from wan_streamer.model.layout import Latents
from wan_streamer.model.pretrained import Weights
from wan_streamer.perception.audio import AudioPerceptionState
from wan_streamer.perception.ears import EarsState
from wan_streamer.perception.turn import Turn
from wan_streamer.perception.video import VideoPerceptionState
from wan_streamer.runtime.session import Session
from wan_streamer.speaking.voice import Speech
from wan_streamer.speaking.wording import Talk
from wan_streamer.tensors import flatten, rebuild, save_atomically
from wan_streamer.units import UNIT_S

VERSION = "10"


@dataclass(frozen=True)
class SessionState:
    """Fields are those of `Session` and of its parts.

    steps, temperature, start_bias   what it was opened with
    noise  state of the generator;   lanes  tokens of the word in the making, and the text shown of it, for each lane
    """

    seed: int
    steps: int
    temperature: float
    start_bias: float
    index: int
    cache: CacheState
    hearing: AudioPerceptionState | EarsState | None
    seeing: VideoPerceptionState | None
    told_N2: Tensor
    said: list[Tensor]
    heard: list[Tensor]
    features: list[Tensor]
    turn: Turn | None
    speech: Speech | None
    talk: Talk | None
    floor: Tensor | None
    sight: Tensor | None
    last: Latents
    noise: Tensor
    silent: bool
    urge: float
    audio: AudioDecoderState | None
    video: VideoDecoderState | None
    lanes: list[tuple[list[int], str]]
    typed: list[int]


STATES = (
    SessionState, CacheState, AudioPerceptionState, EarsState, VideoPerceptionState, Latents, AudioDecoderState,
    VideoDecoderState, Speech, Talk, Turn,
)  # fmt: skip


def session_state(session: Session) -> SessionState:
    """The state between two units. Its tensors may be the session's own: they are never changed in place."""
    live, decoder = session.live, session.decoder
    return SessionState(
        seed=session.seed,
        steps=session.config.flow.steps,
        temperature=session.config.text.temperature,
        start_bias=session.config.text.start_bias,
        index=session.index,
        cache=live.cache.state(live.cache.block - 1 if live.settled else None),
        hearing=live.hearing,
        seeing=live.seeing,
        told_N2=live.told_N2,
        said=[said.clone() for said in live.said],
        heard=list(live.heard),
        features=list(live.features),
        turn=live.turn,
        speech=live.speech,
        talk=live.talk,
        floor=live.floor,
        sight=live.sight,
        last=session.last,
        noise=session.noise.get_state(),
        silent=session.sampler.silent,
        urge=session.sampler.urge,
        audio=decoder.audio_state,
        video=decoder.video_state,
        lanes=[(list(lane.tokens), lane.shown) for lane in session.lanes],
        typed=list(session.typed),
    )


def resume_session(session: Session, state: SessionState) -> None:
    """Make a fresh session of the same weights go on where `state` was taken, bit for bit."""
    live, decoder = session.live, session.decoder
    session.configure(state.seed, state.steps, state.temperature, state.start_bias)
    session.index, session.last = state.index, state.last
    live.cache.restore(state.cache)
    live.hearing, live.seeing, live.told_N2 = state.hearing, state.seeing, state.told_N2.cpu()
    live.said.clear()
    live.said.extend(said.clone() for said in state.said)
    live.heard.clear()
    live.heard.extend(state.heard)
    live.features.clear()
    live.features.extend(state.features)
    live.turn, live.speech, live.talk = state.turn, state.speech, state.talk
    live.floor, live.sight = state.floor, state.sight
    session.noise.set_state(state.noise.cpu().clone())  # of a view it would read the wrong bytes
    session.sampler.silent, session.sampler.urge = state.silent, state.urge
    decoder.audio_state = state.audio
    if decoder.video_vae is not None:
        decoder.video_state = decoder.video_vae.fitting(state.video)
    for lane, (tokens, shown) in zip(session.lanes, state.lanes, strict=True):
        lane.tokens, lane.shown = list(tokens), shown
    session.typed.clear()
    session.typed.extend(state.typed)


def save_session(session: Session, weights: Weights, path: str | Path) -> None:
    """Write a session of `weights` to a safetensors file, between two units.

    Raises `CheckpointError` if it cannot be written.
    """
    outline, tensors = flatten(session_state(session))
    named = {str(number): tensor.detach().cpu().clone() for number, tensor in enumerate(tensors)}
    meta = {"session": VERSION, "weights": weights.fingerprint, "outline": json.dumps(outline)}
    save_atomically(named, Path(path), meta)


def load_session(weights: Weights, path: str | Path) -> Session:
    """The session in a file of `save_session`.

    Raises `CheckpointError` if the file is missing or damaged, or was written with other weights.
    """
    session = Session(weights)
    fingerprint, state = _read(path, str(session.streamer.device))
    if fingerprint != weights.fingerprint:
        raise CheckpointError(f"{path}: this session belongs to other weights; load those that it was saved with")
    resume_session(session, state)
    return session


def describe_session(path: str | Path) -> dict[str, Any]:
    """What is in a file of `save_session`, for people. Raises `CheckpointError` if it is missing or damaged."""
    fingerprint, state = _read(path, "cpu")
    cache = state.cache
    _, tensors = flatten(state)
    return {
        "session": str(path),
        "weights": fingerprint,
        "units": state.index,
        "seconds": round(state.index * UNIT_S, 2),
        "options": {name: getattr(state, name) for name in ("seed", "steps", "temperature", "start_bias")},
        "history": {
            "tokens": len(cache.block_M),
            "of_the_text_memory": int((cache.block_M <= MEMORY).sum()),
            "oldest_unit": int(cache.block_M[cache.block_M > MEMORY].min()) if (cache.block_M > MEMORY).any() else None,
            "bytes": cache.raw_2ZMGd.numel() * cache.raw_2ZMGd.element_size(),
        },
        "waiting": {"typed_tokens": len(state.typed)},
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    }


def _read(path: str | Path, device: str) -> tuple[str, SessionState]:
    """The fingerprint of the weights, and the state."""
    try:
        with safe_open(path, "pt", device=device) as file:
            meta = file.metadata() or {}
            tensors = [file.get_tensor(str(number)) for number in range(len(file.keys()))]
        if meta.get("session") != VERSION:
            raise CheckpointError(f"{path}: expected a session of version {VERSION}, got {meta.get('session')}")
        return meta["weights"], rebuild(parse_json(meta["outline"].encode()), tensors, STATES)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: not found; expected a saved session") from error
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); expected a saved session") from error
