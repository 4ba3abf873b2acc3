"""The unified model: one causal Transformer over the interleaved units of user and agent (paper section 3).

    forward     training: one pass over a clip -> velocities of every noisy latent, logits of every text slot
    settle      live: the next block opens, and the agent's last latents enter the history
    observe     live: unit k of the user enters the history -> logits of the first slots
    speak       live: the chosen tokens of one slot enter the history -> logits of the next
    velocity    live: the solver's function; reads the history, commits nothing
    text_logits text only: a plain causal language model, without units, lanes and places

The network predicts the clean latent, and v = (z_tau - z0) / tau follows, so that a width of 256 need not carry 144
numbers of noise through every layer; the loss is on the velocity (paper eq. 3).
"""

import torch
from torch import Tensor, nn

from wan_streamer.codecs.text import SILENCE
from wan_streamer.config import FloorConfig, StreamerConfig
from wan_streamer.model.backbone import Backbone, Step
from wan_streamer.model.cache import KVCache, KVSlice, LiveState
from wan_streamer.model.layers import States, tokens_at
from wan_streamer.model.layout import LANES, ClipBatch, Kind, Latents
from wan_streamer.model.memory import PADDING, RESPONSE, SOURCES, TRANSCRIPT, readable, spoken
from wan_streamer.model.words import Words
from wan_streamer.perception.audio import hearing
from wan_streamer.perception.hindsight import hindsight
from wan_streamer.perception.reading import hints, live_hints, reading
from wan_streamer.perception.sight import Sight
from wan_streamer.perception.trust import Trust, as_expected
from wan_streamer.perception.turn import no_turn
from wan_streamer.perception.video import seeing
from wan_streamer.speaking.floor import Floor
from wan_streamer.speaking.sounds import UNKNOWN
from wan_streamer.speaking.voice import Voice
from wan_streamer.speaking.wording import Wording
from wan_streamer.units import SAMPLES_PER_UNIT

TAU_FLOOR = 0.1  # the velocity is (z - z0) / max(tau, TAU_FLOOR)


