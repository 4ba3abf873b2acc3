"""Conversations that people can watch: both films, both voices and a timeline of what happens.

`preview_shards`   the first conversations of a folder -> OUT/ep000000.mp4, ...
`render_preview`   one conversation -> H.264 and AAC, 672 x 366

The user is left, the agent right. Labels of any kind are shown: an event type that is new gets a colour of its own.
"""

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import av
import numpy as np

from wan_streamer.data.film import FilmEncoder, both_voices, fill
from wan_streamer.data.shards import SIDES, Episode, read_episodes
from wan_streamer.errors import ConfigError
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLES_PER_FRAME

HEIGHT, WIDTH = 192, 336  # of one side
CRF = "20"


def preview_shards(
    shards: str | Path, out_dir: str | Path, count: int = 4, progress: Callable[[int, int], None] | None = None
) -> list[Path]:
    """Render the first `count` conversations of a folder of shards (fewer if there are fewer). Returns the films.

    `progress` is called with (films done, films wanted). Raises `DataError` for damaged shards.
    """
    if count < 1:
        raise ConfigError(f"preview: expected 1 conversation or more, got {count}")
    paths = []
    for done, episode in enumerate(islice(read_episodes(shards), count), start=1):
        path = Path(out_dir) / f"{episode.key}.mp4"
        render_preview(episode, path)
        paths.append(path)
        if progress:
            progress(done, count)
    return paths


def side_film(episode: Episode, side: str) -> np.ndarray | None:
    """uint8 [F, 192, 336, 3] of "user" or "agent"; None if there is no film."""
    film = episode.user_video if side == "user" else episode.agent_video
    return None if film is None else fill(film, HEIGHT, WIDTH)


def preview_frames(episode: Episode) -> Iterator[np.ndarray]:
    """The pictures of the film: uint8 [366, 672, 3], 25 a second."""
    from wan_streamer.simulation.preview.timeline import Timeline, camera_off

    timeline = Timeline(episode, 2 * WIDTH)
    films = [side_film(episode, side) for side in SIDES]
    blank = camera_off(HEIGHT, WIDTH)
    picture = np.zeros((HEIGHT + timeline.height, 2 * WIDTH, 3), np.uint8)
    for number in range(episode.units * FRAMES_PER_UNIT):
        for side, film in enumerate(films):
            picture[:HEIGHT, side * WIDTH : (side + 1) * WIDTH] = blank if film is None else film[number]
        picture[HEIGHT:] = timeline.draw((number + 0.5) / FPS)
        yield picture.copy()


def render_preview(episode: Episode, path: str | Path) -> None:
    """Write the film of one conversation. It appears under its name when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part.mp4")
    stereo_CT = both_voices(episode.user_audio, episode.agent_audio)
    try:
        with av.open(f"file:{part}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
            film = FilmEncoder(container, {"crf": CRF, "preset": "veryfast"})
            for number, picture in enumerate(preview_frames(episode)):
                film.picture(picture)
                film.sound(stereo_CT[:, number * SAMPLES_PER_FRAME : (number + 1) * SAMPLES_PER_FRAME])
            film.finish()
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
