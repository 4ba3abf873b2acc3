"""Stage 3, `distill`: an agent of many guided solver steps teaches one of few steps without guidance (paper, stage 3).

`consistency`  first: the student begins as its teacher and learns to jump (`wan_streamer.training.distill.consistency`)
`matching`     then: it learns from what it draws when it goes on alone (`wan_streamer.training.distill.matching`)
"""

import dataclasses
import json
from pathlib import Path

from wan_streamer.codecs.folder import codec_hash, load_codecs
from wan_streamer.errors import ConfigError, TrainingError
from wan_streamer.files import parse_json, write_json
from wan_streamer.model.pretrained import find_checkpoint, load_weights
from wan_streamer.training.distill import consistency, matching
from wan_streamer.training.distill.consistency import ConsistencyStage
from wan_streamer.training.distill.matching import MatchingStage
from wan_streamer.training.distill.student import DistillConfig, StudentStage
from wan_streamer.training.distill.teacher import check_same_kind
from wan_streamer.training.loop.parallel import join
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.stages.run import RunOptions, run, starting_point

METHODS: dict[str, tuple[type[StudentStage], TrainConfig]] = {
    "consistency": (ConsistencyStage, consistency.CONFIG),
    "matching": (MatchingStage, matching.CONFIG),
}
SETTINGS = "distill.json"  # in the run's folder: what a resumed run must share with the run before


def train_distill(
    data: Path,
    teacher: str,
    options: RunOptions,
    method: str,
    settings: DistillConfig | None = None,
    device: str = "auto",
) -> dict[str, float]:
    """Distil the checkpoint `teacher` (name, folder, hub id) on `data`, as `encode` wrote it for the teacher.

    A `consistency` student begins with the teacher's weights unless `options.start` names others; a `matching` student
    begins with `options.start`.

    Raises `ConfigError` for an unknown method or a missing start, `CheckpointError` for a teacher or a start that is
    not there or does not fit, `TrainingError` for a resume with other settings.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; known methods are {', '.join(METHODS)}")
    if method == "matching" and options.start is None and not options.resume:
        raise ConfigError("matching begins with a student of --method consistency; expected its folder as --from")
    world, data, settings = join(device), Path(data), settings or DistillConfig()
    for name in (teacher, options.start or teacher):
        find_checkpoint(name)  # both are there before one is loaded
    weights = load_weights(find_checkpoint(teacher))
    codecs = codec_hash(*load_codecs(weights.config, data))
    check_same_kind(weights.config, weights.config, codecs, weights.codec_hash)
    if not options.resume:
        options = dataclasses.replace(options, start=options.start or teacher)
        start = load_weights(find_checkpoint(str(options.start)))
        check_same_kind(start.config, weights.config, start.codec_hash, weights.codec_hash)
        if start.text.tokenizer.to_str() != weights.text.tokenizer.to_str():
            raise ConfigError("expected student and teacher with one tokenizer, got two; begin with a student of it")
    streamer, text = starting_point(options, lambda *_: weights.text)
    _remember(options, {"method": method, **dataclasses.asdict(settings)})
    stage_class, config = METHODS[method]
    stage = stage_class(streamer, text, data, options.apply(config), weights, settings)
    return run(stage, options, world)


def _remember(options: RunOptions, settings: dict) -> None:
    """Note the settings in the run's folder, or hold them against those of the run that is resumed."""
    path, settings = options.out / SETTINGS, parse_json(json.dumps(settings))
    if not options.resume or not path.exists():
        write_json(path, settings)
        return
    try:
        before = parse_json(path.read_bytes())
    except ValueError as error:
        raise TrainingError(f"{path}: expected the settings of the run as JSON ({error})") from error
    for name, value in settings.items():
        if before.get(name) != value:
            raise TrainingError(
                f"{options.out}: this run has {name} {before.get(name)}, expected {value}; resume with the options it"
                " was started with, or start a new run in another folder"
            )
