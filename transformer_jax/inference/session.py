"""Session: a text that grows by turns, with a KV cache that keeps what was read. For a chat or a server."""

from collections.abc import Generator, Sequence

import numpy as np

from transformer_jax import sampling
from transformer_jax.errors import UserError, check
from transformer_jax.inference.batching import check_ids, known_ids
from transformer_jax.inference.engine import Engine
from transformer_jax.inference.generate import stream_pieces
from transformer_jax.inference.generate_tokens import Completion, completions_of, make_engine
from transformer_jax.inference.generation_config import GenerationConfig
from transformer_jax.inference.prefix import encode_after_prefix
from transformer_jax.inference.texts import check_tokens
from transformer_jax.models import GPT
from transformer_jax.run import Run


class Session:
    """One growing text of a decoder-only run: `extend` adds given text to it, `generate` adds new text.

    Each token is read once, in all turns together; the new tokens are those of a `generate` that reads the whole text
    again. `tokens` has all of them, but for those of a prefix of the run.

    Raises:
      UserError: a run that is no GPT.
    """

    def __init__(self, run: Run):
        if not isinstance(run.model, GPT):
            raise UserError(f"run: a {type(run.model).__name__} has no text that grows by turns. Take a GPT.")
        self.run = run
        self.tokens: list[int] = []
        self._state: sampling.DecodeState | None = None  # with the KV cache, after the latest turn
        self._num_known = 0  # tokens that the state has: all but those that `extend` has added since
        self._first_config: GenerationConfig | None = None
        self._may_continue = True  # False: every token was ruled out

    @property
    def text(self) -> str:
        """All text so far."""
        tokenizer = self.run.text_tokenizer
        return tokenizer.decode(known_ids(np.array(self.tokens, np.int32), tokenizer))

    def extend(self, text: str | Sequence[int], allow_special: bool = False) -> None:
        """Add text, or token ids, to the end; they are read by the next `generate`.

        Args:
          allow_special: special tokens inside the text become their ids. Never for untrusted text.
        Raises:
          UserError: text, and no tokenizer; ids outside the vocabulary or of another type; `allow_special`, and no text
            of the tokenizer becomes a special token.
        """
        if not isinstance(text, str | Sequence | np.ndarray):
            raise UserError(f"text: must be a string or a list of token ids, not of type {type(text).__name__}.")
        ids = self._encode(text, allow_special) if isinstance(text, str) else text
        if len(ids):
            self.tokens += check_tokens(self.run, [ids])[0].tolist()

    def _encode(self, text: str, allow_special: bool) -> np.ndarray:
        """Token ids of a text, with the special tokens that begin a text where it does."""
        if not self.tokens:
            return encode_after_prefix(self.run, text, allow_special)
        tokenizer = self.run.text_tokenizer
        ids = tokenizer.encode_continuation(text, allow_special)
        check_ids("text", [ids], tokenizer, self.run.config.decoder.vocab_size)
        return ids

    def generate(self, **settings: object) -> str:
        """Generate a continuation of the text, add it to the session, and return it.

        Args:
          settings: fields of `GenerationConfig` by name, as for `tj.generate`, with method="sample" or "greedy", for
            one text without drafts. `cache_type` and `on_overflow` stay those of the first turn.
        Raises:
          UserError: as `tj.generate`; nothing to continue yet; a setting that a session does not have.
        """
        return self.generate_tokens(**settings).text

    def generate_tokens(self, **settings: object) -> Completion:
        """`generate`, with tokens and log-probabilities. A text that a stop string ends keeps all of `tokens`."""
        config = GenerationConfig.from_dict(settings)
        engine = self._begin(config)
        while not engine.is_done:
            engine.advance(_most_tokens(config))
        return self._end(engine, config)

    def stream(self, **settings: object) -> Generator[str, None, Completion]:
        """`generate` in pieces, as `tj.stream`; its return value is that of `generate_tokens`.

        A stream that is closed before its end leaves the session as it was.

        Raises:
          UserError: as `generate`, at once and not at the first piece.
        """
        config = GenerationConfig.from_dict(settings)
        return self._pieces(self._begin(config), config)

    def _pieces(self, engine: Engine, config: GenerationConfig) -> Generator[str, None, Completion]:
        yield from stream_pieces(engine, config.stop, _most_tokens(config))
        return self._end(engine, config)

    def _begin(self, config: GenerationConfig) -> Engine:
        """The engine of a turn, which has read all that is given."""
        self._check(config)
        engine, _ = make_engine(self.run, [np.array(self.tokens, np.int32)], config)
        if self._state is not None:
            engine.continue_from(self._state, np.array(self.tokens[self._num_known :], np.int32))
        return engine

    def _end(self, engine: Engine, config: GenerationConfig) -> Completion:
        """Add the new tokens of a turn to the session."""
        completion = completions_of(self.run, engine)[0]
        self.tokens += completion.tokens
        self._state = engine.state
        self._num_known = len(self.tokens)
        self._first_config = self._first_config or config
        self._may_continue = completion.finish != "ruled_out"
        return completion

    def _check(self, config: GenerationConfig) -> None:
        """Raise UserError for settings that a session does not have, and where there is nothing to continue."""
        check(config.method != "beam", "method", config.method, "a session takes sample or greedy")
        check(config.num_samples == 1, "num_samples", config.num_samples, "a session has one text. Take 1")
        rule = "is about given text. Call extend with allow_special=True"
        check(not config.allow_special, "allow_special", True, rule)
        for name in ("draft", "prompt_lookup"):
            value = getattr(config, name)
            check(not value, name, value, f"a session takes no drafts. Omit {name}")
        rule = "a session reads no token twice. Take error, slide, or a new session with the end of the text"
        check(config.on_overflow != "re-prefill", "on_overflow", config.on_overflow, rule)
        for name in ("cache_type", "on_overflow"):
            first = getattr(self._first_config or config, name)
            value = getattr(config, name)
            check(value == first, name, value, f"was {first!r} in the first turn, and stays. Take {first!r}")
        if not self.tokens:
            raise UserError("session: has no text yet. Call extend with at least one character.")
        if not self._may_continue and self._num_known == len(self.tokens):
            raise UserError("session: no token is allowed after its text. Call extend first, or change the settings.")


def _most_tokens(config: GenerationConfig) -> int:
    """Tokens to generate at once: one if there are stop strings, since no token is read after them."""
    return 1 if config.stop else config.max_new_tokens
