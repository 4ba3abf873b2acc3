"""A checkpoint folder: the model, its codecs, its tokenizer and its config, bound together.

`Weights`   the four parts in memory;   `load_weights` / `save_weights` between memory and a folder
`grown`     an agent with more parts
`find_checkpoint`   name of an embedded checkpoint, local folder or hub id -> local folder
`local_or_hub`      path or hub id -> path
"""

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.folder import codec_hash, load_codecs, load_light, save_light, weights_hash
from wan_streamer.codecs.text import TextCodec
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.config import StreamerConfig, load_config, to_dict
from wan_streamer.errors import CheckpointError
from wan_streamer.files import write_json
from wan_streamer.folders import KINDS, expected
from wan_streamer.model.streamer import Streamer
from wan_streamer.tensors import is_main_process, load_module, packed, save_atomically, unpacked, whole

EMBEDDED = Path(__file__).parent.parent / "checkpoints"
CODEC_KEY = "codecs"  # in model.safetensors: which codecs the model was trained on
ADDED = ("wording.goes_on",)  # weights that older checkpoints do not have, and that change nothing as they begin


@dataclass
class Weights:
    """light_vae  the video codec with a second decoder, for slow machines;   light  whether that draws the agent"""

    config: StreamerConfig
    streamer: Streamer
    audio_vae: AudioVAE
    video_vae: VideoVAE
    text: TextCodec
    light_vae: VideoVAE | None = None
    light: bool = False

    @property
    def decoding_vae(self) -> VideoVAE:
        """The codec that draws the agent."""
        return self.light_vae if self.light and self.light_vae is not None else self.video_vae

    @property
    def codec_hash(self) -> str:
        return codec_hash(self.audio_vae, self.video_vae)

    @cached_property
    def fingerprint(self) -> str:
        """Of all parts, as they are stored."""
        return weights_hash(self.streamer, self.audio_vae, self.video_vae)


def find_checkpoint(name: str) -> Path:
    """The folder of `name`. Raises `CheckpointError` with the choices if there is none."""
    if Path(name).name == name and (EMBEDDED / name / "config.json").is_file():
        return EMBEDDED / name
    folder = local_or_hub(name)
    if not KINDS["agent"].holds(folder):
        known = ", ".join(sorted(path.parent.name for path in EMBEDDED.glob("*/config.json")))
        raise CheckpointError(f"{name}: {expected('agent', folder)}, or name a built-in one ({known})")
    return folder


def local_or_hub(name: str) -> Path:
    """The path `name`, or the downloaded folder of the hub id `name` (owner/model) if nothing local has that name.

    Only weights that load without unpickling are fetched. Raises `CheckpointError` if the hub does not have it.
    """
    path = Path(name)
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/")):
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(f"{name}: not a folder; to load from a hub, pip install huggingface_hub") from error
    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "README.md"]))
    except Exception as error:  # network, permission and naming errors of the hub client
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{name}: no such folder, and the hub answered: {reason}") from error


def load_weights(folder: Path) -> Weights:
    """Read a checkpoint folder. Raises `CheckpointError` or `ConfigError` naming the damaged part."""
    folder = Path(folder)
    config, text = load_config(folder / "config.json"), TextCodec.load(folder / "tokenizer.json")
    audio_vae, video_vae = load_codecs(config, folder)
    streamer = Streamer(config)
    added = {name: value for name, value in streamer.state_dict().items() if name in ADDED}
    load_module(streamer, folder / "model.safetensors", added)
    check_codecs(folder, audio_vae, video_vae)
    return Weights(config, streamer, audio_vae, video_vae, text, load_light(folder, video_vae))


def codecs_of(folder: Path) -> str:
    """Hash of the codecs on which the model in `folder` was trained; "unknown" where it does not say."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return (file.metadata() or {}).get(CODEC_KEY, "unknown")


def check_codecs(folder: Path, audio_vae: AudioVAE, video_vae: VideoVAE) -> None:
    """Raise `CheckpointError` unless the model in `folder` was trained on these codecs."""
    trained_on, present = codecs_of(folder), codec_hash(audio_vae, video_vae)
    if trained_on != present:
        raise CheckpointError(f"{folder}: the model was trained on codecs {trained_on}, but those here are {present}")


def grown(weights: Weights, config: StreamerConfig) -> Weights:
    """The same agent with parts more, as `config` has them; they are fresh, and so is all of another shape."""
    streamer = Streamer(config)
    fresh, known = streamer.state_dict(), weights.streamer.state_dict()
    kept = {name: known[name] for name in fresh if name in known and known[name].shape == fresh[name].shape}
    streamer.load_state_dict(fresh | kept)
    return replace(weights, config=config, streamer=streamer)


def save_weights(weights: Weights, folder: Path, small: bool = False) -> None:
    """Write a checkpoint folder, weights as bfloat16 (statistics too: they are part of the codecs' hash).

    small  the matrices of the model, of the sound's codec and of the decoder of pictures in 8 bits; the codecs are then
           the rounded ones. The encoder of pictures stays as it is: latents depend on it

    Where many processes hold parts of the weights, all of them call it and the first one writes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    codecs: dict[str, nn.Module] = {"audio_vae": weights.audio_vae, "video_vae": weights.video_vae}
    read_back = [_read_back(name, codec) if small else codec for name, codec in codecs.items()]
    binding = {CODEC_KEY: weights_hash(*read_back)}
    parts = {name: (codec, dict[str, str]()) for name, codec in codecs.items()} | {"model": (weights.streamer, binding)}
    for name, (module, metadata) in parts.items():
        tensors = {key: whole(value.detach()).cpu().bfloat16() for key, value in module.state_dict().items()}
        if is_main_process():
            save_atomically(_smaller(name, tensors) if small else tensors, folder / f"{name}.safetensors", metadata)
    if not is_main_process():
        return
    if weights.light_vae is not None:
        save_light(weights.light_vae, folder)
    weights.text.save(folder / "tokenizer.json")
    write_json(folder / "config.json", to_dict(weights.config))


def _smaller(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = {name: value for name, value in tensors.items() if part == "video_vae" and not name.startswith("dec_")}
    return packed({name: value for name, value in tensors.items() if name not in kept}) | kept


def _read_back(part: str, codec: nn.Module) -> nn.Module:
    """A codec as it is read back from 8 bits."""
    rounded = copy.deepcopy(codec)
    stored = _smaller(part, {name: value.bfloat16() for name, value in codec.state_dict().items()})
    rounded.load_state_dict({name: value.float() for name, value in unpacked(stored).items()})
    return rounded
