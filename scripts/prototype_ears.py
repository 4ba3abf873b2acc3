"""Ears of an earlier, smaller distillation in the project's own format: python scripts/prototype_ears.py STUDENT OUT.

STUDENT is a safetensors file with its short names (`c1`, `l0_q_proj`, ...); docs/hearing.md calls its weights "first".
"""

import argparse
from pathlib import Path

from wan_streamer.perception.ears import Ears, save_ears
from wan_streamer.tensors import load_tensors

STEM = {
    "c1": "stem.conv1.weight", "c2": "stem.conv2.weight", "c2b": "stem.conv2.bias", "c3": "stem.conv3.weight",
    "c3b": "stem.conv3.bias", "gw": "stem.gain_C", "gb": "stem.bias_C", "ln": "norm.weight",
}  # fmt: skip
LAYER = {
    "n1": "norm1.weight", "n2": "norm2.weight", "q_proj": "query.weight", "k_proj": "key.weight",
    "v_proj": "value.weight", "o_proj": "out.weight", "fc1": "up.weight", "b1": "up.bias", "fc2": "down.weight",
    "b2": "down.bias",
}  # fmt: skip
ROTARY = "inv"  # computed here


def own_name(name: str) -> str:
    layer, _, part = name.partition("_")
    return STEM[name] if name in STEM else f"layers.{layer.removeprefix('l')}.{LAYER[part]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    ears, student = Ears(), load_tensors(options.student)
    own = ears.state_dict()
    for name in student.keys() - {ROTARY}:
        own[own_name(name)] = student[name].float().view_as(own[own_name(name)])
    ears.load_state_dict(own)
    save_ears(ears, options.out)


if __name__ == "__main__":
    main()
