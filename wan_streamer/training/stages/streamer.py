"""What the stages that train the model itself have in common: data, codecs, objective, checkpoint."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn
from torch.nn.utils import parametrize

from wan_streamer.codecs.folder import codec_hash, load_codecs, load_light
from wan_streamer.codecs.text import TextCodec
from wan_streamer.config import StreamerConfig
from wan_streamer.data.encode import stale_reason
from wan_streamer.data.latents import LatentStore
from wan_streamer.errors import DataError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.layout import ClipBatch
from wan_streamer.model.pretrained import Weights, save_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.perception.senses import senses_of
from wan_streamer.training.examples.clips import ClipReader, Example
from wan_streamer.training.examples.heard import HeardClips
from wan_streamer.training.loop.means import means
from wan_streamer.training.loop.stage import Stage, TrainConfig
from wan_streamer.training.stages.lora import merged
from wan_streamer.training.stages.objective import MISREAD_SHARE, streamer_loss
from wan_streamer.training.stages.watch import write_heard, write_takes

VALIDATION = (4, 4)  # batches and rows of speech to write down
ALONE = 16  # clips that a model writes down by itself


class Listening:
    """Speech of a corpus that a model writes down, to train on and held out, if there is a corpus."""

    def __init__(self, corpus: Path | None, streamer: Streamer, text: TextCodec, units: int) -> None:
        self.train = None if corpus is None else HeardClips(corpus, "train", streamer.config, text, units)
        self.valid: HeardClips | None = None
        with contextlib.suppress(DataError):  # a young corpus has nothing held out
            self.valid = None if corpus is None else HeardClips(corpus, "valid", streamer.config, text, units)

    def validate(self, read_loss: Callable[[Example, RowNoise], dict[str, float]]) -> dict[str, float]:
        """`heard/...`: what of the held-out speech is written down rightly."""
        if self.valid is None:
            return {}
        batches, rows = (range(count) for count in VALIDATION)
        read = [read_loss(self.valid.batch(1, number, rows), RowNoise(2, number, rows)) for number in batches]
        return {f"heard/{name}": value for name, value in means(read).items() if name in ("text", "transcript_right")}

    def clips(self) -> list[ClipBatch]:
        """Held-out clips of one row, to be written down by the model alone."""
        if self.valid is None:
            return []
        return [self.valid.batch(1, number, range(1)).clips for number in range(ALONE)]


class StreamerStage(Stage):
    """Trains `streamer` on clips of `units` units of the latent stores `data`/train and `data`/valid.

    Raises `DataError` for latents of other codecs than those in `data`, `CheckpointError` where there are none.
    """

    def __init__(
        self,
        streamer: Streamer,
        text: TextCodec,
        data: Path,
        config: TrainConfig,
        units: int,
        heard: Path | None = None,
    ) -> None:
        self.config, self.streamer, self.text, self.units = config, streamer, text, units
        self.models: dict[str, nn.Module] = {"streamer": streamer}
        self.stores: list[LatentStore] = []  # all that is read
        self.heard = Listening(heard, streamer, text, config.clip_units)
        self.audio_vae, self.video_vae = load_codecs(streamer.config, data)
        self.light_vae = load_light(data, self.video_vae)
        self.train_clips, self.valid_clips = (self.reader(Path(data) / split, units) for split in ("train", "valid"))

    def reader(self, folder: Path, units: int) -> ClipReader:
        """Clips of the conversations or tasks in `folder`, which must be encoded by the codecs of this stage."""
        fingerprint, perception = codec_hash(self.audio_vae, self.video_vae), self.streamer.config.perception
        self.stores.append(LatentStore(folder, fingerprint, perception))
        return ClipReader(self.stores[-1], self.streamer.config, self.text, units)

    @property
    def served(self) -> StreamerConfig:
        """What the result is served with, and so what samples are made with."""
        return self.streamer.config

    def streamers(self) -> list[Streamer]:
        """All models whose passes a step runs, trained or only read."""
        return [self.streamer]

    def check_senses(self) -> None:
        """Raise `DataError` if what is trained on was heard or seen with others than the model's own ears and eyes."""
        streamer = self.streamer
        own = senses_of(streamer.config.perception, streamer.hearing, streamer.seeing)
        for store in self.stores:
            perceived = {name: value for name, value in store.senses.items() if value != "none"}
            reason = stale_reason(perceived, {name: own[name] for name in perceived})
            if reason:
                raise DataError(f"{store.folder}: {reason}; make the data again, with the model's own")
            if store is self.valid_clips.store and perceived:
                raise DataError(f"{store.folder}: expected sound and pictures, which samples are made from")

    def is_hidden(self, name: str, p: nn.Parameter) -> bool:
        inside = name.startswith(("streamer.backbone.layers.", "streamer.hearing.blocks."))
        return p.ndim == 2 and inside and "parametrizations" not in name  # corrections of low rank are no directions

    def listens(self, step: int) -> bool:
        """Whether the batch of a step is speech to write down."""
        return False

    def drawn(self, step: int) -> bool:
        """Whether there is something to draw in the batch of a step."""
        return not self.listens(step)

    def loss(self, batch: Example, step: int, noise: RowNoise) -> tuple[Tensor, dict[str, Tensor]]:
        with parametrize.cached():  # the embedding is read in several places
            return self.errors(batch, step, noise, MISREAD_SHARE)

    def errors(
        self, batch: Example, step: int, noise: RowNoise, misread: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and numbers of a step; `misread` as in `streamer_loss`."""
        example, drawn = batch.map(self.move), self.drawn(step)
        return streamer_loss(self.streamer, example, noise, self.move, self.autocast(), drawn=drawn, misread=misread)

    def read_loss(self, example: Example, noise: RowNoise, step: int = 0) -> dict[str, float]:
        """Loss and numbers of one batch as in `step`, for validation: all words are read as they are."""
        loss, numbers = self.errors(example, step, noise)
        return {"loss": loss.item(), **{name: value.item() for name, value in numbers.items()}}

    def sample_clips(self) -> list[ClipBatch]:
        """Held-out clips that `write_samples` rolls out: of the first two conversations, where the agent says most."""
        chosen = range(min(2, len(self.valid_clips.length)))
        return [self.valid_clips.read(number, self.valid_clips.busiest(number)).clips for number in chosen]

    def write_samples(self, stem: Path) -> dict[str, float]:
        write_takes(self.streamer, self.served, self.audio_vae, self.video_vae, self.text, self.sample_clips(), stem)
        if not (clips := self.heard.clips()):
            return {}
        numbers = write_heard(self.streamer, self.served, self.text, clips, stem)
        return {f"heard/{name}": value for name, value in numbers.items()}

    def export(self, out_dir: Path) -> None:
        weights = Weights(self.served, merged(self.streamer), self.audio_vae, self.video_vae, self.text, self.light_vae)
        save_weights(weights, out_dir)
