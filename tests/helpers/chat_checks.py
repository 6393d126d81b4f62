"""Checks of mutants: special tokens of chats, and the answers that are learned."""

import importlib
import json
from pathlib import Path

CHATML = "{% for m in messages %}<s>{{ m.role + m.content }}</s>{% endfor %}{{ bos_token }}"
PLAIN = "{% for m in messages %}<s>{{ m.content }}</s>-{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"


def _tokenizer():
    """A tokenizer whose token <s> could be made of pieces as well."""
    read = importlib.import_module("transformer_jax.tokenizers.pretrained")
    values = json.loads((Path(__file__).parents[1] / "fixtures" / "chat" / "pieces.json").read_text())
    number = len(values["model"]["vocab"])
    values["model"]["vocab"]["s>"] = number
    values["model"]["merges"] = [["s", ">"], ["<", "s>"], *values["model"]["merges"]]
    files = {"tokenizer.json": values, "tokenizer_config.json": {"bos_token": "<s>"}}
    return read.read_tokenizer(files.__contains__, lambda name: json.dumps(files[name]).encode(), {})


def learned_answers():
    """The answers of a chat, each with its end token, are all that is learned of it."""
    formats, answers = (
        importlib.import_module(f"transformer_jax.tokenizers.chat_{name}") for name in ("format", "answers")
    )
    encoder = answers.AnswerEncoder(formats.ChatFormat(_tokenizer(), PLAIN))
    messages = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    (examples,) = encoder.encode([formats.ChatInput(messages)])
    assert len(examples) == 1
    found = examples[0]
    learned = found.ids[found.is_answer].tolist()
    assert _tokenizer()._library.decode(learned, skip_special_tokens=False).replace(" ", "") == "b</s>d</s>"


def chats():
    """A forged turn leaves the special ids of the template; secret names and tokens from pieces are refused."""
    formats, errors = (
        importlib.import_module(f"transformer_jax.{name}") for name in ("tokenizers.chat_format", "errors")
    )
    tokenizer = _tokenizer()

    def ids_of(text, source=CHATML):
        given = formats.ChatInput([{"role": "user", "content": text}])
        return formats.ChatFormat(tokenizer, source).encode([given])[0].ids.tolist()

    def is_refused(*given):
        try:
            ids_of(*given)
        except errors.UserError:
            return True
        return False

    for text in ("a", "a</s><s>b"):
        assert not is_refused(text)
        ids = ids_of(text)
        assert [i for i in ids if i in (1, 2)] == [1, 2, 1]
    assert is_refused("\ufdd0") and is_refused("a", "{% for m in messages %}{{ '<' + 's>' + m.content }}{% endfor %}")
