"""Chats with a run by the chat template of its tokenizer: `chat` answers messages, `Chat` keeps its KV cache."""

import dataclasses
from collections.abc import Generator, Mapping, Sequence

import numpy as np

from transformer_jax.errors import UserError, check
from transformer_jax.inference.batching import check_ids
from transformer_jax.inference.generate_tokens import Completion, generate_tokens
from transformer_jax.inference.generation_config import GenerationConfig
from transformer_jax.inference.session import Session
from transformer_jax.models import GPT
from transformer_jax.run import Run
from transformer_jax.tokenizers.chat_format import ChatFormat, ChatInput, EncodedChat, chat_format
from transformer_jax.tokenizers.chat_template import chat_templates, find_template

Message = Mapping[str, object]
Tools = Sequence[Mapping[str, object]] | None


def chat(
    run: Run,
    messages: Sequence[Message],
    *,
    tools: Tools = None,
    documents: Tools = None,
    template: str = "",
    variables: Mapping[str, object] | None = None,
    trusted_roles: Sequence[str] = (),
    **settings: object,
) -> str:
    """Answer a conversation, rendered by the chat template of the run; return the text of the answer.

    The texts of the messages, tools and documents never become special tokens, whatever they contain.

    Args:
      messages: objects with a role and a content: [{"role": "user", "content": "Hi"}].
      tools, documents: objects of JSON, as the template expects them.
      template: the name of a template, if the tokenizer has several, or the source of one; "": tool_use if there are
        tools and such a template, else default.
      variables: further variables of the template, such as {"enable_thinking": False}.
      trusted_roles: roles whose texts may have special tokens in them.
      settings: fields of `GenerationConfig` by name, as for `tj.generate`, for one answer. With allow_special=True the
        texts of all roles may have special tokens in them.
    Raises:
      UserError: as `tj.generate`; a run without a chat template, or that is no GPT; messages of another form; a
        template that refuses the chat, or builds special tokens from pieces.
    """
    config = GenerationConfig.from_dict(settings)
    check(config.num_samples == 1, "num_samples", config.num_samples, "a chat has one answer. Take 1, or other seeds")
    form = _format(run, template, tools is not None)
    given = ChatInput(messages, tools, documents, True, variables or {})
    (encoded,) = form.encode([given], trusted_roles, config.allow_special)
    _check_ids(run, encoded)
    config = dataclasses.replace(config, allow_special=False)
    return generate_tokens(run, [encoded.ids], **vars(config))[0].text


class Chat:
    """A conversation that grows by turns, over a `Session`: each token is read once, as long as the template keeps
    what it has written. Where it does not, such as one that drops the thoughts of earlier turns, all is read again.

    Args:
      system: the system message; "": none.
      tools, documents, template, variables: as for `tj.chat`.
      allow_special: texts may have special tokens in them. Never for untrusted text.
    Raises:
      UserError: as `tj.chat`.
    """

    def __init__(
        self,
        run: Run,
        system: str = "",
        *,
        tools: Tools = None,
        documents: Tools = None,
        template: str = "",
        variables: Mapping[str, object] | None = None,
        allow_special: bool = False,
    ):
        self.run = run
        self._format = _format(run, template, tools is not None)
        self._allow_special = allow_special
        self._given = ChatInput((), tools, documents, True, variables or {})
        self._messages: list[Message] = [{"role": "system", "content": system}] if system else []
        if not allow_special:
            self._format.check_untrusted([system, tools, documents, variables])
            self._format.check_safe()
        self.session: Session | None = None  # with all tokens so far
        self._text = ""  # of the session, as the template writes it
        self._has_ended = False  # True: with an end token

    @property
    def messages(self) -> list[Message]:
        """The messages so far, answers included."""
        readable = self._format.readable
        return [{name: readable(str(text)) for name, text in message.items()} for message in self._messages]

    def answer(self, text: str, **settings: object) -> str:
        """Add the message of a user, and return the answer; with settings as for `Session.generate`."""
        stream = self.stream(text, **settings)
        while True:
            try:
                next(stream)
            except StopIteration as end:
                return end.value.text

    def stream(self, text: str, **settings: object) -> Generator[str, None, Completion]:
        """`answer` in pieces. A stream that is closed before its end leaves the chat as it was.

        Raises:
          UserError: as `tj.chat` and `Session.generate`, at once and not at the first piece.
        """
        if not self._allow_special:
            self._format.check_untrusted(text)
        messages = [*self._messages, {"role": "user", "content": text}]
        given = self._given._replace(messages=messages)
        (encoded,) = self._format.encode([given], (), self._allow_special, are_checked=True)
        _check_ids(self.run, encoded)
        session, new = self._next(encoded)
        num_before = len(session.tokens)
        session.extend(new)
        try:
            pieces = session.stream(**settings)
        except BaseException:  # Ctrl-C as well
            del session.tokens[num_before:]
            raise
        return self._pieces(pieces, session, num_before, messages, encoded.text)

    def _next(self, encoded: EncodedChat) -> tuple[Session, list[int]]:
        """The session that reads a chat, and the tokens that it has not read."""
        if self.session is not None and encoded.text.startswith(self._text):
            end = encoded.text[len(self._text) :]
            new = self._format.encode_continuation(end, self._allow_special).tolist()
            if not self._has_ended:
                return self.session, new
            if new[:1] == self.session.tokens[-1:]:  # the end token, which the model has written itself
                return self.session, new[1:]
        return Session(self.run), encoded.ids.tolist()

    def _pieces(
        self,
        pieces: Generator[str, None, Completion],
        session: Session,
        num_before: int,
        messages: list[Message],
        text: str,
    ) -> Generator[str, None, Completion]:
        prompt = list(session.tokens)
        try:
            completion = yield from pieces
        except BaseException:
            del session.tokens[num_before:]
            raise
        content = completion.text
        if not self._allow_special and completion.finish != "stop":
            content = self._format.answer_text(prompt, completion.tokens)
        self._messages = [*messages, {"role": "assistant", "content": content}]
        self._text = text + content
        self._has_ended = completion.finish == "eos"
        self.session = None if completion.finish == "stop" else session  # it has tokens behind the answer
        return completion


def _format(run: Run, template: str, has_tools: bool) -> ChatFormat:
    """The format of the chats of a run."""
    if not isinstance(run.model, GPT):
        raise UserError(f"run: a {type(run.model).__name__} has no chats. Take a GPT.")
    return chat_format(run.tokenizer, find_template(chat_templates(run.tokenizer), template, has_tools))


def _check_ids(run: Run, encoded: EncodedChat) -> None:
    """Raise UserError for a chat of no tokens, or with ids that the model does not know."""
    if not len(encoded.ids):
        raise UserError("chat_template: makes an empty text of the chat. Take another.")
    check_ids("messages", [np.asarray(encoded.ids)], run.text_tokenizer, run.config.decoder.vocab_size)
