"""Chat templates of a tokenizer's files: which there are, and their texts, rendered in a process with limits."""

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformer_jax.errors import UserError
from transformer_jax.tokenizers.base import Tokenizer
from transformer_jax.tokenizers.files import TEMPLATE_FILE, FileTokenizer
from transformer_jax.tokenizers.settings import CONFIG, NAMED

TEMPLATE_FOLDER = "additional_chat_templates"  # with a file NAME.jinja for each further one
MAX_SOURCE = 2**20  # characters of a template; the longest in use have about 30,000
SECONDS = 5  # of computing; a chat takes milliseconds
CHATS_PER_SECOND = 20  # of many chats: more time than they need by far
_PROCESS = Path(__file__).parent / "template_process.py"
Json = object  # None, bool, int, float, str, or a list or dict of them


@dataclasses.dataclass(frozen=True)
class RenderedChat:
    """Text of a chat, and where its `{% generation %}` blocks are: [start, end) in characters."""

    text: str
    spans: tuple[tuple[int, int], ...]


def chat_templates(tokenizer: Tokenizer | None) -> dict[str, str]:
    """Sources of the chat templates in the files of a tokenizer, by name; a single one is "default"; {}: none.

    Raises:
      UserError: a field chat_template that is neither a template nor a list of named ones.
    """
    if not isinstance(tokenizer, FileTokenizer):
        return {}
    value = tokenizer.settings.config.get("chat_template")
    if TEMPLATE_FILE in tokenizer.text_files:
        value = tokenizer.text_files[TEMPLATE_FILE]
    if value is None:
        return {}
    if isinstance(value, str):
        value = {"default": value}
    if isinstance(value, list):
        pairs = [(item.get("name"), item.get("template")) for item in value if isinstance(item, dict)]
        value = dict(pairs) if len(pairs) == len(value) else None
    if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise UserError(
            f"{CONFIG}: chat_template: must be a template, or a list of objects with a name and a template."
        )
    if any(len(source) > MAX_SOURCE for source in value.values()):
        raise UserError(f"{CONFIG}: chat_template: must have at most {MAX_SOURCE:,} characters.")
    return value


def find_template(templates: Mapping[str, str], name: str, has_tools: bool) -> str:
    """Choose a template: by its name, or given as its source; "": tool_use if there are tools, else default.

    Raises:
      UserError: no such template, or none at all.
    """
    known = ", ".join(sorted(templates))
    if name in templates:
        return templates[name]
    if "{{" in name or "{%" in name:
        return name
    if not templates:
        raise UserError(
            "run: has no chat template. Take a folder whose tokenizer_config.json has one, or give its source: "
            "template='{% for message in messages %}...'."
        )
    if name:
        raise UserError(f"template={name!r:.80}: unknown. Choose one of: {known}; or give the source of a template.")
    if has_tools and "tool_use" in templates:
        return templates["tool_use"]
    if "default" not in templates:
        raise UserError(f"template='': the run has several chat templates and no default. Choose one of: {known}.")
    return templates["default"]


def special_variables(tokenizer: FileTokenizer) -> dict[str, str]:
    """The special tokens that a template knows by name, such as bos_token."""
    named = tokenizer.named_tokens()
    return {f"{name}_token": named[name] for name in NAMED if name in named}


def render_chats(chats: Sequence[tuple[str, Mapping[str, Json]]], date: str = "") -> list[RenderedChat | UserError]:
    """Render chats, each the source of a template and its variables, in one process of its own with limits.

    Args:
      date: that templates take for today's, "2024-07-26"; "": today's.
    Returns:
      The text of each chat, or the error of its template.
    Raises:
      UserError: too much time or memory, for any of the chats.
    """
    sources = list(dict.fromkeys(source for source, _ in chats))
    asked = {
        "templates": sources,
        "chats": [{"template": sources.index(source), "variables": variables} for source, variables in chats],
        "date": date,
        "seconds": SECONDS + math.ceil(len(chats) / CHATS_PER_SECOND),
    }
    limits = f"{asked['seconds']} seconds of computing or a gigabyte of memory"
    too_much = UserError(f"chat_template: takes more than {limits}. Nobody's template needs that; take another.")
    command = [sys.executable, "-P", str(_PROCESS)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asked).encode(),
            capture_output=True,
            start_new_session=True,
            timeout=20 * len(chats) + 100,
        )
    except subprocess.TimeoutExpired as error:
        raise too_much from error
    if done.returncode < 0 or b"MemoryError" in done.stderr:
        raise too_much
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"chat_template: cannot be rendered ({' '.join(reason):.200}).")
    return [_result(result) for result in json.loads(done.stdout)]


def _result(result: dict) -> RenderedChat | UserError:
    if "error" in result:
        return UserError(f"chat_template: refuses the chat, or fails: {result['error']}.")
    return RenderedChat(result["text"], tuple((start, end) for start, end in result["spans"]))
