"""Starting a run of a stage that trains the model: options, starting weights, trainer.

`RunOptions`       what a person may choose for any stage
`starting_point`   fresh weights of a preset, those of a checkpoint, or those of an interrupted run
`run`              the stage, trained
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from wan_streamer.codecs.text import TextCodec
from wan_streamer.config import StreamerConfig, load_config, to_dict
from wan_streamer.errors import ConfigError
from wan_streamer.files import write_json
from wan_streamer.model.language import initialise_from
from wan_streamer.model.pretrained import check_codecs, find_checkpoint
from wan_streamer.model.streamer import Streamer
from wan_streamer.presets import get_preset
from wan_streamer.tensors import load_module
from wan_streamer.training.loop.parallel import World
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.loop.trainer import Trainer
from wan_streamer.training.stages.adopt import adopt, adopt_ears, adopt_eyes, adopt_reader
from wan_streamer.training.stages.lora import add_lora
from wan_streamer.training.stages.spelling import add_spelling
from wan_streamer.training.stages.streamer import StreamerStage


@dataclass(frozen=True)
class RunOptions:
    """Choices for a run; None leaves the stage's own number.

    out         folder of the run
    preset      size of a new model
    start       checkpoint (name, folder, hub id) to begin from instead: its size, weights and tokenizer
    resume      go on with the run in `out`
    steps, minutes, batch, accumulate, lr, seed, clip_units, draw_every   see `TrainConfig` and `Trainer.run`
    compiled    fuse the layers with torch.compile: a third fewer CPU seconds per step; needs a C++ compiler
    lora        rank of the corrections that are learned instead of the weights of `start`; 0 learns the weights
    language    language model (folder, hub id or GGUF) that gives a new model its backbone and vocabulary
    new_codecs  the data may come from other codecs than those of `start`
    ears        folder of ears trained before: the model has the shape of `preset`, hears with them, and the rest of its
                weights are those of `start`, if there is one
    eyes        folder of eyes trained before, likewise; they stay as they are
    heard       corpus of speech to write down, of which some steps are made
    written     some steps are made of conversations that are only words
    spelled     learn the embedding of a token from its letters, too (`training/stages/spelling.py`)
    """

    out: Path
    preset: str = "nano"
    start: str | None = None
    resume: bool = False
    steps: int | None = None
    minutes: float | None = None
    batch: int | None = None
    accumulate: int | None = None
    lr: float | None = None
    seed: int | None = None
    compiled: bool = False
    lora: int = 0
    language: str | None = None
    new_codecs: bool = False
    clip_units: int | None = None
    draw_every: int | None = None
    ears: Path | None = None
    eyes: Path | None = None
    heard: Path | None = None
    written: bool = False
    spelled: bool = False

    def apply(self, config: TrainConfig) -> TrainConfig:
        """`config` with the choices of this run. A chosen learning rate scales Muon's too."""
        names = ("steps", "batch", "accumulate", "lr", "seed", "clip_units", "draw_every")
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.lr is not None:
            chosen["muon_lr"] = config.muon_lr * self.lr / config.lr
        return dataclasses.replace(config, **chosen)


NewText = Callable[[StreamerConfig, TextCodec | None], TextCodec]


def starting_point(options: RunOptions, new_text: NewText) -> tuple[Streamer, TextCodec]:
    """The model and tokenizer that a run begins with; both are noted in the run's folder, for a resume.

    new_text  makes the tokenizer of a new model, given its configuration and the tokenizer of `start`

    Raises `ConfigError` or `CheckpointError` for an unknown preset or checkpoint, or a resume of nothing.
    """
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed or 0)
    if options.resume and not (out / "config.json").exists():
        raise ConfigError(f"{out}: expected the run to resume, found no config.json; start without --resume")
    if options.resume:
        streamer, text = Streamer(load_config(out / "config.json")), TextCodec.load(out / "tokenizer.json")
    elif options.ears is not None or options.eyes is not None:
        streamer, text = _perceiving(options, new_text)
    elif options.start is not None:
        folder = find_checkpoint(options.start)
        streamer, text = Streamer(load_config(folder / "config.json")), TextCodec.load(folder / "tokenizer.json")
        load_module(streamer, folder / "model.safetensors")
    elif options.lora:
        raise ConfigError("lora: expected an agent to begin from, got a new model; name one with --from")
    elif options.language is not None:
        streamer, text = initialise_from(get_preset(options.preset), options.language)
    else:
        config = get_preset(options.preset)
        streamer, text = Streamer(config), new_text(config, None)
    if not options.resume:
        text.save(out / "tokenizer.json")
        write_json(out / "config.json", to_dict(streamer.config))
    if options.lora:
        add_lora(streamer, options.lora)
    if options.spelled:
        add_spelling(streamer, text)
    return streamer, text


def _perceiving(options: RunOptions, new_text: NewText) -> tuple[Streamer, TextCodec]:
    """A model with ears or eyes that were trained before; the rest is that of `start`, or new."""
    config = get_preset(options.preset)
    if options.eyes is not None:
        perception = dataclasses.replace(config.perception, seeing="eyes")
        config = dataclasses.replace(config, perception=perception)
    streamer, has_read = Streamer(config), False
    if options.start is None:
        text = new_text(config, None)
    else:
        folder = find_checkpoint(options.start)
        text = new_text(config, TextCodec.load(folder / "tokenizer.json"))
        has_read = adopt(streamer, folder, text)
    if config.perception.reading and not has_read:
        adopt_reader(streamer, text)
    if options.ears is not None:
        adopt_ears(streamer, options.ears)
    if options.eyes is not None:
        adopt_eyes(streamer, options.eyes)
    return streamer, text


def run(stage: StreamerStage, options: RunOptions, world: World) -> dict[str, float]:
    """Train `stage` as the options say. Returns the last held-out metrics.

    Raises `CheckpointError` if the model that it begins from was trained on other codecs than those of its data, unless
    the options allow them.
    """
    if options.start is not None and not options.resume and not options.new_codecs:
        check_codecs(find_checkpoint(options.start), stage.audio_vae, stage.video_vae)
    if not options.resume:  # the weights of a resumed run are not there yet
        stage.check_senses()
    for streamer in stage.streamers():
        if world.device.type == "cuda":
            streamer.backbone.attention = "windows"
        if options.compiled:
            streamer.backbone.compile_training()
    trainer = Trainer(stage, options.out, world)
    if options.resume:
        trainer.resume()
    return trainer.run(options.minutes)
