"""CTranslate2 as a worker of benchmarks/decode.py, and the conversion of its models. Only where it is installed."""

from pathlib import Path

import ctranslate2
from ctranslate2.converters import TransformersConverter

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


def convert(folder: Path) -> None:
    """Convert gpt2 and marian of a folder."""
    for name in ("gpt2", "marian"):
        Converter(str(folder / name)).convert(str(folder / f"{name}_ct2"))


class CTranslate2:
    """CTranslate2 in float32, with its default settings."""

    def __init__(self, folder: Path, device: str, is_half: bool):
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
