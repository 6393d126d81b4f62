"""Chat folders of tests/fixtures/chat_cases.json: their tokenizers, and runs with random parameters."""

import json
from pathlib import Path

from helpers.arrays import random_like
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT, parameter_shapes
from transformer_jax.run import Run
from transformer_jax.sampling import GenerationDefaults
from transformer_jax.tokenizers.chat_format import ChatInput
from transformer_jax.tokenizers.pretrained import read_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
FILE = json.loads((FIXTURES / "chat_cases.json").read_text())
CASES = FILE["cases"]
TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def user(text):
    """A message of a user."""
    return {"role": "user", "content": text}


def bot(text, **more):
    """A message of the assistant."""
    return {"role": "assistant", "content": text, **more}


def case_files(case):
    """The files of a case's tokenizer, contents by name; those of a folder by their path."""
    values = json.loads((FIXTURES / "chat" / f"{case['base']}.json").read_text())
    first = len(values["model"]["vocab"])
    for i, token in enumerate([*case["special"], *case["plain"]]):
        values["added_tokens"].append({"id": first + i, "content": token, "special": token in case["special"]} | TOKEN)
    files = {"tokenizer.json": json.dumps(values), "tokenizer_config.json": json.dumps(case["config"])}
    return {name: text.encode() for name, text in (files | case.get("files", {})).items()}


def case_tokenizer(case):
    """The tokenizer of a case."""
    files = case_files(case)
    more = {name.split("/")[1]: text for name, text in files.items() if "/" in name}
    return read_tokenizer(files.__contains__, files.__getitem__, {}, lambda: more)


def chat_inputs():
    """The conversations of the file, as arguments of a ChatFormat."""
    fields = ("messages", "tools", "documents", "add_generation_prompt", "variables")
    return [ChatInput(**{name: chat[name] for name in fields if name in chat}) for chat in FILE["chats"]]


def chat_run(tokenizer, max_len=512, eos="<|im_end|>"):
    """A run with random parameters and a tokenizer."""
    model = GPT(
        TransformerConfig(vocab_size=tokenizer.vocab_size, max_len=max_len, num_layers=1, d_model=10, num_heads=2)
    )
    eos_id = tokenizer._library.token_to_id(eos)
    defaults = GenerationDefaults((eos_id,), 0, -1)
    return Run(model, random_like(parameter_shapes(model), 0), tokenizer, model.config, generation_defaults=defaults)
