"""The typed errors of the package. Every one says what was expected, what came, and what to do.

The command line prints `str(error)` on one line and exits with code 2; a library user catches `WanStreamerError`.
"""


class WanStreamerError(Exception):
    """Base of every error that a user can cause and fix."""


class ConfigError(WanStreamerError):
    """A configuration or preset is unknown, incomplete or has keys that nothing reads."""


class ShapeError(WanStreamerError):
    """An array has another shape or type than the contract says."""


class MediaError(WanStreamerError):
    """A media file is missing, empty, damaged, or not media at all."""


class CheckpointError(WanStreamerError):
    """A checkpoint folder is missing, damaged, or does not fit its own config."""


class DataError(WanStreamerError):
    """A shard or latent store is missing, damaged or stale."""


class TrainingError(WanStreamerError):
    """Training cannot go on: a loss is not finite, or a resume does not fit."""


class OutputError(WanStreamerError):
    """A file cannot be written: no permission, no space, or something in its place."""


class ServingError(WanStreamerError):
    """The server cannot start or a session cannot be opened."""


class LinkError(ServingError):
    """The other end of a link is gone, closed, too slow, or sends what is no message."""


class ExtraError(WanStreamerError, ImportError):
    """A package is missing that an optional extra installs."""

    def __init__(self, what: str, extra: str, error: ImportError) -> None:
        reason = f"{error.name} is not installed" if isinstance(error, ModuleNotFoundError) else str(error)
        super().__init__(f"{what} needs more packages ({reason}): pip install 'wan-streamer[serve,{extra}]'")
