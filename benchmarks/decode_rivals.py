"""Workers of benchmarks/decode.py: the reference library and CTranslate2, in their own environment.

They read one JSON order per line and answer with one JSON line. The first order names the rival and, for the first of
them, requests the models: random weights of the real shapes, because speed does not depend on their values.
"""

import json
import sys
import time
from pathlib import Path

import ctranslate2
import torch
import transformers
from ctranslate2.converters import TransformersConverter
from transformers import GPT2Config, GPT2LMHeadModel, MarianConfig, MarianMTModel

NUM_THREADS = 2


class NoTokenizer:
    """Vocabulary of numbers, for a converter that needs words."""

    bos_token = eos_token = unk_token = "0"

    def __init__(self, size: int):
        self.size = size

    def get_vocab(self):
        return {str(i): i for i in range(self.size)}

    def convert_ids_to_tokens(self, token):
        return str(token)


class Converter(TransformersConverter):
    def load_model(self, model_class, path, **kwargs):
        self.model = super().load_model(model_class, path, **kwargs)
        return self.model

    def load_tokenizer(self, tokenizer_class, path, **kwargs):
        size = self.model.config.vocab_size
        is_marian = self.model.config.model_type == "marian"
        return NoTokenizer(size - 1 if is_marian else size)  # Marian's last token, padding, is not in its vocabulary


def make_models(folder: Path) -> None:
    """Write gpt2 and marian in the reference library's format and in CTranslate2's."""
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
    models = {"gpt2": GPT2LMHeadModel(GPT2Config(eos_token_id=0, bos_token_id=0)), "marian": MarianMTModel(marian)}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        Converter(str(folder / name)).convert(str(folder / f"{name}_ct2"))


class Transformers:
    """The reference library's `generate` in PyTorch; on a GPU in bfloat16, compiled by its static cache."""

    def __init__(self, folder: Path, device: str):
        self.device = device
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        torch.set_num_threads(NUM_THREADS)
        classes = {"gpt2": GPT2LMHeadModel, "marian": MarianMTModel}
        self.models = {
            name: c.from_pretrained(folder / name, dtype=dtype).to(device).eval() for name, c in classes.items()
        }
        for model in self.models.values():
            model.generation_config.eos_token_id = None  # every sequence runs to its maximal length

    def generate(self, model: str, rows: list[list[int]], num_new: int, num_beams: int) -> list[list[int]]:
        static = {"cache_implementation": "static"} if self.device == "cuda" else {}
        tokens = torch.tensor(rows, device=self.device)
        with torch.inference_mode():
            out = self.models[model].generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=num_new,
                num_beams=num_beams,
                do_sample=False,
                pad_token_id=31999 if model == "marian" else 0,
                **static,
            )
        return out[:, -num_new:].tolist()


class CTranslate2:
    """CTranslate2 in float32, with its default settings."""

    def __init__(self, folder: Path, device: str):
        options = dict(device=device, compute_type="float32", inter_threads=1, intra_threads=NUM_THREADS)
        self.gpt2 = ctranslate2.Generator(str(folder / "gpt2_ct2"), **options)
        self.marian = ctranslate2.Translator(str(folder / "marian_ct2"), **options)

    def generate(self, model: str, rows: list[list[int]], num_new: int, num_beams: int) -> list[list[int]]:
        words = [[str(token) for token in row] for row in rows]
        options = dict(beam_size=num_beams, max_batch_size=len(rows), batch_type="examples")
        if model == "marian":  # its lengths count no padding, and a minimal length forbids the end token
            results = self.marian.translate_batch(
                words, max_decoding_length=num_new, min_decoding_length=num_new, max_input_length=0, **options
            )
            return [[int(word) for word in result.hypotheses[0]] for result in results]
        results = self.gpt2.generate_batch(
            words, max_length=num_new, min_length=num_new, include_prompt_in_result=False, sampling_topk=1, **options
        )
        return [result.sequences_ids[0] for result in results]


def main():
    setup = json.loads(sys.stdin.readline())
    if setup["make_models"]:
        make_models(Path(setup["folder"]))
    rival = {"transformers": Transformers, "ctranslate2": CTranslate2}[setup["rival"]](
        Path(setup["folder"]), setup["device"]
    )
    print(json.dumps({m.__name__: m.__version__ for m in (torch, transformers, ctranslate2)}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        began = time.perf_counter()
        tokens = rival.generate(**order)
        print(json.dumps({"seconds": time.perf_counter() - began, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
