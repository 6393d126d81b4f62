"""`python -m transformer_jax convert`: a Hugging Face folder to a run directory, or a run to a Hugging Face folder."""

from pathlib import Path

from absl import flags

from transformer_jax import startup
from transformer_jax.commands.cli import HELP_FLAGS, UsageError, parse_flags, show_help

EXAMPLE = "python -m transformer_jax convert --from=models/gpt2 --to=runs/gpt2"

_FROM = flags.DEFINE_string("from", None, "A Hugging Face folder, the name of a model on the hub, or a run.")
_TO = flags.DEFINE_string("to", None, "A new directory: a run for a folder, a folder for a run.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "Of a run: latest | best | a step")


def main(argv: list[str]) -> None:
    """Parse, load, save."""
    if HELP_FLAGS & set(argv):
        show_help(f"Convert between Hugging Face folders and run directories.\n\n  {EXAMPLE}\n", __name__)
        return
    parse_flags(argv, EXAMPLE)
    for flag in (_FROM, _TO):
        if not flag.value:
            raise UsageError(f"--{flag.name}: is missing. Example: {EXAMPLE}")
    to = Path(_TO.value).expanduser()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"--to={to}: there is something already. Give a new directory, or an empty one.")

    startup.prepare(is_training=False)
    import transformer_jax as tj  # its functions load JAX, so that a mistake above is answered before

    run = tj.open_run(_FROM.value, _CHECKPOINT.value)
    is_run = (Path(_FROM.value).expanduser() / "checkpoints").is_dir()
    (tj.save_pretrained if is_run else tj.save)(run, to)
    print(f"{_FROM.value}, a {type(run.model).__name__}, written to {to}")
