"""Run: a model with its parameters, tokenizer and generation defaults; load, save, from_pretrained."""

import dataclasses
import functools
from pathlib import Path

import jax

from transformer_jax.checkpoints.meta import CheckpointMeta, HuggingFaceConfig
from transformer_jax.checkpoints.store import CheckpointError, Checkpoints, abstract
from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.huggingface.files import Folder
from transformer_jax.huggingface.generation_defaults import read_generation_defaults
from transformer_jax.huggingface.pretrained import Pretrained, describe_folder, read_folder, read_labels
from transformer_jax.huggingface.problem_types import read_problem_type
from transformer_jax.huggingface.save import SavedModel, write_folder
from transformer_jax.models import (
    GPT,
    MaskedLM,
    Model,
    Params,
    Seq2SeqConfig,
    SequenceClassifier,
    TokenTagger,
    check_problem_type,
    default_problem_type,
    parameter_shapes,
)
from transformer_jax.sampling import GenerationDefaults
from transformer_jax.tokenizers import Tokenizer
from transformer_jax.tokenizers.export import TextFormat, tokenizer_files, word_separator
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

    def __post_init__(self):
        object.__setattr__(self, "problem_type", self.problem_type or default_problem_type(self.model))
        check_problem_type(self.model, self.problem_type)

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
    shapes = parameter_shapes(meta.model)
    for step in steps:
        checkpoints.check_arrays(step, shapes)
    template = abstract(_with_dtypes(shapes, meta.param_dtypes))
    params = [checkpoints.restore_params(step, template) for step in sorted(steps)]
    return Run(
        meta.model,
        jax.tree.map(lambda *leaves: sum(leaves) / average, *params) if average else params[0],
        meta.tokenizer,
        meta.model.config,
        steps[0],
        generation_defaults_of(meta.hf_config, meta.model, meta.tokenizer),
        labels=meta.labels,
        hf_config=meta.hf_config,
        lowercase=meta.lowercase,
        separator=meta.separator,
        problem_type=meta.problem_type,
    )


def read_meta(run_dir: str | Path) -> CheckpointMeta:
    """Read the metadata of the newest undamaged checkpoint: model, tokenizer, settings, data fingerprint, versions.

    Raises:
      CheckpointError: no run, no undamaged checkpoint, or one of an earlier version.
    """
    checkpoints = Checkpoints(run_dir)
    return checkpoints.read(lambda steps: checkpoints.meta(steps[0]))


def open_run(path: str | Path, checkpoint: str | int = "latest") -> Run:
    """Load a run directory, or else a Hugging Face folder or the name of a model on the hub."""
    is_run = (Path(path).expanduser() / "checkpoints").is_dir()
    return load(path, checkpoint) if is_run else from_pretrained(path)


def from_pretrained(folder: str | Path) -> Run:
    """Load a model from a Hugging Face folder (config.json, safetensors) or, by name, from the hub.

    GPT-2, Llama, BERT, RoBERTa, T5, BART, Marian. Parameters keep the dtypes of the files; computation is in float32.

    Raises:
      UserError: no such folder; an unsupported model; a file that is malformed, missing or does not fit.
    """
    return _open(read_folder(folder), str(folder))


def _open(read: Pretrained, name: str) -> Run:
    """The run in a Hugging Face folder."""
    tokenizer = read_tokenizer(read.folder.has, read.folder.data, _special_ids(read.generation or read.config))
    hf_config = HuggingFaceConfig(read.config, read.generation)
    labels = read.labels
    if isinstance(read.model, SequenceClassifier) and labels == ("LABEL_0",):
        labels = ()  # transformers' name of an output that has none: a number, or the score of a cross-encoder
    return Run(
        read.model,
        read.params,
        tokenizer,
        read.model.config,
        generation_defaults=generation_defaults_of(hf_config, read.model, tokenizer),
        name=name,
        labels=labels,
        hf_config=hf_config,
        separator=word_separator(tokenizer) if isinstance(read.model, TokenTagger) else " ",
        problem_type=read_problem_type(read.config, read.model),
    )


