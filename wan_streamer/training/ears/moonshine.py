"""Weights and vocabulary of Moonshine tiny as the package `moonshine-voice` carries them (MIT licence).

`encoder_weights`   float32 tensors under the names of `Ears`
`decoder_weights`   float32 tensors under the names of `Reader` (`perception/reading.py`)
`Tokenizer`         text <-> numbers

The files are onnxruntime's own flatbuffer of a graph with 8-bit matrices. Names of matrices are numbers; which is which
follows from the node that uses it. Nothing is unpickled and nothing runs.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wan_streamer.codecs.text import SPACE
from wan_streamer.errors import ConfigError, DataError

PACKAGE = "moonshine-voice==0.0.49"
BEGIN, END = 1, 2
FIRST_TEXT = 3  # numbers below are marks; then come the bytes
BYTES = 256
_TYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16}
_GRAPH = 5  # type of an attribute that holds a graph


@dataclass(frozen=True)
class OrtGraph:
    """Arrays by name, and the nodes as (inputs, outputs). Outputs of inner graphs begin with the graph's name."""

    arrays: dict[str, np.ndarray]
    nodes: list[tuple[list[str], list[str]]]

    def matrix(self, name: str) -> Tensor:
        """The quantised matrix `name` in float32, [in, out]."""
        stem = name.removesuffix("_quantized")
        zero, scale = self.arrays[f"{stem}_zero_point"], self.arrays[f"{stem}_scale"]
        return torch.from_numpy((self.arrays[name].astype(np.float32) - zero.astype(np.float32)) * scale)

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(np.array(self.arrays[name], np.float32))

    def used(self, inner: str, pattern: str) -> dict[tuple[str, ...], Tensor]:
        """Matrices [out, in] by the groups of `pattern` in the name of what a node makes with them."""
        found = {}
        for inputs, outputs in self.nodes:
            match = re.match(pattern, outputs[0].removeprefix(inner)) if outputs[0].startswith(inner) else None
            matrices = [name for name in inputs if re.fullmatch(r"onnx::MatMul_\d+\w*_quantized", name)]
            if match and matrices:
                found[match.groups()] = self.matrix(matrices[0]).T.contiguous()
        return found


def _folder() -> Path:
    try:
        import moonshine_voice
    except ImportError as error:
        raise ConfigError(f"the teacher needs the package {PACKAGE}: pip install {PACKAGE} onnxruntime") from error
    return Path(moonshine_voice.__file__).parent / "assets" / "tiny-en"


def _session_class() -> Any:
    """The reader of the flatbuffer that comes with onnxruntime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError("the teacher needs the package onnxruntime: pip install onnxruntime") from error
    sys.path.insert(0, str(Path(onnxruntime.__file__).parent / "tools" / "ort_format_model"))
    try:
        from ort_flatbuffers_py.fbs.InferenceSession import InferenceSession
    finally:
        sys.path.pop(0)
    return InferenceSession


def read_graph(path: Path) -> OrtGraph:
    """Raises `DataError` if the file is missing or another kind."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected weights of {PACKAGE} ({error})") from error
    if data[4:8] != b"ORTM":
        raise DataError(f"{path}: expected a model in onnxruntime's own format, found another file")
    graph = OrtGraph({}, [])
    _read_into(graph, _session_class().GetRootAs(data, 0).Model().Graph(), "")
    return graph


def _read_into(graph: OrtGraph, flat: Any, prefix: str) -> None:
    for i in range(flat.InitializersLength()):
        tensor = flat.Initializers(i)
        shape = [tensor.Dims(j) for j in range(tensor.DimsLength())]
        raw = tensor.RawDataAsNumpy()
        data = b"" if isinstance(raw, int) else bytes(raw)
        kind = _TYPES.get(tensor.DataType())
        if kind is not None:
            graph.arrays[tensor.Name().decode()] = np.frombuffer(data, kind).reshape(shape)
    for i in range(flat.NodesLength()):
        node = flat.Nodes(i)
        inputs = [node.Inputs(j).decode() for j in range(node.InputsLength())]
        graph.nodes.append((inputs, [prefix + node.Outputs(j).decode() for j in range(node.OutputsLength())]))
        for j in range(node.AttributesLength()):
            attribute = node.Attributes(j)
            if attribute.Type() == _GRAPH:
                _read_into(graph, attribute.G(), f"{prefix}{attribute.Name().decode()}:")


_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
_FEED = {"fc1": "up", "fc2": "down"}


def encoder_weights() -> dict[str, Tensor]:
    """Of the original encoder, under the names of `Ears`. Raises `ConfigError` without the package."""
    graph = read_graph(_folder() / "encoder_model.ort")
    tensors = {
        f"layers.{layer}.{(_ATTENTION | _FEED)[name]}.weight": matrix
        for (layer, name), matrix in graph.used("", r"/layers\.(\d)/(?:self_attn|mlp)/(\w+)/").items()
    }
    plain = {
        "stem.conv1.weight": "conv1.weight_add_tensor", "stem.conv2.weight": "conv2.weight_add_tensor",
        "stem.conv3.weight": "conv3.weight_add_tensor", "stem.conv2.bias": "conv2.bias",
        "stem.conv3.bias": "conv3.bias", "norm.weight": "layer_norm.weight",
    }  # fmt: skip
    for layer in {name.split(".")[1] for name in tensors}:
        there, here = f"layers.{layer}.", f"layers.{layer}."
        plain |= {f"{here}norm1.weight": f"{there}input_layernorm.weight"}
        plain |= {f"{here}norm2.weight": f"{there}post_attention_layernorm.weight"}
        plain |= {f"{here}{_FEED[name]}.bias": f"{there}mlp.{name}.bias" for name in _FEED}
    tensors |= {here: graph.tensor(there) for here, there in plain.items()}
    for here, made in (("stem.gain_C", "/groupnorm/Mul_output_0"), ("stem.bias_C", "/groupnorm/Add_output_0")):
        inputs = next(inputs for inputs, outputs in graph.nodes if outputs[0] == made)
        tensors[here] = graph.tensor(next(name for name in inputs if name in graph.arrays)).flatten()
    return tensors


