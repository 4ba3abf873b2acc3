"""A cascade that answers a spoken question: separate parts, one after the other, as most talking agents are built.

`Cascade`   its parts, loaded and warm
`Answer`    what one question got, and when

    silero-vad v6           notices that the user has stopped, after `SILENCE_S` without speech
    Moonshine tiny          writes down what was said, when it is over
    SmolLM2-135M-Instruct   the first sentence of a reply, greedy, 8-bit weights
    Piper                   that sentence, in the agent's own voice
    our renderer            the first frame of the face that says it

Sound begins after the first sentence, not after the whole reply. silero-vad and Piper use one thread, the language
model as many as PyTorch has.
"""

import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wan_streamer.errors import ConfigError
from wan_streamer.model.gguf import packaged_gguf, read_gguf
from wan_streamer.simulation.face.motion import pose_track
from wan_streamer.simulation.face.person import AGENT_IDENTITY
from wan_streamer.simulation.face.renderer import FaceRenderer
from wan_streamer.simulation.voice.agent import piper_voice, session_options, timed_speech
from wan_streamer.simulation.voice.speech import Speech, resample
from wan_streamer.units import FPS, SAMPLE_RATE

RATE = 16_000  # of silero-vad and Moonshine
CHUNK, CONTEXT = 512, 64  # samples that silero-vad takes at a time, and those before that it sees again
SPEECH = 0.5  # probability above which a chunk counts as speech
SILENCE_S = 0.5  # so long nobody must speak before the turn counts as over
MOST_TOKENS = 30
SENTENCE_ENDS = (".", "!", "?", "\n")
PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
)
MOONSHINE = "pip install --no-deps moonshine-voice==0.0.49"


@dataclass(frozen=True)
class Answer:
    """Milliseconds from the end of the question; None if there was no answer.

    stages_ms   of each part; "silence" is the waiting that tells that the user has stopped
    """

    first_sound_ms: float | None
    first_frame_ms: float | None
    heard: str = ""
    said: str = ""
    stages_ms: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Parts:
    """What a cascade is made of.

    is_speech  the next chunk of a stream, float32 [512] at 16 kHz -> probability; `restart` begins a new stream
    write      float32 [T] at 16 kHz -> what was said
    reply      what was said -> the first sentence of an answer
    speak      a sentence -> sound, with its phonemes
    draw       a sentence's sound -> its first frame, uint8 [H, W, 3]
    """

    is_speech: Callable[[np.ndarray], float]
    restart: Callable[[], None]
    write: Callable[[np.ndarray], str]
    reply: Callable[[str], str]
    speak: Callable[[str], Speech]
    draw: Callable[[Speech], np.ndarray]


class Cascade:
    """clock  seconds; replaced in tests"""

    def __init__(self, parts: Parts, clock: Callable[[], float] = time.perf_counter) -> None:
        self.parts, self.clock = parts, clock

    @classmethod
    def load(cls, frame_size: tuple[int, int]) -> "Cascade":
        """All parts. Raises `ConfigError` or `CheckpointError` with the command that installs what is missing."""
        ears = _Silero()
        return cls(Parts(ears, ears.restart, _moonshine(), _smollm2(), _piper(), _face(*frame_size)))

    def answer(self, sound_T: np.ndarray, end_s: float) -> Answer:
        """Let it answer a question.

        sound_T  float32 at 24 kHz, with silence behind the question
        end_s    when its last sound ends

        The sound comes in real time, and what is computed while the user still speaks costs nothing.
        """
        sound_T, parts = resample(sound_T, SAMPLE_RATE, RATE), self.parts
        turn = self._end_of_turn(sound_T)
        if turn is None:
            return Answer(None, None)
        samples, vad_s = turn
        stages = {"silence": (samples / RATE - end_s) * 1000, "vad": vad_s * 1000}

        def timed(name: str, part: Callable[[Any], Any], given: Any) -> Any:
            began = self.clock()
            result = part(given)
            stages[name] = (self.clock() - began) * 1000
            return result

        heard = timed("recogniser", parts.write, sound_T[:samples])
        said = timed("language model", parts.reply, heard)
        if not said:
            return Answer(None, None, heard, said, stages)
        speech = timed("voice", parts.speak, said)
        sound_ms = sum(stages.values()) + 1000 * speech.phonemes[0].start
        timed("picture", parts.draw, speech)
        return Answer(sound_ms, sound_ms + stages["picture"], heard, said, stages)

    def _end_of_turn(self, sound_T: np.ndarray) -> tuple[int, float] | None:
        """Samples after which the turn counts as over, and the seconds of the last chunk; None if it never does."""
        self.parts.restart()
        quiet = None  # samples without speech; None before there was any
        for start in range(0, len(sound_T) - CHUNK + 1, CHUNK):
            began = self.clock()
            speech = self.parts.is_speech(sound_T[start : start + CHUNK]) > SPEECH
            took = self.clock() - began
            quiet = 0 if speech else None if quiet is None else quiet + CHUNK
            if quiet is not None and quiet >= SILENCE_S * RATE:
                return start + CHUNK, took
        return None