def _special_ids(generation: dict) -> dict[str, int]:
    """Ids of the pad, bos and eos tokens, as far as a generation_config.json names them; the first of a list."""
    ids = {}
    for name in ("pad", "bos", "eos"):
        value = generation.get(f"{name}_token_id")
        if isinstance(value, list) and value:
            value = value[0]
        if type(value) is int and abs(value) < 2**31:
            ids[name] = value
    return ids


def _check_savable(run: Run) -> None:
    if any(leaf.dtype == "int8" for leaf in jax.tree.leaves(run.params)):
        raise UserError("run: int8 weights cannot be saved. Save the run that was quantized.")


def save_pretrained(run: Run, folder: str | Path) -> None:
    """Write a run as a new Hugging Face folder, for transformers and other libraries.

    It says all that the run knows: labels, problem type, special ids and generation settings; the tokenizer, one
    trained here as tokenizer.json that encodes a text as this library does for such a model.

    Raises:
      UserError: no supported family has such a model, or no Hugging Face folder can hold a setting or tokenizer of the
        run (the message names what is in the way), or the folder exists or cannot be made.
    """
    _check_savable(run)
    hf_config = run.hf_config or HuggingFaceConfig({}, {})
    has_labels = isinstance(run.model, SequenceClassifier | TokenTagger)
    is_same_head = has_labels and hf_config.config and run.labels in ((), read_labels(hf_config.config))
    is_same_head = is_same_head and run.problem_type == read_problem_type(hf_config.config, run.model)
    saved = SavedModel(
        model=run.model,
        params=run.params,
        config=hf_config.config,
        generation=hf_config.generation,
        labels=run.labels,
        problem_type="" if is_same_head else run.problem_type,
        defaults=run.generation_defaults,
        bos_id=run.tokenizer.bos_id if run.tokenizer else -1,
        has_pad=run.tokenizer is not None,
        files=tokenizer_files(run.tokenizer, _text_format(run)) if run.tokenizer else {},
    )
    write_folder(folder, saved, functools.partial(_check_read_back, run))


def _text_format(run: Run) -> TextFormat:
    """The form in which the model of a run reads text; of the special tokens, those that this library gives it."""
    model = run.model
    is_gpt = isinstance(model, GPT)
    return TextFormat(
        has_bos=not is_gpt and not model.reads_source,
        has_eos=not is_gpt,
        has_mask=isinstance(model, MaskedLM) and run.text_tokenizer.mask_id < model.config.vocab_size,
        lowercase=run.lowercase,
        word_separator=run.separator if isinstance(model, TokenTagger) else None,
        max_len=run.config.encoder.max_len,
        padding_side="left" if is_gpt else "right",
    )


def _check_read_back(run: Run, folder: Folder) -> None:
    """Refuse what a folder that was just written does not say as the run does. Its tensors are not read."""
    generation = folder.json("generation_config.json") if folder.has("generation_config.json") else {}
    described = describe_folder(folder)
    restored = _open(
        Pretrained(described.model, run.params, described.config, generation, folder, described.labels), run.name
    )
    names = ["problem_type", *(["labels"] if run.labels else []), *(["separator"] if run.tokenizer else [])]
    for name in names:
        value = getattr(run, name)
        if getattr(restored, name) != value:
            raise UserError(
                f"{name}={value!r:.200}: config.json cannot express it; it would be read back as "
                f"{getattr(restored, name)!r:.200}. Keep the run directory (tj.save)."
            )


def save(run: Run, run_dir: str | Path) -> None:
    """Write a run as a new run directory, for `load` and the commands.

    Raises:
      UserError: int8 weights, or a directory that holds a run already.
    """
    _check_savable(run)
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
        )
    if tokenizer is None:
        raise UserError(
            f"tokenizer.path={str(path)!r}: there is no tokenizer. Give a file named tokenizer.json, a Hugging Face "
            "folder with a tokenizer, or a run directory."
        )
    return tokenizer


def _with_dtypes(shapes: Params, dtypes: dict[str, str]) -> Params:
    """Shapes of parameters with their dtypes on disk; `dtypes` lists, by tree path, only those that are not float32."""

    def with_dtype(path, leaf):
        return jax.ShapeDtypeStruct(leaf.shape, dtypes.get(jax.tree_util.keystr(path), leaf.dtype))

    return jax.tree_util.tree_map_with_path(with_dtype, shapes)


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
