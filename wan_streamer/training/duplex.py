"""Stage `duplex`: the model learns two-sided conversation from encoded episodes (paper, stage 2).

One clip of K units is one forward pass. Loss = text cross-entropy + flow matching of video + flow matching of audio,
each averaged over its own elements (paper eq. 1-3), so that 28 video tokens do not drown 4 audio tokens.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.text import HOLD, SILENCE, TextCodec
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.data.lanes import conversation_lanes
from wan_streamer.data.latents import LatentStore
from wan_streamer.errors import DataError
from wan_streamer.flow.path import interpolate, sample_tau, velocity_target
from wan_streamer.model.layout import LANES, Latents
from wan_streamer.model.pretrained import Weights, codec_hash, save_weights
from wan_streamer.model.streamer import ClipBatch, Streamer
from wan_streamer.presets import get_preset
from wan_streamer.tensors import load_module
from wan_streamer.training.trainer import Stage, TrainConfig, Trainer, find_device
from wan_streamer.units import FRAMES_PER_UNIT

CLIP_UNITS = 24  # 3.84 s: one more than nano's longest window, so that sinks are seen in their moved place
TEXT_WEIGHT = 0.25
PAD_WEIGHT = {SILENCE: 0.3, HOLD: 0.4}  # most slots are pads; at full weight the agent would learn never to speak
TYPED_SHARE = 0.1  # of clips in which the user types instead of speaking
MICROPHONE_OFF_SHARE = 0.5  # of the clips in which the user types
CAMERA_OFF_SHARE = 0.1  # of clips, on top of those recorded without a camera
TEXT_HIDDEN_SHARE = 0.1  # of clips without the agent's text, so that sound and face can be guided by it
FROM_START_SHARE = 0.15  # of clips that begin where the session begins
NOISED_HISTORY_SHARE = 0.7  # of units; the others keep clean history, as it is live
OWN_TAU_SHARE = 0.2  # of units in which audio and video have their own times


def load_codecs(preset: str, codecs: Path) -> tuple[AudioVAE, VideoVAE]:
    """The trained codecs of a preset from the folder that `train codec` or a checkpoint wrote, rounded as stored."""
    config = get_preset(preset)
    audio_vae, video_vae = AudioVAE(config.audio_vae), VideoVAE(config.video_vae)
    load_module(audio_vae, Path(codecs) / "audio_vae.safetensors")
    load_module(video_vae, Path(codecs) / "video_vae.safetensors")
    for codec in (audio_vae, video_vae):
        with torch.no_grad():  # what a checkpoint does not store, such as the analysis window, is not rounded
            for value in codec.state_dict().values():
                value.copy_(value.bfloat16())
        codec.eval().requires_grad_(False)
    return audio_vae, video_vae


class DuplexStage(Stage):
    name = "duplex"

    def __init__(self, preset: str, data: Path, text: TextCodec, config: TrainConfig, units: int) -> None:
        torch.manual_seed(config.seed)
        self.config, self.units, self.text = config, units, text
        self.audio_vae, self.video_vae = load_codecs(preset, data)
        fingerprint = codec_hash(self.audio_vae, self.video_vae)
        self.streamer = Streamer(get_preset(preset))
        self.models: dict[str, nn.Module] = {"streamer": self.streamer}
        perception = get_preset(preset).perception
        self.train_store = LatentStore(Path(data) / "train", fingerprint, perception)
        self.valid_store = LatentStore(Path(data) / "valid", fingerprint, perception)
        short = min(labels["units"] for store in (self.train_store, self.valid_store) for labels in store.labels)
        if short < units:
            raise DataError(f"{data}: a conversation of {short} units is shorter than the clips of {units}")
        self.token_weight = torch.ones(self.streamer.config.text.vocab_size)
        for token, weight in PAD_WEIGHT.items():
            self.token_weight[token] = weight

    def is_hidden(self, name: str, p: nn.Parameter) -> bool:
        return p.ndim == 2 and name.startswith(("streamer.backbone.layers.", "streamer.hearing.blocks."))

    def batch(self, step: int) -> ClipBatch:
        rng = np.random.default_rng((self.config.seed, step))
        clips = self._clips(self.train_store, rng, self.config.batch)
        hidden_B = torch.from_numpy(rng.random(self.config.batch) < TEXT_HIDDEN_SHARE)
        return dataclasses.replace(clips, written_BK=clips.written_BK & ~hidden_B[:, None])

    def _clips(self, store: LatentStore, rng: np.random.Generator, rows: int) -> ClipBatch:
        model, K = self.streamer.config, self.units
        sizes = np.array([labels["units"] for labels in store.labels])
        clips = []
        for _ in range(rows):
            number = int(rng.choice(len(sizes), p=sizes / sizes.sum()))
            first = 0 if rng.random() < FROM_START_SHARE else int(rng.integers(0, sizes[number] - K + 1))
            clip = store.read(number, first, K)
            typed = rng.random() < TYPED_SHARE
            user_text, lanes = self._lanes(store, number, typed)
            sound, microphone = clip["user_audio"], True
            if typed:
                microphone = rng.random() >= MICROPHONE_OFF_SHARE
                hiss = torch.randn(sound.shape, generator=torch.Generator().manual_seed(number)) * 1e-3
                sound = hiss * microphone
            camera = "user_video" in clip and rng.random() >= CAMERA_OFF_SHARE
            shape = (K * FRAMES_PER_UNIT, model.perception.video_height, model.perception.video_width, 3)
            frames = clip["user_video"] if camera else torch.full(shape, 128, dtype=torch.uint8)
            clips.append(
                ClipBatch(
                    self.streamer.patchify(clip["video"]),
                    clip["audio"],
                    sound,
                    torch.full((K,), microphone),
                    frames,
                    torch.full((K,), camera),
                    torch.from_numpy(user_text[first : first + K]),
                    torch.from_numpy(lanes[first : first + K]),
                    torch.full((K,), True),
                )
            )
        fields = (field.name for field in dataclasses.fields(ClipBatch))
        return ClipBatch(*(torch.stack([getattr(clip, name) for clip in clips]) for name in fields))

    @functools.lru_cache(maxsize=4096)  # noqa: B019  (a stage lives as long as its run)
    def _lanes(self, store: LatentStore, number: int, typed: bool) -> tuple[np.ndarray, np.ndarray]:
        text = self.streamer.config.text
        return conversation_lanes(store.labels[number], text.slots, text.lead_units, self.text, typed)

    def loss(self, batch: ClipBatch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        flow = self.streamer.config.flow
        batch = ClipBatch(*(self.move(getattr(batch, field.name)) for field in dataclasses.fields(ClipBatch)))
        B, K = batch.microphone_BK.shape
        tau = sample_tau((B, K, 1), flow.shift, generator).expand(B, K, 2)
        own = torch.rand((B, K, 1), generator=generator) < OWN_TAU_SHARE
        tau = torch.where(own, sample_tau((B, K, 2), flow.shift, generator), tau)
        noised = torch.rand((B, K, 1), generator=generator) < NOISED_HISTORY_SHARE
        history_tau = torch.where(noised, torch.rand((B, K, 2), generator=generator) * flow.history_noise, 0.0)
        tau, history_tau = self.move(tau), self.move(history_tau)

        def noise_like(z: Tensor) -> Tensor:
            return self.move(torch.randn(z.shape, generator=generator))

        history = Latents(
            *(
                interpolate(z[:, :-1], noise_like(z[:, :-1]), history_tau[..., i, None, None])
                for i, z in enumerate((batch.video_BKNP, batch.audio_BKTC))
            )
        )
        clean = Latents(batch.video_BKNP[:, 1:], batch.audio_BKTC[:, 1:])
        noise = Latents(noise_like(clean.video), noise_like(clean.audio))
        noisy = Latents(
            *(interpolate(z, eps, tau[..., i, None, None]) for i, (z, eps) in enumerate(zip(clean, noise, strict=True)))
        )
        with torch.autocast(self.device.type, torch.bfloat16):
            velocity, logits = self.streamer(batch, history, history_tau, noisy, tau)
        # Patches that move (mouth, lids, head outline) count more than walls.
        motion = (clean.video - batch.video_BKNP[:, :-1]).square().mean(-1, keepdim=True)
        weight = (0.5 + motion / motion.mean()).clamp(max=4)
        weight = weight / weight.mean()
        video = (weight * (velocity.video - velocity_target(clean.video, noise.video)).square()).mean()
        audio = (velocity.audio - velocity_target(clean.audio, noise.audio)).square().mean()
        text, numbers = self._text_loss(logits, batch)
        numbers |= {"video": video.item(), "audio": audio.item(), "text": text.item()}
        return video + audio + TEXT_WEIGHT * text, numbers

    def _text_loss(self, logits: Tensor, batch: ClipBatch) -> tuple[Tensor, dict[str, float]]:
        target_BKSL = batch.slot_BKSL
        each = F.cross_entropy(logits.flatten(0, -2), target_BKSL.flatten(), reduction="none").view_as(target_BKSL)
        weight = self.move(self.token_weight)[target_BKSL] * batch.written_BK[..., None, None]
        right = logits.argmax(-1) == target_BKSL
        spoken = (target_BKSL > HOLD) & batch.written_BK[..., None, None]
        numbers = {f"{lane}_right": right[..., i][spoken[..., i]].float().mean().item() for i, lane in enumerate(LANES)}
        return (each * weight).sum() / weight.sum().clamp(min=1e-6), {key: value for key, value in numbers.items() if value == value}

    def validate(self) -> dict[str, float]:
        rng, totals = np.random.default_rng(1), []
        for number in range(4):
            batch = self._clips(self.valid_store, rng, 4)
            loss, numbers = self.loss(batch, 0, torch.Generator().manual_seed(number))
            totals.append({"loss": loss.item(), **numbers})
        keys = set.intersection(*(set(numbers) for numbers in totals))
        return {key: float(np.mean([numbers[key] for numbers in totals])) for key in sorted(keys)}

    def export(self, out_dir: Path) -> None:
        config = self.streamer.config
        save_weights(Weights(config, self.streamer, self.audio_vae, self.video_vae, self.text), out_dir)


def conversation_text(store: Path, vocab_size: int) -> TextCodec:
    """A tokenizer for the words of the training conversations in `store`."""
    import json

    from safetensors import safe_open

    texts = []
    for path in sorted(Path(store).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            words = json.loads(file.metadata()["labels"])["words"]
        texts += [" ".join(word["text"] for word in words[side]) for side in ("user", "agent")]
    if not texts:
        raise DataError(f"{store}: expected encoded conversations, found none")
    return TextCodec.train(texts, vocab_size)


def train_duplex(
    preset: str,
    data_dir: Path,
    out_dir: Path,
    resume: bool = False,
    steps: int | None = None,
    minutes: float | None = None,
    compiled: bool = False,
    device: str = "auto",
) -> dict[str, float]:
    """Train the model of `preset` on `data_dir` (codecs, train/ and valid/, as `encode` writes them) into `out_dir`.

    `compiled` fuses the layers with torch.compile: about a third fewer CPU seconds per step, needs a C++ compiler.
    """
    data_dir, out_dir, where = Path(data_dir), Path(out_dir), find_device(device)
    config = TrainConfig(
        steps=steps or 4000, lr=1.2e-3, muon_lr=3e-3, batch=4, warmup=100, ema=0.995, weight_decay=0.05
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = out_dir / "tokenizer.json"
    if tokenizer.exists():
        text = TextCodec.load(tokenizer)
    else:
        text = conversation_text(data_dir / "train", get_preset(preset).text.vocab_size)
        text.save(tokenizer)
    stage = DuplexStage(preset, data_dir, text, config, units=CLIP_UNITS)
    if compiled:
        stage.streamer.backbone.compile_training()
    trainer = Trainer(stage, out_dir, where)
    if resume:
        trainer.resume()
    return trainer.run(minutes)
