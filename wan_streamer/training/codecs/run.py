"""Train a codec on prepared arrays (`wan_streamer.simulation.make_codec_data`) and export it."""

import dataclasses
from pathlib import Path

from wan_streamer.errors import ConfigError, TrainingError
from wan_streamer.training.codecs.audio import AudioCodecStage
from wan_streamer.training.codecs.video import VideoCodecStage
from wan_streamer.training.loop.parallel import join
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.loop.trainer import Trainer

STAGES: dict[str, tuple[type, TrainConfig]] = {
    "audio": (
        AudioCodecStage,
        TrainConfig(steps=6000, lr=2e-3, muon_lr=4e-3, batch=16, betas=(0.8, 0.95), ema=0.995, diverged=0.0),
    ),  # its critic joins late and raises the loss
    "video": (VideoCodecStage, TrainConfig(steps=6000, lr=1e-3, muon_lr=2e-3, batch=8, ema=0.995)),
}


def train_codec(
    kind: str,
    preset: str,
    data_dir: Path,
    out_dir: Path,
    resume: bool = False,
    steps: int | None = None,
    minutes: float | None = None,
    device: str = "auto",
    lr: float | None = None,
    start: str | None = None,
    decoder_only: bool = False,
    light: bool = False,
) -> dict[str, float]:
    """Train codec `kind` ("audio" or "video") and export it to `out_dir`. Returns the last validation metrics.

    lr            of AdamW; Muon's is scaled with it
    start         begin from this codec: folder that this function wrote, or an agent
    decoder_only  of `start`, train the decoder alone: latents and models of them stay valid
    light         train a second, light decoder (`VideoDecoderConfig`) for the pictures of `start`

    Raises `ConfigError` for an unknown codec or a device that this machine lacks, `DataError` for missing arrays,
    `CheckpointError` if there is no codec to begin from.
    """
    world = join(device)
    if world.size > 1:
        raise TrainingError(f"a codec trains in one process, expected one, got {world.size}; start it without torchrun")
    if kind not in STAGES:
        raise ConfigError(f"unknown codec {kind!r}; expected one of {', '.join(STAGES)}")
    stage_class, config = STAGES[kind]
    if steps is not None:
        config = dataclasses.replace(config, steps=steps)
    if lr is not None:
        config = dataclasses.replace(config, lr=lr, muon_lr=config.muon_lr * lr / config.lr)
    if light and kind != "video":
        raise ConfigError("light: expected the codec for video, which has a second decoder, got the one for audio")
    options = {"light": True} if light else {"decoder_only": decoder_only}
    trainer = Trainer(stage_class(preset, Path(data_dir), config, start, **options), Path(out_dir), world)
    if resume:
        trainer.resume()
    return trainer.run(minutes)
