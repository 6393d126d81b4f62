"""`python -m transformer_jax convert`: convert a Hugging Face folder to a run directory, or back."""

from pathlib import Path

from absl import flags

from transformer_jax import startup
from transformer_jax.commands.cli import ADAPTER_MEANING, HELP_FLAGS, UsageError, parse_flags, required, show_help

EXAMPLE = "python -m transformer_jax convert --from=models/gpt2 --to=runs/gpt2"

_FROM = flags.DEFINE_string("from", None, "Hugging Face folder, name of a model on the hub, or run directory")
_TO = flags.DEFINE_string("to", None, "new directory: a run directory for a folder, a folder for a run directory")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "of a run directory: latest | best | a step")
_ADAPTER = flags.DEFINE_string("adapter", "", ADAPTER_MEANING)


def main(argv: list[str]) -> None:
    """Parse, load, save."""
    if HELP_FLAGS & set(argv):
        show_help(f"Convert between Hugging Face folders and run directories.\n\n  {EXAMPLE}\n", __name__)
        return
    parse_flags(argv, EXAMPLE)
    origin = required(_FROM, EXAMPLE)
    to = Path(required(_TO, EXAMPLE)).expanduser()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"--to={to}: exists already. Give a new directory, or an empty one.")

    startup.prepare(is_training=False)
    import transformer_jax as tj  # its functions load JAX; errors above are reported before that

    run = tj.open_run(origin, _CHECKPOINT.value, _ADAPTER.value)
    is_run_directory = (Path(origin).expanduser() / "checkpoints").is_dir()
    save = tj.save_pretrained if is_run_directory else tj.save
    save(run, to)
    print(f"{origin}, a {type(run.model).__name__}, written to {to}")
