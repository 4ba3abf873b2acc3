"""One conversation for the page: tracks, captions and a small film."""

from wan_streamer.evaluation.readers.observe import loudness
from wan_streamer.evaluation.records import Observation, Recording, Trial
from wan_streamer.evaluation.report.page import Story, encode_clip

JOIN = 0.8  # seconds without text that end a caption
SHOWN = (
    "pause",
    "barge_in",
    "backchannel",
    "noise",
    "side_talk",
    "show",
    "wave",
    "big_smile",
    "thumb_up",
    "decoy",
    "typed",
)


def render_story(trial: Trial, recording: Recording, seen: Observation) -> Story:
    """What happened in a trial, with the film of both sides."""
    episode = trial.episode
    words = [(w["start"], " " + w["text"]) for w in episode.labels["words"]["user"]]
    captions = [
        (time, lane, text)
        for lane, pieces in (("user", words), ("heard", recording.transcript), ("agent", recording.text))
        for time, text in _lines(pieces)
    ]
    mouth = seen.tracks.get("mouth")
    return Story(
        title=trial.name,
        note=", ".join(episode.labels.get("scenarios", [])),
        seconds=recording.seconds,
        user_loudness=loudness(episode.user_audio),
        agent_loudness=seen.loudness,
        mouth=mouth,
        user_speech=[
            (e["start"], e["end"]) for e in episode.labels["events"] if e["type"] == "speech" and e["side"] == "user"
        ],
        agent_speech=seen.speech,
        events=[e for e in episode.labels["events"] if e["type"] in SHOWN],
        captions=sorted(captions),
        clip=encode_clip(episode.user_video, recording.video, episode.user_audio, recording.audio),
    )


def _lines(pieces: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Pieces of text that follow one another closely, joined: (time of the first, text)."""
    lines: list[tuple[float, str]] = []
    last = -JOIN
    for time, text in pieces:
        if lines and time - last < JOIN:
            lines[-1] = (lines[-1][0], lines[-1][1] + text)
        else:
            lines.append((time, text))
        last = time
    return [(time, text.strip()) for time, text in lines if text.strip()]
