"""Workers of benchmarks/decode.py: the reference library and CTranslate2, in their own environment.

They read one JSON order per line and answer with one JSON line. The first order names the rival and, for the first of
them, requests the models: random weights of the real shapes, because speed does not depend on their values. CTranslate2
is imported only if it is among the rivals.
"""

import json
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, MarianConfig, MarianMTModel

NUM_THREADS = 2


def make_models(folder: Path, shape: dict) -> None:
    """Write gpt2, of this shape, and marian in the reference library's format."""
    torch.manual_seed(0)
    marian = MarianConfig(
        vocab_size=32000,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        max_position_embeddings=512,
        pad_token_id=31999,
        decoder_start_token_id=31999,
        eos_token_id=0,
        forced_eos_token_id=None,
        activation_function="swish",
        scale_embedding=True,
    )
    gpt2 = GPT2Config(eos_token_id=0, bos_token_id=0, **shape)
    for name, model in {"gpt2": GPT2LMHeadModel(gpt2), "marian": MarianMTModel(marian)}.items():
        model.save_pretrained(folder / name)


class Transformers:
    """The reference library's `generate` in PyTorch; in bfloat16 with its static cache, which it compiles on a GPU."""

    def __init__(self, folder: Path, device: str, is_half: bool):
        self.device = device
        self.options = {"cache_implementation": "static"} if is_half else {}
        self.num_rows = 0
        dtype = torch.bfloat16 if is_half else torch.float32
        torch.set_num_threads(NUM_THREADS)
        classes = {"gpt2": GPT2LMHeadModel, "marian": MarianMTModel}
        self.models = {
            name: c.from_pretrained(folder / name, dtype=dtype).to(device).eval() for name, c in classes.items()
        }
        for model in self.models.values():
            model.generation_config.eos_token_id = None  # every sequence runs to its maximal length

    def generate(self, model: str, rows: list[list[int]], num_new: int, num_beams: int) -> list[list[int]]:
        if self.options and len(rows) != self.num_rows:
            torch.compiler.reset()  # compiled anew for a size, not for all sizes, which would be slower
        self.num_rows = len(rows)
        tokens = torch.tensor(rows, device=self.device)
        with torch.inference_mode():
            out = self.models[model].generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=num_new,
                num_beams=num_beams,
                do_sample=False,
                pad_token_id=31999 if model == "marian" else 0,
                **self.options,
            )
        return out[:, -num_new:].tolist()


def main():
    setup = json.loads(sys.stdin.readline())
    folder = Path(setup["folder"])
    versions = {m.__name__: m.__version__ for m in (torch, transformers)}
    if setup["make_models"]:
        make_models(folder, setup["shape"])
    rivals = {"transformers": Transformers}
    if "ctranslate2" in setup["rivals"]:
        import ctranslate2
        import decode_ctranslate2

        rivals["ctranslate2"] = decode_ctranslate2.CTranslate2
        versions["ctranslate2"] = ctranslate2.__version__
        if setup["make_models"]:
            decode_ctranslate2.convert(folder)
    rival = rivals[setup["rival"]](folder, setup["device"], setup["is_half"])
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        began = time.perf_counter()
        tokens = rival.generate(**order)
        print(json.dumps({"seconds": time.perf_counter() - began, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