class _Silero:
    """silero-vad as the package faster-whisper carries it."""

    def __init__(self) -> None:
        import onnxruntime

        spec = importlib.util.find_spec("faster_whisper")
        if spec is None or spec.origin is None:
            raise ConfigError("the cascade needs silero-vad from faster-whisper: pip install 'wan-streamer[eval]'")
        model = Path(spec.origin).parent / "assets" / "silero_vad_v6.onnx"
        self._session = onnxruntime.InferenceSession(str(model), session_options(), providers=["CPUExecutionProvider"])
        self.restart()
        self(np.zeros(CHUNK, np.float32))  # warm

    def restart(self) -> None:
        self._h = self._c = np.zeros((1, 1, 128), np.float32)
        self._before_T = np.zeros(CONTEXT, np.float32)

    def __call__(self, chunk_T: np.ndarray) -> float:
        inputs = {"input": np.concatenate([self._before_T, chunk_T])[None], "h": self._h, "c": self._c}
        probability, self._h, self._c = self._session.run(None, inputs)
        self._before_T = chunk_T[-CONTEXT:]
        return float(probability.item())


def _moonshine() -> Callable[[np.ndarray], str]:
    try:
        import moonshine_voice
        from moonshine_voice.transcriber import Transcriber
    except ImportError as error:
        raise ConfigError(f"the cascade needs a recogniser, and {error.name} is missing: {MOONSHINE}") from error
    folder = Path(moonshine_voice.__file__).parent / "assets" / "tiny-en"
    model = Transcriber(str(folder), moonshine_voice.ModelArch.TINY)

    def write(sound_T: np.ndarray) -> str:
        lines = model.transcribe_without_streaming(sound_T.tolist(), RATE).lines
        return " ".join(line.text for line in lines)

    write(np.zeros(RATE, np.float32))
    return write


@torch.inference_mode()
def _smollm2() -> Callable[[str], str]:
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise ConfigError("the cascade needs transformers: pip install 'wan-streamer[bench]'") from error
    config, tensors, tokenizer = read_gguf(packaged_gguf())
    model: Any = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(tensors, strict=False)  # the head is the embedding
    model.tie_weights()
    per_row = torch.ao.quantization.per_channel_dynamic_qconfig
    model = torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear: per_row})
    end = tokenizer.token_to_id("<|im_end|>")

    @torch.inference_mode()
    def reply(question: str) -> str:
        given = torch.tensor([tokenizer.encode(PROMPT.format(question=question)).ids])
        tokens: list[int] = []
        past, text = None, ""
        while len(tokens) < MOST_TOKENS and not text.strip(" ").endswith(SENTENCE_ENDS):
            out = model(given, past_key_values=past, use_cache=True)
            past, given = out.past_key_values, out.logits[:, -1:].argmax(-1)
            if int(given) == end:
                break
            tokens.append(int(given))
            text = tokenizer.decode(tokens).lstrip()
        return text.strip()

    reply("Hello!")
    return reply


def _piper() -> Callable[[str], Speech]:
    from piper import SynthesisConfig

    voice = piper_voice(0, "en")

    def speak(sentence: str) -> Speech:
        chunks = list(voice.synthesize(sentence, SynthesisConfig(), include_alignments=True))
        return timed_speech(sentence, chunks, "en")

    speak("Hello!")
    return speak


def _face(height: int, width: int) -> Callable[[Speech], np.ndarray]:
    renderer = FaceRenderer(AGENT_IDENTITY, height, width)

    def draw(speech: Speech) -> np.ndarray:
        frames = int(speech.seconds * FPS) + 1
        motion = pose_track(frames, speech.phonemes, [(0.0, speech.seconds)], [], np.random.default_rng(0))
        return renderer.render(motion.poses[0])

    return draw