class Streamer(Words):
    def __init__(self, config: StreamerConfig) -> None:
        super().__init__()
        self.config = config
        D, media = config.backbone.dim, config.backbone.media
        M = D if media is None else media.dim
        self.backbone = Backbone(config)
        self.layout = self.backbone.layout
        self.hearing = hearing(config.perception)
        self.seeing = seeing(config.perception)
        self.reading = reading(config.perception, config.text.vocab_size)
        self.hindsight = hindsight(config.perception)
        self.trust = None if self.reading is None else Trust(D, config.perception.reading_due)
        self.user_audio_in = nn.Linear(config.perception.audio_features, M)
        self.user_video_in = nn.Linear(config.perception.video_features, M)
        self.off = nn.Parameter(torch.randn(2, M) * 0.02)  # microphone off, camera off
        self.video_in = nn.Linear(config.patch_dim, M)
        self.audio_in = nn.Linear(config.audio_vae.latent_dim, M)
        self.text_in = nn.Embedding(config.text.vocab_size, D)
        self.text_out = None if config.text.tied_head else nn.Linear(D, config.text.vocab_size, bias=False)
        N, texts = len(self.layout.kind_N), int((self.layout.kind_N == Kind.TEXT).sum())
        # one vector per place in a block
        self.place = nn.Parameter(torch.randn(N if media is None else texts, D) * 0.02)
        self.media_place = None if media is None else nn.Parameter(torch.randn(N - texts, M) * 0.02)
        self.tau_in = nn.Sequential(nn.Linear(64, M), nn.SiLU(), nn.Linear(M, M))
        self.video_out = nn.Linear(M, config.patch_dim)
        self.audio_out = nn.Linear(M, config.audio_vae.latent_dim)
        self.voice = (
            None
            if config.voice is None
            else Voice(config.voice, config.text.vocab_size, config.text.slots, config.audio_vae.latent_dim)
        )
        words = config.wording
        self.wording = None if words is None else Wording(words, config.text.vocab_size, len(SOURCES))
        self.floor = None if config.floor is None else self._new_floor(config.floor)
        names = config.sight
        features, V = config.perception.video_features, config.text.vocab_size
        self.sight = None if names is None else Sight(names, features, V)
        self.apply(self._initialise)
        nn.init.zeros_(self.video_out.weight)
        nn.init.zeros_(self.audio_out.weight)
        for module in (self.hindsight, self.trust, self.voice, self.wording, self.floor):
            if module is not None:
                module.reset()
        self.together: Step | None = None  # where live sessions on several threads meet
        self._kinds = {}
        self.memory_in = nn.Parameter(torch.randn(len(SOURCES), D) * 0.02) if config.cache.memory_tokens else None

    def _new_floor(self, floor: FloorConfig) -> Floor:
        sensed, text = self.config.perception, self.config.text
        pictures = sensed.video_ticks * sensed.video_grid[0] * sensed.video_grid[1]
        heard, seen = (sensed.audio_tokens, sensed.audio_features), (pictures, sensed.video_features)
        told = 0 if self.config.wording is None else self.config.wording.dim
        return Floor(floor, heard, seen, text.vocab_size, text.slots, len(LANES), told)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.backbone.dim**-0.5)

    # ---- training

    def forward(
        self, batch: ClipBatch, history: Latents | None, history_tau: Tensor, noisy: Latents | None, tau_BK2: Tensor
    ) -> tuple[Latents | None, Tensor]:
        """One pass over a clip.

        history      clean latents of units -1 ... K-2, maybe noised: [B, K, N, P] and [B, K, 4, C]; None leaves out
                     what the agent has made, N = 0 here and in `noisy` its pictures
        history_tau  [B, K, 2] how much, told to the model
        noisy        z_tau of units 0 ... K-1;  tau_BK2 its times; None where only the text is wanted
        Returns the velocities, shaped like `noisy`, and logits [B, K, S, lanes, V].
        """
        pictures = history is None or history.video.shape[2] > 0
        sensed = batch.user_audio.shape[1] > 0, batch.user_video.shape[1] > 0
        parts_read = history is not None, *sensed, noisy is not None, pictures
        layout = self.layout.part(*parts_read)
        heard, seen = self._perceive(batch)
        written_BKS = batch.slot_BKSL[..., TRANSCRIPT]
        expected = hints(self.reading, self.config.perception, heard, batch.microphone_BK, written_BKS)
        user = self._embed_user(heard, batch.microphone_BK, seen, batch.camera_BK, batch.user_text_BKS, expected)
        slots = self.text_in(batch.slot_BKSL).flatten(2, 3) * batch.written_BK[..., None, None]
        parts = [*user, self._starts(slots), slots]
        if history is not None:
            parts = [*self._embed_latents(*history, history_tau), *parts]
        if noisy is not None:
            parts += self._embed_latents(*noisy, tau_BK2)
        memory = self._clip_memory(batch) if batch.memory_BM2.shape[1] else (None, None)
        hidden = self.backbone(self._joined(parts, *self.layout.kept(*parts_read)), *memory, layout)
        asking = tokens_at(hidden, slice(layout.lane_start.start, layout.slots[-1].start))
        asking = asking.unflatten(2, (self.config.text.slots, len(LANES)))
        score_BKSV = None if expected is None else as_expected(expected, written_BKS)
        logits = self.trusted(self.logits(asking), asking, score_BKSV)
        logits = self._worded(logits, batch, expected, heard, seen)
        if noisy is None:
            return None, logits
        guessed = None
        if self.voice is not None and history is not None:
            told_BKP = torch.where(batch.written_BK.all(1)[:, None, None], batch.sound_BKP, UNKNOWN)
            guessed = self.voice.guess_clip(told_BKP, history.audio)
        return self._velocity(tokens_at(hidden, layout.noisy), noisy, tau_BK2, guessed), logits

    def _perceive(self, batch: ClipBatch) -> tuple[Tensor | None, Tensor | None]:
        """What is heard and seen in clips [B, K, tokens, features]; None for what is left out."""
        K, lead = batch.microphone_BK.shape[1], self.config.perception.lead_units
        heard, seen = (x if x.shape[1] else None for x in (batch.user_audio, batch.user_video))
        if heard is not None and heard.ndim == 2:
            with torch.set_grad_enabled(torch.is_grad_enabled() and lead == 0):  # ears that need one are not trained
                heard = self.hearing(heard)[0].unflatten(1, (lead + K, -1))[:, lead:]
        if seen is not None and seen.ndim == 5:
            seen = self.seeing(seen)[0].unflatten(1, (K, -1)).flatten(2, 3)
        return heard, seen

    def _clip_memory(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """The memories of clips: [B, M, D], and where they are [B, M]."""
        memory_BM2 = readable(batch.memory_BM2, batch.written_BK.all(1))
        return self._embed_memory(memory_BM2), memory_BM2[..., 0] != PADDING

    def _velocity(self, hidden: Tensor, noisy: Latents, tau: Tensor, guessed: Tensor | None) -> Latents:
        n = noisy.video.shape[-2]
        floor = tau.float().clamp(min=TAU_FLOOR)[..., None]
        clean_video = self.video_out(hidden[..., :n, :]).float()
        clean_audio = self.audio_out(hidden[..., n:, :]).float()
        clean_audio = clean_audio if guessed is None else clean_audio + guessed
        return Latents((noisy.video - clean_video) / floor[..., :1, :], (noisy.audio - clean_audio) / floor[..., 1:, :])

    # ---- live

    def open(self, memory_N2: Tensor | None = None) -> LiveState:
        """A fresh session's state. `memory_N2` is what was said before, as in `ClipBatch` but without padding."""
        live = LiveState(KVCache(self.config, self.layout, self.device, self.backbone.weight.dtype))
        if memory_N2 is not None:
            live.told_N2 = memory_N2.cpu()
        if self.reading is not None and self.config.perception.reading_again:
            live.turn = no_turn(self.device)
        if self.voice is not None:
            live.speech = self.voice.begin()
        if self.wording is not None:
            live.talk = self.wording.read(self.wording.begin(), live.told_N2.to(self.device))
        if self.floor is not None:
            live.floor = self.floor.begin()
        if self.sight is not None:
            live.sight = self.sight.begin(1)
        if self.chat is not None:
            live.reply = self.chat.begin()
        return live

    def silence(self) -> Latents:
        """The latents before the first unit: zeros, as in training."""
        config, device = self.config, self.device
        return Latents(
            torch.zeros(config.video_tokens, config.patch_dim, device=device),
            torch.zeros(config.audio_tokens, config.audio_vae.latent_dim, device=device),
        )

    def settle(self, live: LiveState, last: Latents) -> None:
        """Open the next block and commit the last latents, unless it is done. Needs nothing of the user's unit."""
        if live.settled:
            return
        self._remember(live)
        live.cache.open_block()
        clean = self._embed_latents(*last, torch.zeros(2, device=self.device))
        self._commit(live, clean, self.layout.clean)
        live.settled = True

    def observe(
        self, live: LiveState, last: Latents, audio_T: Tensor | None, frames_THWC: Tensor | None, text_S: Tensor
    ) -> Tensor:
        """Commit the user's unit, after `settle`. Returns logits [lanes, V] of slot 1.

        frames_THWC has the size of the video encoder (`perception.scale_frames`).
        """
        self.settle(live, last)
        device, perception = self.device, self.config.perception
        microphone, camera = torch.tensor([audio_T is not None, frames_THWC is not None], device=device)
        audio_T = torch.zeros(SAMPLES_PER_UNIT, device=device) if audio_T is None else audio_T
        if frames_THWC is None:
            shape = (4, perception.video_height, perception.video_width, 3)
            frames_THWC = torch.full(shape, 128, dtype=torch.uint8, device=device)
        heard, live.hearing = self.hearing(audio_T[None], live.hearing)
        seen, live.seeing = self.seeing(frames_THWC[None], live.seeing)
        written = [said[:, TRANSCRIPT] for said in live.said]
        live.expected = live_hints(self.reading, perception, live.heard, heard[0], microphone, written, live.expected)
        if self.hindsight is not None:
            live.features.append(heard[0].float())
            while len(live.features) > perception.reading_again:
                live.features.popleft()
        live.again, live.whole_N, live.turn = None, None, None if live.turn is None else live.turn.later()
        user = self._embed_user(heard[0], microphone, seen[0].flatten(0, 1), camera, text_S, live.expected)
        if self.config.cache.memory_tokens:
            live.said.append(torch.full((len(text_S), len(SOURCES)), SILENCE, device=device))
            live.said[-1][:, len(LANES) :] = text_S[:, None]
        if live.speech is not None:
            live.speech = live.speech.heard(last.audio)
        if live.talk is not None:
            self._follow(live, live.said[-1])
        self._attend(live, heard[0], microphone, seen[0].flatten(0, 1), camera, text_S)
        live.settled = False
        return self._asked(live, 0, self._commit(live, [*user, self._starts(user[-1])], self.layout.opening))

    def speak(self, live: LiveState, slot: int, token_L: Tensor, written: bool = True) -> Tensor:
        """Commit the tokens [lanes] of one slot. Returns logits [lanes, V] of the next slot (unused after the last).

        written  False hides them, as `ClipBatch.written_BK` does
        """
        if live.said:
            first = 0 if written else RESPONSE + 1
            live.said[-1][slot, first : len(LANES)] = token_L[first:]
        if live.talk is not None:
            self._follow(live, live.said[-1][slot, None, : len(LANES)])
        self._take_down(live, token_L[TRANSCRIPT])
        if live.expected is not None:
            alike = token_L[TRANSCRIPT] == live.expected.token[slot]
            live.expected = live.expected._replace(score=live.expected.score * alike)
        hidden_BND = self._commit(live, [self.text_in(token_L) * written], self.layout.slots[slot])
        if live.speech is not None:
            live.speech = live.speech.written(slot, token_L[RESPONSE] if written else SILENCE)
            if self.voice is not None and slot == self.config.text.slots - 1:
                live.speech, live.guessed = self.voice.say(live.speech, known=written)
        return self._asked(live, slot + 1, hidden_BND)

    def _remember(self, live: LiveState) -> None:
        """The words of the unit that leaves the text window go to the memory."""
        cache = self.config.cache
        new_N2 = live.told_N2
        if live.said and len(live.said) == cache.text_units:
            new_N2 = torch.cat([new_N2, spoken(live.said.popleft()[None].cpu())])
        if len(new_N2):
            new_N2 = new_N2[-cache.memory_tokens :].to(self.device)
            past_2ZMGd = live.cache.memory(cache.span - 1)  # no word sees more than in training
            live.cache.remember(self.backbone.remember(self._embed_memory(new_N2), past_2ZMGd))
            live.told_N2 = live.told_N2[:0]

    def _commit(self, live: LiveState, parts: list[Tensor], where: slice) -> States:
        hidden_BND, slices = self._read(live, parts, where)
        live.cache.append(slices[0])
        return hidden_BND

    def _read(self, live: LiveState, parts: list[Tensor], where: slice) -> tuple[States, list[KVSlice]]:
        """One pass of parts [n, D] that stand at `where` of the open block."""
        step, x_BND = self.together or self.backbone.step, self._joined([part[None] for part in parts], where)
        return step(x_BND, torch.arange(where.start, where.stop), [live.cache])

    def velocity(self, live: LiveState, noisy: Latents, tau: float) -> Latents:
        """Velocities of the open block's latents at time `tau`. Peeks."""
        times = torch.full((2,), tau, device=self.device)
        hidden_BND, _ = self._read(live, self._embed_latents(*noisy, times), self.layout.noisy)
        return self._velocity(tokens_at(hidden_BND, slice(None))[0], noisy, times, live.guessed)

    def quiet_slots(self) -> Tensor:
        """Empty user text [S]."""
        return torch.full((self.config.text.slots,), SILENCE, device=self.device)

    # ---- text only

    def text_logits(self, token_BN: Tensor, past_Z2BMGd: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [B, N, V] after each of N more tokens of plain text, or of a memory [B, N, 2]; the past for the next.

        Without places and lanes, so these are those of a language model that it starts from (`model/language.py`).
        """
        x_BND = self.text_in(token_BN) if token_BN.ndim == 2 else self._embed_memory(token_BN)
        hidden, past_Z2BMGd = self.backbone.read(x_BND, past_Z2BMGd)
        return self.logits(hidden), past_Z2BMGd
