"""`python -m transformer_jax chat`: talk with a model that has a chat template, line by line."""

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from absl import flags

from transformer_jax import startup
from transformer_jax.commands import generation
from transformer_jax.commands.cli import HELP_FLAGS, UsageError, parse_flags, show_help, use_utf8
from transformer_jax.commands.generation import RUN_DIR, open_run, read_flags, typed_lines
from transformer_jax.errors import UserError
from transformer_jax.inference.generation_config import GenerationConfig
from transformer_jax.lines import decode

if TYPE_CHECKING:  # it loads JAX
    from transformer_jax.inference.chat import Chat

EXAMPLE = 'python -m transformer_jax chat --run_dir=models/my_chat_model --system="Answer briefly."'

_SYSTEM = flags.DEFINE_string("system", "", "system message, the first of the chat; empty: none")
_TEMPLATE = flags.DEFINE_string(
    "template", "", "name of a chat template, if the run has several, or the source of one; empty: the default"
)


def main(argv: list[str]) -> None:
    """Parse, load, answer each line of stdin."""
    if HELP_FLAGS & set(argv):
        head = "Answer each line of stdin, or that is typed, until Ctrl-D. Ctrl-C ends an answer, or else the chat."
        show_help(f"{head}\n\n  {EXAMPLE}\n", __name__, generation.__name__)
        return
    parse_flags(argv, EXAMPLE)
    config = read_flags(EXAMPLE)
    if config.method == "beam" or config.num_samples != 1:
        raise UsageError("chat: streams one answer to each line. Take --method=sample or greedy, one sample.")
    startup.prepare(is_training=False)

    import transformer_jax as tj  # its functions load JAX; errors above are reported before that

    run = open_run()
    chat = tj.Chat(run, _SYSTEM.value, template=_TEMPLATE.value, allow_special=config.allow_special)
    use_utf8(sys.stdout)
    print(f"{RUN_DIR.value}, step {run.step}", file=sys.stderr)
    _talk(chat, dataclasses.replace(config, allow_special=False))


def _talk(chat: "Chat", config: GenerationConfig) -> None:
    """Answer stdin line by line. A line that has no answer gets an error on stderr, and the next is read."""
    for data in typed_lines(has_prompt=sys.stdin.isatty()):
        try:
            text = decode(data).removesuffix("\n").removesuffix("\r")
            if text.strip():
                _answer(chat, text, config)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)


def _answer(chat: "Chat", text: str, config: GenerationConfig) -> None:
    """Print an answer while it is generated. Ctrl-C ends it, and the chat goes on as if it had not been asked."""
    with _collected_interrupts() as interrupts:
        pieces = chat.stream(text, **config.to_dict())
        for piece in pieces:
            if interrupts:
                pieces.close()
                print("\nstopped: the answer and its question are forgotten", file=sys.stderr)
                break
            print(piece, end="", flush=True)
        print(flush=True)


@contextlib.contextmanager
def _collected_interrupts() -> Iterator[list[int]]:
    """Collect the first Ctrl-C: its exception could be lost in a callback of JAX. A second one raises."""
    interrupts: list[int] = []

    def collect(number: int, frame: object) -> None:
        if interrupts:
            raise KeyboardInterrupt
        interrupts.append(number)

    before = signal.signal(signal.SIGINT, collect)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
