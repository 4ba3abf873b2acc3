"""An agent as small as it is shipped: python scripts/pack_agent.py RUN OUT [--without-senses].

Writes OUT with the matrices of model and codecs in 8 bits, and the encoder of pictures as it is. With
--without-senses only what a run has learned: no codecs, and no ears, reader and eyes that were trained before; `train
duplex --from OUT --ears ... --eyes ...` goes on from it, once the codecs are beside it.
"""

import argparse
from pathlib import Path

from wan_streamer.config import to_dict
from wan_streamer.files import write_json
from wan_streamer.model.pretrained import CODEC_KEY, find_checkpoint, load_weights, save_weights
from wan_streamer.tensors import packed, save_atomically

SENSES = ("hearing.", "seeing.", "reading.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("out", type=Path)
    parser.add_argument("--without-senses", action="store_true")
    options = parser.parse_args()
    weights = load_weights(find_checkpoint(options.run))
    if not options.without_senses:
        save_weights(weights, options.out, small=True)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    learned = {k: v.bfloat16() for k, v in weights.streamer.state_dict().items() if not k.startswith(SENSES)}
    save_atomically(packed(learned), options.out / "model.safetensors", {CODEC_KEY: weights.codec_hash})
    weights.text.save(options.out / "tokenizer.json")
    write_json(options.out / "config.json", to_dict(weights.config))


if __name__ == "__main__":
    main()
