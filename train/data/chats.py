"""Chats for fine-tuning: JSON lines of messages, encoded by a chat template, packed, with a mask of the answers."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.lines import check_is_text, read_file, split_lines
from transformer_jax.tokenizers import Tokenizer
from transformer_jax.tokenizers.chat_answers import AnswerEncoder
from transformer_jax.tokenizers.chat_format import ChatInput, chat_format
from transformer_jax.tokenizers.chat_template import chat_templates, find_template
from transformer_jax.tokenizers.files import TEMPLATE_FILE, FileTokenizer

from ..config import DataConfig
from .batches import sha256
from .packing import Packed, pack
from .progress import Progress
from .sources import split_examples

EXAMPLE = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}'
VARIABLES = "chat_template_kwargs"  # field of the reference library: further variables of the template
CHATS_AT_ONCE = 256  # most in one process of the template
CHARACTERS_AT_ONCE = 2**25  # of all its texts, about: each answer is rendered twice, with all messages before it
ROW_MULTIPLE = 8  # tokens that a row predicts are a multiple of it


class Chat(NamedTuple):
    """A chat, and its location for messages: "file, line n"."""

    given: ChatInput
    where: str


class Example(NamedTuple):
    """Token ids of a chat, int32 [T], and a mask of those to learn, bool [T]."""

    ids: np.ndarray
    is_target: np.ndarray


class Encoded(NamedTuple):
    """Examples of a split, the ids that end their answers, and words on what was left out."""

    examples: list[Example]
    end_ids: tuple[int, ...]
    note: str


def chat_tokenizer(config: DataConfig, tokenizer: Tokenizer | None) -> FileTokenizer:
    """Return the tokenizer of a base with its chat template, or that of `data.chat_template`, which it keeps.

    Raises:
      UserError: no tokenizer of a base, or one without a template.
    """
    if not isinstance(tokenizer, FileTokenizer):
        has = f"a {tokenizer.kind} tokenizer, which has" if tokenizer else "no tokenizer, and so"
        raise UserError(
            f"train.init_from: gives {has} no special tokens for turns of a chat. Take a model whose folder has a "
            "tokenizer.json, such as one with a chat template."
        )
    if config.chat_template:
        source = read_file(os.path.expanduser(config.chat_template))
        if not source.strip():
            raise UserError(f"data.chat_template={config.chat_template!r}: is empty. Give a template of jinja2.")
        return tokenizer.changed({}, {TEMPLATE_FILE: source})
    if not chat_templates(tokenizer):
        raise UserError(
            "data.chat_template='': the tokenizer of train.init_from has no chat template. Give a file with one, or "
            "start from a chat model."
        )
    return tokenizer


def load_chats(config: DataConfig, tokenizer: FileTokenizer, max_len: int) -> tuple[Packed, tuple[int, ...]]:
    """Load the chats of training and validation, and pack them into rows as long as the longest of them.

    Args:
      max_len: of the model.
    Returns:
      The rows, and the ids that end answers.
    Raises:
      UserError: an error of `chats_split` or `encode_chats`.
    """
    chats = {split: chats_split(config, split) for split in ("train", "val")}
    parts = {split: encode_chats(part, tokenizer, config, max_len) for split, part in chats.items()}
    length = row_length([*parts["train"].examples, *parts["val"].examples], max_len)
    rows = {split: pack_examples(part.examples, length, tokenizer.pad_id) for split, part in parts.items()}
    examples = parts["train"].examples
    num_tokens = sum(len(example.ids) for example in examples)
    num_targets = sum(int(example.is_target.sum()) for example in examples)
    size = rows["train"]["tokens"].size
    description = (
        f"{len(chats['train']):,} chats of {num_tokens:,} tokens to train on, {num_targets:,} of them in answers, "
        f"{len(chats['val']):,} to validate on, {len(rows['train']['tokens']):,} rows of {length:,}, "
        f"{1 - num_tokens / size:.1%} padding{parts['train'].note}"
    )
    fingerprint: dict[str, str | int] = {
        "chats_sha256": sha256(json.dumps([[chat.given for chat in part] for part in chats.values()])),
        "train_chats": len(chats["train"]),
        "val_chats": len(chats["val"]),
    }
    end_ids = tuple(dict.fromkeys(i for part in parts.values() for i in part.end_ids))
    return Packed(rows["train"], rows["val"], tokenizer, None, fingerprint, description), end_ids


def row_length(examples: Sequence[Example], max_len: int) -> int:
    """Tokens of a row: those of the longest example, rounded up."""
    longest = max(len(example.ids) for example in examples)
    return min(-(-(longest - 1) // ROW_MULTIPLE) * ROW_MULTIPLE, max_len) + 1


def pack_examples(examples: Sequence[Example], length: int, pad_id: int) -> dict[str, np.ndarray]:
    """Pack examples into rows of `length` tokens; see `packing.pack`."""
    return pack([one.ids for one in examples], length, pad_id, [one.is_target for one in examples])


def chats_split(config: DataConfig, split: str) -> list[Chat]:
    """Load the chats of one split: train, val or test.

    Without `data.val_path`, a random share of the training file is for validation.

    Raises:
      UserError: an error of `read_chats`, or fewer than two chats to split.
    """
    if split == "test" or (split == "val" and config.val_path):
        name = f"data.{split}_path"
        return read_chats(config.test_path if split == "test" else config.val_path, name)
    chats = read_chats(config.path, "data.path")
    if config.val_path:
        return chats
    train, validation = split_examples(chats, config.val_fraction)
    if not train:
        raise UserError(
            f"data.val_fraction={config.val_fraction}: leaves none of the chats in {config.path} to train on; it has "
            f"{len(chats)}. Give at least 2, a smaller fraction, or data.val_path."
        )
    return train if split == "train" else validation


def encode_chats(chats: Sequence[Chat], tokenizer: FileTokenizer, config: DataConfig, max_len: int) -> Encoded:
    """Encode chats, cut to `data.max_chat_tokens`, by the template that each would have in `tj.chat`.

    Raises:
      UserError: the template refuses a chat (file and line are named), or is not fit for training; no answer is left.
    """
    templates = chat_templates(tokenizer)
    limit = min(config.max_chat_tokens or max_len, max_len)
    encoders: dict[str, AnswerEncoder] = {}
    examples: list[Example] = []
    cut: list[int] = []  # tokens that are cut from an example
    num_without = 0
    with Progress("encoding the chats", len(chats), "chats") as progress:
        for some in _groups(chats):
            for chat, example in _encode_some(some, tokenizer, templates, encoders):
                kept = Example(example.ids[:limit], example.is_target[:limit])
                cut += [len(example.ids) - limit] if len(example.ids) > limit else []
                if kept.is_target[1:].any():
                    examples.append(kept)
                else:
                    num_without += 1
                    last = chat.where
            progress.advance(len(some))
    if not examples:
        raise UserError(
            f"{last}: has no answer in its first {limit:,} tokens, and no other chat has one. Take a larger "
            "data.max_chat_tokens, a model of a larger max_len, or shorter chats."
        )
    note = f"; {len(cut):,} cut to {limit:,} tokens, which lose {sum(cut):,}" if cut else ""
    note += f"; {num_without:,} left out, whose answers are all in the lost part" if num_without else ""
    return Encoded(examples, tuple(dict.fromkeys(encoder.end_id for encoder in encoders.values())), note)


def _groups(chats: Sequence[Chat]) -> Iterator[list[Chat]]:
    """Groups of chats, in order, that the process of a template can render at once."""
    group: list[Chat] = []
    room = CHARACTERS_AT_ONCE
    for chat in chats:
        messages = chat.given.messages
        size = len(messages) * len(json.dumps(messages))
        if group and (size > room or len(group) == CHATS_AT_ONCE):
            yield group
            group = []
            room = CHARACTERS_AT_ONCE
        group.append(chat)
        room -= size
    yield group


def _encode_some(
    chats: Sequence[Chat], tokenizer: FileTokenizer, templates: Mapping[str, str], encoders: dict[str, AnswerEncoder]
) -> list[tuple[Chat, Example]]:
    """Encode some chats, in order."""
    found: dict[int, list[Example]] = {}
    sources = [find_template(templates, "", chat.given.tools is not None) for chat in chats]
    for source in dict.fromkeys(sources):
        if source not in encoders:
            encoders[source] = AnswerEncoder(chat_format(tokenizer, source))
        indices = [i for i, other in enumerate(sources) if other == source]
        results = encoders[source].encode([chats[i].given for i in indices])
        for i, result in zip(indices, results, strict=True):
            if isinstance(result, UserError):
                raise UserError(f"{chats[i].where}: {result}")
            found[i] = [Example(encoded.ids, encoded.is_answer) for encoded in result]
    return [(chat, example) for i, chat in enumerate(chats) for example in found[i]]


def read_chats(path: str, name: str) -> list[Chat]:
    """Read a chat from each line of a .jsonl file, .gz too: {"messages": [...], "tools": [...], "documents": [...]}.

    "tools" and "documents" may be null or missing; "chat_template_kwargs" has further variables of the template. Other
    fields are not read.

    Args:
      name: of the setting, for messages.
    Raises:
      UserError: no such file, an empty one, or a line of another form. File, line and rule are named.
    """
    if not path.removesuffix(".gz").endswith(".jsonl"):
        raise UserError(f"{name}={path!r}: must end in .jsonl (or .jsonl.gz), a chat a line: {EXAMPLE}")
    lines = split_lines(read_file(os.path.expanduser(path)))
    if not lines:
        raise UserError(f"{name}={path!r}: is empty. Give a chat a line: {EXAMPLE}")
    return [_read_chat(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _read_chat(line: str, where: str) -> Chat:
    if not line.strip():
        raise UserError(f"{where}: is empty. Remove the line.")
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is no JSON ({str(error)[:80]}). Each line must be an object: {EXAMPLE}") from error
    if not isinstance(values, dict) or "messages" not in values:
        has = f"has the fields {', '.join(values)}" if isinstance(values, dict) else f"is a {type(values).__name__}"
        raise UserError(f"{where}: {has:.120}, and must be an object with 'messages': {EXAMPLE}")
    if values.get("functions"):
        raise UserError(f"{where}: 'functions' is the old form of 'tools', which is read in its place. Convert it.")
    check_is_text(json.dumps(values, ensure_ascii=False), where)
    messages = values["messages"]
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: 'messages' must be a list of at least one message: {EXAMPLE}")
    for i, message in enumerate(messages):
        _check_message(message, f"{where}: messages[{i}]")
    tools, documents = (_objects(values.get(name), f"{where}: {name!r}") for name in ("tools", "documents"))
    variables = values.get(VARIABLES) or {}
    if not isinstance(variables, dict):
        raise UserError(f"{where}: {VARIABLES!r} must be an object, and is {json.dumps(variables):.80}.")
    return Chat(ChatInput(messages, tools, documents, False, variables), where)


def _objects(value: object, where: str) -> list[dict[str, object]] | None:
    """A list of objects; None for null and an empty list."""
    if value is not None and not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        raise UserError(f"{where} must be a list of objects, and is {json.dumps(value):.80}.")
    return value or None


def _check_message(message: object, where: str) -> None:
    if not isinstance(message, dict):
        raise UserError(f"{where}: must be an object with 'role' and 'content', and is {json.dumps(message):.80}.")
    if not isinstance(message.get("role"), str):
        fields = ", ".join(message) or "none"
        raise UserError(f"{where}: must have 'role' and 'content', as strings. Its fields are: {fields:.80}.")
    if message.get("weight", 1) not in (0, 1):
        raise UserError(f"{where}: 'weight' must be 1, or 0 for an answer that is not learned.")
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise UserError(f"{where}: the {message['role']:.20} has no 'content', and no 'tool_calls'.")
    if content is not None and not isinstance(content, str):
        raise UserError(
            f"{where}: 'content' must be a string, and is {json.dumps(content):.80}. Join the texts of a list; images "
            "and the like cannot be read."
        )
