"""Run: a model with its parameters, tokenizer and generation defaults; load and save of run directories."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from transformer_jax.checkpoints.meta import CheckpointMeta, HuggingFaceConfig
from transformer_jax.checkpoints.store import CheckpointError, Checkpoints, abstract
from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError, printable
from transformer_jax.huggingface.files import Folder
from transformer_jax.huggingface.generation_defaults import read_generation_defaults
from transformer_jax.models import Model, Params, Seq2SeqConfig, check_problem_type, default_problem_type, path_names
from transformer_jax.models.adapters import ADAPTERS, PREFIX, merge, stack, variables_of, with_adapter, with_rows
from transformer_jax.models.prefix import Prefix, prefix_variables, trained_prefix
from transformer_jax.sampling import GenerationDefaults
from transformer_jax.tokenizers import Tokenizer
from transformer_jax.tokenizers.chat_template import TEMPLATE_FOLDER
from transformer_jax.tokenizers.pretrained import missing_tokenizer, read_tokenizer


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with everything needed to use it: parameters, tokenizer, configuration, generation defaults."""

    model: Model
    params: Params
    tokenizer: Tokenizer | None
    config: TransformerConfig | Seq2SeqConfig
    step: int = 0
    generation_defaults: GenerationDefaults = GenerationDefaults()
    name: str = ""  # path or hub name that it was loaded from
    labels: tuple[str, ...] = ()  # of a classifier or tagger, in the order of its logits
    hf_config: HuggingFaceConfig | None = None  # None: not from a Hugging Face folder
    lowercase: bool = False  # True: trained on lower-cased texts
    separator: str = " "  # between the words that a tagger reads; "" where it tags characters
    problem_type: str = ""  # of a classification head: one of models.PROBLEM_TYPES; "": by its number of outputs
    adapter: Params = dataclasses.field(default_factory=dict)  # beside the parameters: see nn/adapters.py; {}: none
    adapters: dict[str, Params] = dataclasses.field(default_factory=dict)  # by name: adapter_names chooses, row by row
    adapter_params: tuple[str, ...] = ()  # paths, "head/kernel", of parameters that are the adapter's own, in full
    adapter_rows: tuple[int, ...] = ()  # of a batch whose rows have chosen: indices in `adapter`, which is stacked
    prefix: Prefix | None = None  # before every text: see models/prefix.py

    def __post_init__(self):
        object.__setattr__(self, "problem_type", self.problem_type or default_problem_type(self.model))
        check_problem_type(self.model, self.problem_type)

    @property
    def variables(self) -> Params:
        """The variables of the model, for `apply`: parameters, and the adapter and the prefix if there are any."""
        check_chosen(self)
        adapter = with_rows(self.adapter, self.adapter_rows) if self.adapter_rows else self.adapter
        variables = variables_of(with_adapter(self.params, adapter))
        return variables | ({"prefix": prefix_variables(self.model, self.prefix)} if self.prefix else {})

    @functools.cached_property
    def stacked_adapters(self) -> Params:
        """The adapters by name as one tree, in order, after the model without any."""
        return stack([{}, *self.adapters.values()])

    @property
    def encoder_context(self) -> int:
        """Most tokens of a source, or of a text if there is one side alone: max_len, less those of a prefix there."""
        is_there = self.prefix and (self.prefix.vectors is not None or not self.model.reads_source)
        return self.config.encoder.max_len - (self.prefix.length if self.prefix and is_there else 0)

    @property
    def decoder_context(self) -> int:
        """Most tokens that the decoder reads, prompt and new ones: max_len, less those of a prefix there."""
        is_there = self.prefix and self.prefix.cache is not None
        return self.config.decoder.max_len - (self.prefix.length if self.prefix and is_there else 0)

    @property
    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer, for code that reads or writes text. Raises UserError if the model came without one."""
        if self.tokenizer is None:
            raise missing_tokenizer(self.name)
        return self.tokenizer

    def prepare(self, text: str) -> str:
        """Normalize a text as the training texts were: lower-cased if the run was trained so."""
        return text.lower() if self.lowercase else text


def load(run_dir: str | Path, checkpoint: str | int = "latest", average: int = 0) -> Run:
    """Load a run from the directory that `python -m train` or `save` wrote; nothing else is needed.

    Args:
      run_dir: the --workdir of a training run.
      checkpoint: "latest" undamaged one, "best" on the validation split, or a step.
      average: above 0, use the mean of the parameters of this many newest checkpoints instead.
    Raises:
      CheckpointError: no run, no such checkpoint, none that is undamaged, or one of an earlier version.
    """
    if not Path(run_dir).expanduser().is_dir():
        raise CheckpointError(f"run_dir={run_dir}: there is no such directory. Give the --workdir of a training run.")
    checkpoints = Checkpoints(run_dir)
    read = functools.partial(_read, checkpoints, average)
    run = checkpoints.read(read, "latest" if average else checkpoint, max(average, 1))
    return dataclasses.replace(run, name=str(run_dir))


def _read(checkpoints: Checkpoints, average: int, steps: list[int]) -> Run:
    """Read the newest of `steps`, with the mean of the parameters of all (Vaswani et al. 2017, section 6.1)."""
    if len(steps) < average:
        raise CheckpointError(
            f"average={average}: there are only {len(steps)} checkpoints. Train with checkpoint.keep={average} or more."
        )
    meta = checkpoints.meta(steps[0])
    shapes = checkpoints.shapes(meta)
    for step in steps:
        checkpoints.check_arrays(step, shapes)
    template = abstract(shapes)
    params = [checkpoints.restore_params(step, template) for step in sorted(steps)]
    mean = jax.tree.map(_mean, *params) if average else params[0]
    variables = variables_of(mean)
    adapter = variables.get(ADAPTERS, {})
    trained = adapter.pop(PREFIX, None)
    frozen = checkpoints.frozen_shapes(steps[0]) if meta.adapter else {}
    names = ["/".join(path_names(path)) for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])]
    return Run(
        meta.model,
        variables["params"],
        meta.tokenizer,
        meta.model.config,
        steps[0],
        generation_defaults_of(meta.hf_config, meta.model, meta.tokenizer),
        labels=meta.labels,
        hf_config=meta.hf_config,
        lowercase=meta.lowercase,
        separator=meta.separator,
        problem_type=meta.problem_type,
        adapter=adapter,
        prefix=None if trained is None else trained_prefix(meta.model, variables, jnp.asarray(trained)),
        adapter_params=tuple(name for name in names if meta.adapter and name not in frozen),
    )


def _mean(*leaves: jax.Array) -> jax.Array:
    """Mean of a parameter over checkpoints; an int8 one is frozen, so it is the same in all."""
    return leaves[0] if leaves[0].dtype == "int8" else sum(leaves[1:], leaves[0]) / len(leaves)


def read_meta(run_dir: str | Path) -> CheckpointMeta:
    """Read the metadata of the newest undamaged checkpoint: model, tokenizer, settings, data fingerprint, versions.

    Raises:
      CheckpointError: no run, no undamaged checkpoint, or one of an earlier version.
    """
    checkpoints = Checkpoints(run_dir)
    return checkpoints.read(lambda steps: checkpoints.meta(steps[0]))


def check_savable(run: Run) -> None:
    """Refuse a run that no file format here holds. Raises UserError: int8 weights, a prefix."""
    if run.prefix and run.prefix.trained is not None:
        raise UserError(
            "run: has a trained prefix, which cannot be merged into the model's files. Save it alone by "
            "tj.save_adapter, or the model without it: tj.with_prefix(run, None)."
        )
    if run.prefix:
        raise UserError(
            "run: has a prefix, which is no part of the model's files. Save tj.with_prefix(run, None), without it, and "
            "add the prefix again after loading."
        )
    if any(leaf.dtype == "int8" for leaf in jax.tree.leaves(run.params)):
        raise UserError("run: int8 weights cannot be saved. Save the run that was quantized.")


def check_chosen(run: Run) -> None:
    """Raise UserError for a run with adapters by name of which none is chosen."""
    if run.adapters:
        names = ", ".join(map(repr, run.adapters))
        raise UserError(
            f"adapter_names: the run has adapters by name: {names:.200}. Give the name of each row ('': none), where "
            "the function takes adapter_names, or choose one for all by tj.choose_adapter(run, name)."
        )


def choose_adapter(run: Run, name: str) -> Run:
    """Choose one of the adapters by name for all that the run does; "": none.

    Raises:
      UserError: no adapter of this name.
    """
    return dataclasses.replace(run, adapter=run.adapters[name] if check_name(run, name) else {}, adapters={})


def check_name(run: Run, name: str) -> str:
    """Check the name of an adapter of a run; "" is the model without one."""
    if name and name not in run.adapters:
        known = ", ".join(map(repr, run.adapters)) or "none; tj.load_adapter(run, folder, name=...) adds one"
        raise UserError(f"adapter_names: {printable(name)!r:.80} is unknown. The run has: {known:.200}.")
    return name


def merge_adapter(run: Run) -> Run:
    """Merge the adapter of a run into its parameters: the same function, at the speed of a model without one.

    Raises:
      UserError: the parameters that it changes are int8; several adapters by name.
    """
    check_chosen(run)
    if run.adapter and any(leaf.dtype == "int8" for leaf in jax.tree.leaves(run.params)):
        raise UserError(
            "run: an adapter cannot be merged into int8 weights. Merge it before tj.quantize; if it was trained with "
            "adapter.int8, tj.save_adapter writes it, and tj.load_adapter reads it beside the weights of its base."
        )
    return dataclasses.replace(run, params=merge(run.params, run.adapter), adapter={}, adapter_params=())


def save(run: Run, run_dir: str | Path) -> None:
    """Write a run as a new run directory, for `load` and the commands; an adapter is merged.

    Raises:
      UserError: int8 weights, or a directory that holds a run already.
    """
    run = merge_adapter(run)
    check_savable(run)
    checkpoints = Checkpoints(run_dir)
    if not checkpoints.is_empty():
        raise UserError(f"run_dir={run_dir}: there is a run already. Give a new directory.")
    leaves = jax.tree_util.tree_leaves_with_path(run.params)
    meta = CheckpointMeta(
        step=run.step,
        model=run.model,
        tokenizer=run.tokenizer,
        labels=run.labels,
        lowercase=run.lowercase,
        separator=run.separator,
        problem_type=run.problem_type,
        hf_config=run.hf_config,
        param_dtypes={jax.tree_util.keystr(path): str(leaf.dtype) for path, leaf in leaves if leaf.dtype != "float32"},
    )
    checkpoints.save(run.params, meta)
    checkpoints.wait()


def open_tokenizer(path: str | Path) -> Tokenizer:
    """Load the tokenizer of a run directory or a Hugging Face folder, or a single tokenizer.json.

    Raises:
      UserError: no tokenizer of a supported kind there.
    """
    path = Path(path).expanduser()
    tokenizer: Tokenizer | None
    if (path / "checkpoints").is_dir():
        tokenizer = read_meta(path).tokenizer
    else:
        folder = path.parent if path.is_file() else path
        names = {path.name} if path.is_file() else None  # None: any file of the folder
        tokenizer = read_tokenizer(
            lambda name: (folder / name).is_file() and (names is None or name in names),
            lambda name: (folder / name).read_bytes(),
            {},
            lambda: {} if names else Folder(folder).files_within(TEMPLATE_FOLDER, ".jinja"),
        )
    if tokenizer is None:
        raise UserError(
            f"tokenizer.path={str(path)!r}: there is no tokenizer. Give a file named tokenizer.json, a Hugging Face "
            "folder with a tokenizer, or a run directory."
        )
    return tokenizer


def generation_defaults_of(
    hf_config: HuggingFaceConfig | None, model: Model, tokenizer: Tokenizer | None
) -> GenerationDefaults:
    """Generation defaults of a model: from its generation_config.json, or else the special tokens of its tokenizer."""
    if hf_config:
        decoder = model.config.decoder
        return read_generation_defaults(hf_config.config, hf_config.generation, decoder.vocab_size)
    if tokenizer is None:
        return GenerationDefaults()
    return GenerationDefaults((tokenizer.eos_id,), tokenizer.pad_id, tokenizer.bos_id)
