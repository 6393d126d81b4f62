"""ChatFormat: token ids of a chat by its template, in which no text of a user becomes a special token.

A template writes texts and special tokens into one string, so that a text with "<|im_end|>" in it would end its turn.
Here every added token has a secret name instead, of characters that Unicode reserves for internal use
(noncharacters): in the source of the template, in its variables (bos_token, ...), and in a twin of the tokenizer, which
knows no added token by its old name. Texts that have such characters are refused. So a list of forbidden tokens is not
needed, which would have to be complete.

A template that builds tokens from pieces ('<|' + role + '|>') cannot be told from a user who does: it is found by
rendering harmless chats both ways, and refused.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.tokenizers.base import Tokenizer
from transformer_jax.tokenizers.chat_template import RenderedChat, render_chats, special_variables
from transformer_jax.tokenizers.json_tokenizer import JsonTokenizer
from transformer_jax.tokenizers.secret_names import FIRST, LAST, hide, secret_names, twin_of

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "model")
_RESERVED = re.compile(f"[{FIRST}-{LAST}]")
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one field; templates read the first two
_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}
_CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": {"a": 2}}}
_BENIGN = (
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello there."},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "What is 2 + 2?"},
)
_BENIGN_CALL = ({"role": "assistant", "content": "", "tool_calls": [_CALL]},)
_BENIGN_RESULT = ({"role": "tool", "name": "add", "tool_call_id": "abcdefghi", "content": "4"},)


class ChatInput(NamedTuple):
    """All that a template reads: messages with role and content, tools and documents as JSON, further variables."""

    messages: Sequence[Mapping[str, object]]
    tools: Sequence[Mapping[str, object]] | None = None
    documents: Sequence[Mapping[str, object]] | None = None
    add_generation_prompt: bool = True
    variables: Mapping[str, object] = {}


class EncodedChat(NamedTuple):
    """A chat as token ids: int32 [T], the answers among them as the template marks them, and the rendered text."""

    ids: np.ndarray
    is_answer: np.ndarray  # bool [T]; all False where the template has no {% generation %}
    text: str  # with the secret names, unless special tokens are allowed


class ChatFormat:
    """Chats of a tokenizer by a template.

    Raises:
      UserError: a tokenizer without tokenizer.json or the like; a template that fails on every chat, or that builds
        special tokens from pieces.
    """

    def __init__(self, tokenizer: Tokenizer | None, source: str):
        if not isinstance(tokenizer, JsonTokenizer):
            kind = tokenizer.kind if tokenizer else "none"
            raise UserError(
                f"tokenizer.kind={kind!r}: has no special tokens for turns of a chat. Take a tokenizer.json."
            )
        self.tokenizer = tokenizer
        self.source = source
        self._variables = special_variables(tokenizer)
        self._is_safe = False  # True once it has been checked
        self._names = secret_names(tokenizer)
        self.tokens = {name: token for token, name in self._names.items()}

    def encode(
        self,
        chats: Sequence[ChatInput],
        trusted_roles: Iterable[str] = (),
        allow_special: bool = False,
        are_checked: bool = False,
    ) -> list[EncodedChat]:
        """Encode chats.

        Args:
          trusted_roles: roles whose texts may have special tokens in them.
          allow_special: the texts of all roles may, and the chats are those of the reference library. Never for
            untrusted text.
          are_checked: the texts may have names of tokens as this object writes them.
        Raises:
          UserError: no messages, a message that is no object with a known role, a value that is no JSON; a template
            that refuses a chat; a text with a noncharacter from U+FDD0 to U+FDEF.
        """
        trusted = tuple(trusted_roles)
        asked = [self.request(chat, i, trusted, allow_special, are_checked) for i, chat in enumerate(chats)]
        if not allow_special and chats:
            self.check_safe(chats[0])
        return [self.encode_rendered(rendered, allow_special) for rendered in render_chats(asked)]

    def encode_continuation(self, text: str, allow_special: bool = False) -> np.ndarray:
        """Encode the end of a rendered chat, int32 [T], which follows tokens."""
        return (self.tokenizer if allow_special else self._twin).encode_continuation(text, allow_special=True)

    def answer_text(self, prompt: Sequence[int], answer: Sequence[int]) -> str:
        """Text of an answer as a message of a chat: a token that is not special has its secret name."""
        before = len(self._twin.decode_raw(np.array(prompt, np.int32)))
        return self._twin.decode_raw(np.array([*prompt, *answer], np.int32))[before:]

    def readable(self, text: str) -> str:
        """A text with the tokens in place of their secret names."""
        return re.sub(f"{FIRST}[^{LAST}]*{LAST}", lambda found: self.tokens.get(found[0], found[0]), text)

    def check_untrusted(self, value: object) -> None:
        """Raise UserError for a text, or the name of a field, with characters that names of tokens are made of."""
        _check_reserved(_plain(value, "messages"))

    def check_safe(self, chat: ChatInput | None = None) -> None:
        """Raise UserError unless harmless chats have the same ids with secret names and without; checked once.

        Args:
          chat: one more, without the tokens in its texts: the template may need its variables.
        """
        if self._is_safe:
            return
        benign = [ChatInput(messages) for messages in (_BENIGN, _BENIGN[1:], _BENIGN[1:2])]
        benign += [ChatInput(_BENIGN[:3], add_generation_prompt=False), ChatInput(_BENIGN[1:3], None, None, False)]
        if "tool" in self.source:
            benign += [ChatInput(messages, [_TOOL]) for messages in _tool_chats()]
        requests = [self.request(chat, 0, (), True) for chat in benign]
        if chat is not None:
            _, variables = self.request(chat, 0, (), True)
            harmless = hide(dict.fromkeys(self._names, " "), {**variables, **dict.fromkeys(self._variables)})
            assert isinstance(harmless, dict), "of a dict"
            requests.append((self.source, {**harmless, **self._variables}))
        safe = [(self._hidden(source), {**variables, **self._hidden_variables()}) for source, variables in requests]
        results = render_chats([*requests, *safe])
        plain = results[: len(requests)]
        pairs = [(a, b) for a, b in zip(plain, results[len(requests) :], strict=True) if isinstance(a, RenderedChat)]
        # A template may refuse some chats, for example those with a system message.
        if not pairs and chat is not None and isinstance(plain[-1], UserError):
            raise plain[-1]
        for expected, found in pairs:
            ids = self.encode_rendered(expected, True).ids
            if isinstance(found, UserError) or not np.array_equal(self.encode_rendered(found).ids, ids):
                raise UserError(
                    "chat_template: builds special tokens from pieces of text, so that the text of a user could become "
                    "one as well. If you trust all texts of the chat, take allow_special=True; or write the tokens out "
                    "in the template."
                )
        self._is_safe = bool(pairs)

    def _hidden(self, text: str) -> str:
        """A text with the secret names in place of tokens."""
        return str(hide(self._names, text))

    def _hidden_variables(self) -> dict[str, str]:
        return {name: self._hidden(token) for name, token in self._variables.items()}

    @functools.cached_property
    def _twin(self) -> JsonTokenizer:
        """The tokenizer with secret names for added tokens, and the same ids."""
        return twin_of(self.tokenizer, self._names)

    def request(
        self,
        chat: ChatInput,
        index: int = 0,
        trusted: tuple[str, ...] = (),
        allow_special: bool = False,
        are_checked: bool = False,
    ) -> tuple[str, dict[str, object]]:
        """The template and its variables for one chat, an argument of `render_chats`; see `encode`.

        Args:
          index: of the chat among others, for messages.
        """
        messages = self._checked_messages(chat.messages, f"chats[{index}]" if index else "")
        given: dict[str, object] = {
            "messages": messages,
            "tools": _plain(chat.tools, "tools"),
            "documents": _plain(chat.documents, "documents"),
            "add_generation_prompt": chat.add_generation_prompt,
        }
        variables = _plain(dict(chat.variables), "variables")
        assert isinstance(variables, dict), "of a dict"
        if reserved := [name for name in variables if name in given]:
            raise UserError(f"variables: {reserved[0]!r} is an argument of its own. Give it there.")
        if allow_special:
            return self.source, {**self._variables, **variables, **given}
        if not are_checked:
            _check_reserved([given, variables])
        hidden = functools.partial(hide, self._names)
        given["messages"] = [hidden(message) if message["role"] in trusted else message for message in messages]
        return self._hidden(self.source), {**self._hidden_variables(), **variables, **given}

    def _checked_messages(self, messages: object, where: str) -> list[dict[str, object]]:
        """Messages as plain JSON, each with a known role; null fields are left out, as the reference does."""
        where = f"{where}.messages".lstrip(".")
        if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
            raise UserError(
                f"{where}: must be a list of at least one message, say [{{'role': 'user', 'content': 'Hi'}}]."
            )
        checked = []
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise UserError(f"{where}[{i}]={message!r:.80}: must be an object with a role and a content.")
            role = message.get("role")
            is_known = isinstance(role, str) and (role in ROLES or role.isidentifier() and self._names_role(role))
            if not is_known:
                raise UserError(f"{where}[{i}]: role={role!r:.80}: unknown. Choose one of: {', '.join(ROLES)}.")
            plain = _plain({name: value for name, value in message.items() if value is not None}, f"{where}[{i}]")
            assert isinstance(plain, dict), "of a dict"
            reasoning = next((plain[name] for name in _REASONING if plain.get(name) is not None), None)
            if reasoning is not None:
                plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
            checked.append(plain)
        return checked

    def _names_role(self, role: str) -> bool:
        """True if the template has the name of a role between quotes."""
        return f"'{role}'" in self.source or f'"{role}"' in self.source

    def encode_rendered(self, rendered: RenderedChat | UserError, allow_special: bool = False) -> EncodedChat:
        """Encode a result of `render_chats`; the answers are the tokens in its spans."""
        if isinstance(rendered, UserError):
            raise rendered
        tokenizer = self.tokenizer if allow_special else self._twin
        ids, offsets = tokenizer.encode_with_offsets(rendered.text)
        is_answer = np.zeros(len(ids), bool)
        for start, end in rendered.spans:
            is_answer |= (offsets[:, 0] < end) & (offsets[:, 1] > start)
        return EncodedChat(ids, is_answer, rendered.text)


@functools.lru_cache(maxsize=4)
def chat_format(tokenizer: Tokenizer | None, source: str) -> ChatFormat:
    """The format of a tokenizer and a template; the latest ones are kept, since their checks take a moment."""
    return ChatFormat(tokenizer, source)


def _tool_chats() -> list[list[Mapping[str, object]]]:
    called = (*_BENIGN_CALL, *_BENIGN_RESULT)
    return [[*_BENIGN[1:2]], [*_BENIGN[1:2], *called], [*_BENIGN[:2], *called]]


def _plain(value: object, where: str) -> object:
    """A value as plain JSON. Raises UserError for anything that is none."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: must be plain JSON ({str(error)[:80]}).") from error


def _check_reserved(value: object) -> None:
    """Raise UserError for a text, or the name of a field, with characters that names of tokens are made of."""
    found = _RESERVED.search(json.dumps(value, ensure_ascii=False))
    if found:
        code = ord(found[0])
        raise UserError(f"messages: U+{code:04X} is no character (Unicode reserves U+FDD0 to U+FDEF). Remove it.")
