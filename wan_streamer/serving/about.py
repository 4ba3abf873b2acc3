"""What an agent understands, in its makers' words: `about.json` in the folder of a checkpoint, if they wrote one.

`About`        name, one line, and up to three things to say; the page shows them, `GET /api/status` has them
`read_about`   of a built-in checkpoint or a folder
"""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wan_streamer.errors import CheckpointError
from wan_streamer.files import parse_json

FILE = "about.json"
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class About(BaseModel):
    """name: what the agent calls itself. about: what it understands, one line. examples: what a visitor may say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Line
    about: Line
    examples: tuple[Line, ...] = Field((), max_length=3)


def read_about(checkpoint: str | Path) -> About | None:
    """None if there is no such file, or nobody here knows the folder: one of a hub is known to the model process only.

    Raises `CheckpointError` if the file is no `About`.
    """
    built_in = Path(str(files("wan_streamer"))) / "checkpoints" / str(checkpoint)
    folder = built_in if Path(checkpoint).name == str(checkpoint) and built_in.is_dir() else Path(checkpoint)
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return About.model_validate(parse_json(path.read_bytes()))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise CheckpointError(f"{path}: {place or 'it'}: {problem['msg']}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected JSON ({error})") from None