def decoder_weights() -> dict[str, Tensor]:
    """Of the original decoder, under the names of `Reader`. Raises `ConfigError` without the package."""
    graph = read_graph(_folder() / "decoder_model_merged.ort")
    inner = "else_branch:"  # the branch for the first step, which makes keys and values of the sound, too

    blocks = {"self_attn": "own", "encoder_attn": "other"}
    tensors: dict[str, Tensor] = {}
    found = graph.used(inner, r"/model/decoder/layers\.(\d)/(self_attn|encoder_attn|mlp)/(\w+)/")
    for (layer, block, name), matrix in found.items():
        part = f"{blocks[block]}.{_ATTENTION[name]}" if block in blocks else _FEED[name]
        tensors[f"layers.{layer}.{part}.weight"] = matrix
    norms = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm", "norm3": "final_layernorm"}
    for layer in {name.split(".")[1] for name in tensors}:
        there, here = f"model.decoder.layers.{layer}.", f"layers.{layer}."
        for mine, theirs in [(f"{n}.weight", f"{t}.weight") for n, t in norms.items()] + [
            (f"{_FEED[name]}.bias", f"mlp.{name}.bias") for name in _FEED
        ]:
            tensors[here + mine] = graph.tensor(f"{there}{theirs}_merged_0")
    tensors["norm.weight"] = graph.tensor("model.decoder.norm.weight_merged_0")
    tensors["words.weight"] = graph.matrix("model.decoder.embed_tokens.weight_merged_0_quantized")
    return tensors  # the matrix of the logits is that of the embedding


class Tokenizer:
    """The vocabulary of Moonshine: byte pairs, merged by rank (the lower number first)."""

    def __init__(self, path: Path | None = None) -> None:
        path = path or _folder() / "tokenizer.bin"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: expected the vocabulary of {PACKAGE} ({error})") from error
        self.pieces: list[bytes] = []
        at = 0
        while at < len(data):
            length, at = data[at], at + 1
            if length >= 128:  # two bytes: low seven bits first
                length, at = data[at] * 128 + length - 128, at + 1
            self.pieces.append(data[at : at + length])
            at += length
        self.ranks = {piece: i for i, piece in enumerate(self.pieces)}  # a letter comes after its byte, and wins
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Numbers of a text, without the marks of begin and end."""
        return [number for word in text.split() for number in self._word(SPACE + word)]

    def most_used(self, texts: Iterable[str], count: int) -> list[int]:
        """Numbers of `count` pieces with which to write, in order: the commonest of `texts`, what they are merged from,
        all bytes and the letters of ASCII. Raises `ConfigError` if these are more than `count`.
        """
        kept = {FIRST_TEXT + byte for byte in range(BYTES)}
        kept |= {self.ranks[bytes([letter])] for letter in range(33, 127)} | {self.ranks[SPACE.encode()]}
        if len(kept) > count:
            raise ConfigError(f"text.vocab_size: expected at least {len(kept)} besides the marks, got {count}")
        used = Counter(number for text in texts for number in self.encode(text))
        for number, _ in used.most_common():
            wanted = kept | self._merged_from(self.pieces[number].decode("utf-8", "ignore"))
            if len(wanted) <= count:
                kept = wanted
        return sorted(kept)

    def named(self, number: int) -> str:
        """A piece as `TextCodec.of_pieces` takes it."""
        byte = number - FIRST_TEXT
        return f"<0x{byte:02X}>" if 0 <= byte < BYTES else self.pieces[number].decode()

    def decode(self, numbers: list[int]) -> str:
        """The text of these numbers; marks are left out."""
        data = b"".join(self.pieces[number] for number in numbers if number >= FIRST_TEXT)
        return data.decode("utf-8", "ignore").replace(SPACE, " ").strip()

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            self._known[word] = [self.ranks[part] for part in self._merge(word)[0]]
        return self._known[word]

    def _merged_from(self, word: str) -> set[int]:
        """All pieces on the way to those of `word`."""
        return {self.ranks[part] for part in self._merge(word)[1]}

    def _merge(self, word: str) -> tuple[list[bytes], set[bytes]]:
        """Its pieces, and all that stood on the way."""
        parts: list[bytes] = []
        for character in word:
            whole = character.encode()
            parts += [whole] if self.ranks.get(whole, 0) >= FIRST_TEXT + BYTES else [bytes([b]) for b in whole]
        made = set(parts)
        while len(parts) > 1:
            rank, place = min(
                (self.ranks.get(parts[i] + parts[i + 1], len(self.pieces)), i) for i in range(len(parts) - 1)
            )
            if rank == len(self.pieces):
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
            made.add(parts[place])
        return parts, made
