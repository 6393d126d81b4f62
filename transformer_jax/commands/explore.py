"""Explore a text inside a model: all attention maps and predictions as one HTML page that needs no network."""

from pathlib import Path

from absl import flags

from transformer_jax import startup
from transformer_jax.commands.cli import ADAPTER_MEANING, HELP_FLAGS, UsageError, parse_flags, required, show_help

EXAMPLE = 'python -m transformer_jax explore --run_dir=runs/a --text="To be or not to be" --output=page.html'

_RUN_DIR = flags.DEFINE_string("run_dir", None, "training run, Hugging Face folder, or name of a model on the hub")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "of a training run: latest | best | a step")
_ADAPTER = flags.DEFINE_string("adapter", "", ADAPTER_MEANING)
_TEXT = flags.DEFINE_string("text", None, "text that the model reads; the source of a Seq2Seq")
_TARGET = flags.DEFINE_string("target", None, "target that the decoder of a Seq2Seq reads")
_ABLATION = flags.DEFINE_bool("ablation", True, "with the effect of every head: a forward pass for each")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 12, "of each continuation; 0: none")
_OUTPUT = flags.DEFINE_string("output", "explorer.html", "file of the page, for any browser")


def main(argv: list[str]) -> None:
    """Parse, load, compute, write the page."""
    if HELP_FLAGS & set(argv):
        show_help(f"Explore a text inside a model: one HTML page, which needs no network.\n\n  {EXAMPLE}\n", __name__)
        return
    parse_flags(argv, EXAMPLE)
    run_dir = required(_RUN_DIR, EXAMPLE)
    text = required(_TEXT, EXAMPLE)
    output = Path(required(_OUTPUT, EXAMPLE)).expanduser()
    if output.is_dir():
        raise UsageError(f"--output={output}: is a folder. Give a file, such as {output}/page.html.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output={output}: its folder cannot be made ({error}).") from error
    startup.prepare(is_training=False)
    import transformer_jax as tj  # its functions load JAX; errors above are reported before that

    run = tj.open_run(run_dir, _CHECKPOINT.value, _ADAPTER.value)
    ablation = _ABLATION.value
    tj.explore(run, text, _TARGET.value, ablation=ablation, max_new_tokens=_MAX_NEW_TOKENS.value).save(output)
    print(output)
