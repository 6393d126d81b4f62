"""AnswerEncoder: token ids of a chat for training, with a mask of its answers and of the token that ends each.

A template with {% generation %} marks its answers. Of any other, an answer is the difference of two renders: the chat
before it, as the model is asked for it (add_generation_prompt), and the chat up to it.

A template may write an answer differently once others follow, for example without its reasoning. Such a chat becomes
several examples, each with the context in which the model would write the answer.
"""

import re
from collections.abc import Mapping, Sequence

from transformer_jax.errors import UserError
from transformer_jax.tokenizers.chat_format import ChatFormat, ChatInput, EncodedChat
from transformer_jax.tokenizers.chat_template import RenderedChat, render_chats
from transformer_jax.tokenizers.secret_names import FIRST, LAST, hide

ANSWERING = ("assistant", "model")  # roles whose messages are answers
DATE = (
    "2024-07-26"  # today's in training, so that a run has the same ids on every day; in Llama's templates the default
)
_MARK = re.compile(r"\{%[-+]?\s*generation\b")
_NAME = re.compile(f"{FIRST}[^{LAST}]*{LAST}")
_PROBE = "Hi!"
Message = Mapping[str, object]
_Request = tuple[str, Mapping[str, object]]


class AnswerEncoder:
    """Encoder of chats with a mask of their answers.

    No text becomes a special token. In answers, added tokens that are not special, such as <think>, are tokens.

    Attributes:
      end_id: the token that the template writes after an answer.
    Raises:
      UserError: a template that is not safe, or that ends an answer without an added token of the tokenizer.
    """

    def __init__(self, form: ChatFormat):
        form.check_safe()
        self._form = form
        self._is_marked = bool(_MARK.search(form.source))
        are_special = form.tokenizer.added_tokens()
        self._plain_names = {token: name for name, token in form.tokens.items() if not are_special[token]}
        self._end_name = self._find_end()
        self.end_id = int(form.encode_rendered(RenderedChat(self._end_name, ())).ids[0])

    def encode(self, chats: Sequence[ChatInput]) -> list[list[EncodedChat] | UserError]:
        """Encode chats: of each its examples, nearly always one, or the error in it.

        Raises:
          UserError: the template takes too much time or memory for any of them.
        """
        asked: list[list[_Request] | UserError] = []
        for chat in chats:
            try:
                asked.append(self._requests(chat))
            except UserError as error:
                asked.append(error)
        rendered = iter(
            render_chats([one for requests in asked if isinstance(requests, list) for one in requests], DATE)
        )
        encoded: list[list[EncodedChat] | UserError] = []
        for chat, requests in zip(chats, asked, strict=True):
            try:
                if isinstance(requests, UserError):
                    raise requests
                encoded.append(self._examples(chat, [next(rendered) for _ in requests]))
            except UserError as error:
                encoded.append(error)
        return encoded

    def _find_end(self) -> str:
        """The secret name of the token that the template writes after an answer."""
        asked = ChatInput([{"role": "user", "content": "Hello there."}, {"role": "assistant", "content": _PROBE}])
        (rendered,) = render_chats([self._form.request(asked._replace(add_generation_prompt=False))], DATE)
        if isinstance(rendered, UserError):
            raise rendered
        after = rendered.text[rendered.text.rfind(_PROBE) + len(_PROBE) :]
        found = _NAME.search(after)
        if not found or _PROBE not in rendered.text:
            written = self._form.readable(after)
            raise UserError(
                f"chat_template: writes {written!r:.80} after an answer, which has no added token of the tokenizer, so "
                "that nothing would tell the model to end one. Give a template whose answers end with one, such as "
                "{{ eos_token }}, by data.chat_template, or take a model that has the tokens of this template."
            )
        return found[0]

    def _requests(self, chat: ChatInput) -> list[_Request]:
        """Requests to render of a chat: one for all of it, or two for each answer."""
        form = self._form
        form.check_untrusted([chat.messages, chat.tools, chat.documents, chat.variables])
        form.request(chat)  # checks the messages
        answers = _answers(chat)
        if not answers:
            raise UserError("messages: have no answer, a message with the role 'assistant' after another one.")
        for name in ("tools", "documents"):
            if getattr(chat, name) is not None and name not in form.source:
                raise UserError(f"{name}: the chat_template does not read them. Remove the field, or take another one.")

        messages = [
            self._with_plain_tokens(message) if message["role"] in ANSWERING else message for message in chat.messages
        ]

        def request(num_messages: int, asks: bool) -> _Request:
            part = chat._replace(messages=messages[:num_messages], add_generation_prompt=asks)
            return form.request(part, are_checked=True)

        if self._is_marked:
            if any(m.get("weight") == 0 for m in chat.messages if m["role"] in ANSWERING):
                raise UserError("messages: 'weight' 0 is not read, since the chat_template marks what is learned.")
            return [request(len(messages), False)]
        return [request(i + is_done, not is_done) for i in answers for is_done in (False, True)]

    def _with_plain_tokens(self, message: Message) -> Message:
        """An answer in which added tokens that are not special are tokens."""
        hidden = hide(self._plain_names, dict(message))
        assert isinstance(hidden, dict), "of a dict"
        return hidden

    def _examples(self, chat: ChatInput, results: list[RenderedChat | UserError]) -> list[EncodedChat]:
        rendered = []
        for result in results:
            if isinstance(result, UserError):
                raise result
            rendered.append(result)
        answers = [chat.messages[i] for i in _answers(chat)]
        if self._is_marked:
            for message in answers:
                _check_calls(rendered[0].text, message)
        else:
            rendered = self._with_spans(answers, rendered)
        return [self._with_end(self._form.encode_rendered(one)) for one in rendered]

    def _with_spans(self, answers: list[Message], rendered: list[RenderedChat]) -> list[RenderedChat]:
        """The texts to train on, with the spans of the answers in each."""
        texts: list[tuple[str, list[tuple[int, int]]]] = []
        for message, prompt, done in reversed(list(zip(answers, rendered[::2], rendered[1::2], strict=True))):
            start = len(prompt.text)
            if not done.text.startswith(prompt.text):
                raise self._no_prefix(prompt.text, done.text)
            end = self._end_of(done.text, start)
            _check_calls(done.text[start:end], message)
            fitting = (spans for text, spans in texts if text.startswith(done.text[:end]))
            spans = next(fitting, None)
            if spans is None:
                texts.append((done.text, spans := []))
            spans.append((start, end))
        return [RenderedChat(text, tuple(spans)) for text, spans in reversed(texts)]

    def _no_prefix(self, prompt: str, done: str) -> UserError:
        """The error for an answer whose beginning is not known."""
        prompt, done = map(self._form.readable, (prompt, done))
        first = next(i for i, c in enumerate(prompt) if done[i : i + 1] != c)
        return UserError(
            f"chat_template: asks for an answer by a text ({prompt[max(first - 20, 0) : first + 40]!r}) that it does "
            "not write before the answer, so that nobody knows where that begins. Change the chat (some templates "
            "take no system message or tools here), or mark answers with {% generation %} in a data.chat_template."
        )

    def _end_of(self, text: str, start: int) -> int:
        """End of the answer that begins at `start` and that `text` ends with: after its end token."""
        names = [(found[0], found.end()) for found in _NAME.finditer(text, start)]
        ends = [end for name, end in names if name == self._end_name] or [end for _, end in names]
        return ends[-1] if ends else len(text)

    def _with_end(self, example: EncodedChat) -> EncodedChat:
        """The example with the end token in its mask where that follows a marked answer."""
        is_answer = example.is_answer.copy()
        is_answer[1:] |= is_answer[:-1] & (example.ids[1:] == self.end_id)
        if not is_answer[1:].any():
            raise UserError("chat_template: marks no token of the chat as an answer by {% generation %}.")
        return example._replace(is_answer=is_answer)


def _answers(chat: ChatInput) -> list[int]:
    """Indices of the answers of a chat to learn. Not a first message, since nothing asks for it, nor "weight": 0."""
    answers = [i for i, message in enumerate(chat.messages) if message["role"] in ANSWERING and i > 0]
    return [i for i in answers if chat.messages[i].get("weight") != 0]


def _check_calls(text: str, message: Message) -> None:
    """Raise UserError if the text of an answer has not all tool calls of its message."""
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    for function in functions:
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str) and name not in text:
            raise UserError(f"chat_template: does not write the tool call {name!r:.40} of an answer. Take another one.")
