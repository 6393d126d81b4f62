"""Runs from Hugging Face folders and back: from_pretrained, load_adapter, save_adapter, save_pretrained, open_run."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.checkpoints.meta import HuggingFaceConfig
from transformer_jax.errors import UserError, printable
from transformer_jax.huggingface.files import Folder, listed
from transformer_jax.huggingface.peft import read_adapter
from transformer_jax.huggingface.peft_save import SavedAdapter, write_adapter
from transformer_jax.huggingface.pretrained import Pretrained, describe_folder, read_folder, read_labels
from transformer_jax.huggingface.problem_types import read_problem_type
from transformer_jax.huggingface.save import SavedModel, write_folder
from transformer_jax.models import GPT, MaskedLM, SequenceClassifier, TokenTagger, path_names
from transformer_jax.models.prefix import trained_prefix
from transformer_jax.run import Run, check_chosen, check_savable, generation_defaults_of, load, merge_adapter
from transformer_jax.tokenizers.chat_template import TEMPLATE_FOLDER
from transformer_jax.tokenizers.export import TextFormat, tokenizer_files, word_separator
from transformer_jax.tokenizers.pretrained import read_tokenizer


def open_run(path: str | Path, checkpoint: str | int = "latest", adapter: str | Path = "") -> Run:
    """Load a run directory, or else a Hugging Face folder or the name of a model on the hub; with an adapter or not."""
    is_run = (Path(path).expanduser() / "checkpoints").is_dir()
    run = load(path, checkpoint) if is_run else from_pretrained(path)
    return load_adapter(run, adapter) if adapter else run


def from_pretrained(folder: str | Path, adapter: str | Path = "") -> Run:
    """Load a model from a Hugging Face folder (config.json, safetensors) or, by name, from the hub.

    GPT-2, Llama, BERT, RoBERTa, T5, BART, Marian. Parameters keep the dtypes of the files; computation is in float32.

    Raises:
      UserError: no such folder; an unsupported model; a file that is malformed, missing or does not fit.
    """
    run = _open(read_folder(folder), str(folder))
    return load_adapter(run, adapter) if adapter else run


def load_adapter(run: Run, folder: str | Path, name: str = "") -> Run:
    """Load an adapter, as PEFT saves it, beside the parameters of a run: LoRA, DoRA, IA3, prefix or prompt tuning.

    The parameters stay as they are, but for those that the adapter holds in full: a new head, biases, rows of tokens.
    A trained prefix or prompt becomes the prefix of the run.

    Args:
      name: one of several adapters, for texts that choose it by `adapter_names`; "": the only one, for all texts.
    Raises:
      UserError: the run has a prefix, or an adapter already without a name or with the same; it is of no Hugging Face
        family; a file that is malformed, missing or does not fit the model; a method that is not computed here; with a
        name, an adapter that holds parameters in full, or a soft prompt.
    """
    if not isinstance(name, str):
        raise UserError(f"name: must be a string, not of type {type(name).__name__}.")
    if run.prefix:
        raise UserError(
            f"adapter={str(folder)!r}: the run has a prefix, which was read without it. Load the adapter first, then "
            "call tj.with_prefix."
        )
    if run.adapter or (run.adapters and not name):
        raise UserError(
            f"adapter={str(folder)!r}: the run has one already. Merge that first, by tj.merge_adapter(run), or load "
            "each by a name of its own, name=."
        )
    if any(leaf.dtype == "int8" for leaf in jax.tree.leaves(run.params)):
        raise UserError(f"adapter={str(folder)!r}: the run has int8 weights. Load it first, then tj.quantize(run).")
    if name in run.adapters:
        raise UserError(f"name={printable(name)!r:.80}: the run has an adapter of this name. Give another one.")
    adapted = read_adapter(folder, run.model, run.params, run.hf_config.config if run.hf_config else {})
    before = {path_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(run.params)}
    after = {path_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(adapted.params)}
    whole = tuple("/".join(path) for path, leaf in after.items() if before.get(path) is not leaf)
    if name and whole:  # all texts of a batch have the same parameters
        raise UserError(
            f"adapter={str(folder)!r}: replaces whole parameters ({listed(whole)}), so it cannot be one of several. "
            "Load it alone, without name."
        )
    if name and adapted.prompt is not None:
        rule = "is a soft prompt, which is before all texts. Load it without name"
        raise UserError(f"adapter={str(folder)!r}: {rule}.")
    if name:
        return dataclasses.replace(run, adapters={**run.adapters, name: adapted.layers})
    run = dataclasses.replace(
        run,
        model=adapted.model,
        config=adapted.model.config,
        params=adapted.params,
        adapter=adapted.layers,
        adapter_params=whole,
    )
    if adapted.prompt is None:
        return run
    return dataclasses.replace(run, prefix=trained_prefix(run.model, run.variables, jnp.asarray(adapted.prompt)))


def save_adapter(run: Run, folder: str | Path) -> None:
    """Write the adapter of a run alone, or its trained prefix, as a new folder that PEFT loads, and `load_adapter`.

    Raises:
      UserError: no adapter, or several by name; one that PEFT cannot express (the message names what is in the way);
        the model is of no Hugging Face family; the folder exists or cannot be made.
    """
    check_chosen(run)
    trained = run.prefix.trained if run.prefix else None
    if run.prefix and (trained is None or run.adapter):
        raise UserError("run: has a prefix, which is not saved. Save tj.with_prefix(run, None), without it.")
    config = run.hf_config.config if run.hf_config else {}
    prompt = None if trained is None else np.asarray(trained, np.float32)
    saved = SavedAdapter(run.model, run.params, run.adapter, run.adapter_params, config, run.name, prompt)
    write_adapter(folder, saved)


def _open(read: Pretrained, name: str) -> Run:
    """The run in a Hugging Face folder."""
    tokenizer = read_tokenizer(
        read.folder.has,
        read.folder.data,
        _special_ids(read.generation or read.config),
        functools.partial(read.folder.files_within, TEMPLATE_FOLDER, ".jinja"),
    )
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


def save_pretrained(run: Run, folder: str | Path) -> None:
    """Write a run as a new Hugging Face folder, for transformers and other libraries; an adapter is merged.

    It says all that the run knows: labels, problem type, special ids and generation settings; the tokenizer, one
    trained here as tokenizer.json that encodes a text as this library does for such a model.

    Raises:
      UserError: no supported family has such a model, or no Hugging Face folder can hold a setting or tokenizer of the
        run (the message names what is in the way), or the folder exists or cannot be made.
    """
    run = merge_adapter(run)
    check_savable(run)
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
