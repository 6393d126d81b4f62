"""Fine-tuning on chats: files and what is refused of them, packing, long chats, and a run that answers as taught."""

import dataclasses
import functools
import gzip
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.arrays import random_like
from helpers.chats import CASES, bot, case_tokenizer, chat_run, user
from helpers.commands import command

import transformer_jax as tj
from configs import chat_sft
from train.config import Config
from train.data.chats import chat_tokenizer, chats_split, encode_chats, pack_examples, read_chats
from train.data.packing import packed_batch
from train.initialization import load_init_from
from train.loop import run as train
from train.losses import causal_lm, packed_targets
from train.tasks.base import load_task
from transformer_jax.config import TransformerConfig
from transformer_jax.models import GPT, init_params
from transformer_jax.tokenizers.chat_format import ChatInput
from transformer_jax.tokenizers.chat_template import chat_templates

pytestmark = pytest.mark.usefixtures("compilation_cache")
FIXTURES = Path(__file__).parent / "fixtures"


def line(*messages, **more):
    return json.dumps({"messages": messages, **more}) + "\n"


GOOD = line(user("Hi"), bot("Ho."))
LINES = {
    "{'messages': []}\n": "is no JSON",
    "[" * 99999 + "\n": "is no JSON",
    "\n": "is empty. Remove the line",
    "[1]\n": 'is a list, and must be an object with .messages.: {"messages": ',
    '{"conversations": [{"from": "human", "value": "x"}]}\n': "has the fields conversations, and must be",
    line(): "must be a list of at least one message",
    line("Hi"): r'messages\[0\]: must be an object with .role. and .content., and is "Hi"',
    line({"from": "human", "value": "x"}): r"messages\[0\]: must have .role. .* Its fields are: from, value",
    line({"role": "human", "content": "x"}, bot("y")): r"messages\[0\]: role='human': unknown. Choose one of: system",
    line(user([{"type": "text"}]), bot("x")): "'content' must be a string, and is ",
    line(user("x"), bot(None)): r"messages\[1\]: the assistant has no 'content'",
    line(user("x"), user("y")): "messages: have no answer",
    line(user("x"), bot("y", weight=0.5)): r"messages\[1\]: 'weight' must be 1, or 0",
    line(user("x"), bot("y", weight=0)): "messages: have no answer",
    line(user("x"), bot("y"), functions=[{}]): "'functions' is the old form of 'tools'",
    line(user("x"), bot("y"), documents=3): "'documents' must be a list of objects",
    line(user("x"), bot("y"), tools="add"): "'tools' must be a list of objects",
    line(user("x"), bot("y"), chat_template_kwargs=[1]): "'chat_template_kwargs' must be an object",
    line(user("\ud83d"), bot("y")): "has half of a surrogate pair",
    line(user("\ufdd0"), bot("y")): "U\\+FDD0 is no character",
}


def test_a_line_that_is_no_chat_is_refused_with_file_and_line(tmp_path):
    tokenizer, path = case_tokenizer(CASES["chatml"]), tmp_path / "a.jsonl"
    config = Config.from_dict({"train": {"task": "chat"}, "data": {"source": "chat", "path": str(path)}}).data
    for text, message in LINES.items():
        path.write_text(GOOD + text + GOOD)
        with pytest.raises(tj.UserError, match=f"a.jsonl, line 2: .*{message}") as error:
            encode_chats(read_chats(str(path), "data.path"), tokenizer, config, 64)
        assert "\n" not in str(error.value)
    for name, message in {
        "a.json": "must end in .jsonl",
        "": "must end in .jsonl",
        "b.jsonl": "cannot be read",
    }.items():
        with pytest.raises(tj.UserError, match=message):
            read_chats(str(tmp_path / name) if name else "", "data.path")
    path.write_text("")
    with pytest.raises(tj.UserError, match="data.path=.*: is empty"):
        read_chats(str(path), "data.path")
    path.write_text(GOOD)
    with pytest.raises(
        tj.UserError, match="data.val_fraction=0.1: leaves none of the chats in .* to train on; it has 1. Give"
    ):
        chats_split(config, "train")


def test_line_ends_marks_and_compression_change_no_chat(tmp_path):
    path, expected = tmp_path / "a.jsonl", [json.loads(GOOD)["messages"]] * 2
    for content in (GOOD * 2, "\ufeff" + GOOD * 2, (GOOD * 2).replace("\n", "\r\n"), (GOOD * 2).rstrip()):
        path.write_bytes(content.encode())
        with gzip.open(f"{path}.gz", "wb") as stream:
            stream.write(content.encode())
        for name in (str(path), f"{path}.gz"):
            assert [chat.given.messages for chat in read_chats(name, "data.path")] == expected
    path.write_text(line(user("x\u2028y"), bot("Ho."), tools=[], documents=None, id=7))
    assert read_chats(str(path), "data.path")[0].given == ChatInput([user("x\u2028y"), bot("Ho.")], None, None, False)


def config_of(folder, base, chats, **changes):
    (folder / "chats.jsonl").write_text(chats)
    config = chat_sft.get_config()
    short = {"optimizer.warmup_steps": 2, "optimizer.peak_lr": 0.02, "adapter.full": "tokens,norm"}
    short |= {"train.num_steps": 60, "train.log_every": 20, "train.eval_every": 30, "train.tensorboard": False}
    paths = {"data.path": str(folder / "chats.jsonl"), "train.init_from": str(base)}
    config.update_from_flattened_dict(short | {"train.batch_size": 5} | paths | changes)
    return config


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Hugging Face folder with random parameters, whose texts end by another token than the answers of its chats."""
    folder = tmp_path_factory.mktemp("base") / "base"
    run = chat_run(case_tokenizer(CASES["chatml"]), 48, "<|endoftext|>")
    params = jax.jit(functools.partial(init_params, run.model))(jax.random.key(0))
    tj.save_pretrained(dataclasses.replace(run, params=params), folder)
    return folder


def test_a_run_learns_to_answer_and_talks_by_the_template_that_it_keeps(base, tmp_path, capsys):
    chats = "".join(line(user(text), bot("Ho.")) for text in ["Hi", "Hello", "Hey there", "Morning"] * 5)
    config = config_of(tmp_path, base, chats)
    run_dir = train(config, tmp_path / "run")
    out = capsys.readouterr().out
    assert "data: 18 chats of 492 tokens to train on, 72 of them in answers, 2 to validate on, 18 rows of 33" in out
    assert f"Chat: python -m transformer_jax chat --run_dir={run_dir}\n" in out
    losses = [json.loads(row)["loss"] for row in (run_dir / "metrics.jsonl").read_text().splitlines() if "loss" in row]
    assert losses[-1] < 0.5 < losses[0]
    run = tj.load(run_dir)
    settings = {"max_new_tokens": 9, "method": "greedy"}
    assert tj.chat(run, [user("Hi")], **settings) == "Ho."
    names = [run.tokenizer.token_name(i) for i in run.generation_defaults.eos_ids]
    assert names == ["<|endoftext|>", "<|im_end|>"]  # of the base, and of the template
    done = command("chat", f"--run_dir={run_dir}", "--max_new_tokens=9", "--method=greedy", stdin="Hi\n")
    assert (done.returncode, done.stdout) == (0, "Ho.\n"), done.stderr
    done = command("evaluate", f"--run_dir={run_dir}", "--split=test", f"--path={tmp_path / 'chats.jsonl'}")
    assert json.loads(done.stdout)["answer_tokens"] == 80 and json.loads(done.stdout)["loss"] < 0.5, done.stderr
    (tmp_path / "chats.jsonl").write_text(chats.replace("Ho.", "No."))
    with pytest.raises(tj.UserError, match="data: chats_sha256 is .*, but was .* when the checkpoint was saved"):
        train(config_of(tmp_path, base, chats.replace("Ho.", "No."), **{"train.num_steps": 66}), run_dir)


def task_of(config):
    config = Config.from_dict(config)
    return load_task(config, load_init_from(config.train, None))


def test_a_template_of_a_file_is_kept_by_the_run(base, tmp_path):
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    source += "{% if add_generation_prompt %}assistant: {% endif %}"
    (tmp_path / "a.jinja").write_text(source)
    given = {"data.chat_template": str(tmp_path / "a.jinja")}
    task = task_of(config_of(tmp_path, base, GOOD * 3, **given))
    assert chat_templates(task.tokenizer) == {"default": source}
    assert task.hf_config.generation["eos_token_id"] == [290, 292]
    batch = task.train_batch(0)
    targets = batch["tokens"][:, 1:][packed_targets(batch)]
    assert task.tokenizer._library.decode(targets.tolist(), skip_special_tokens=False) == "Ho.<|im_end|>" * 2
    for content, message in ((" ", "data.chat_template=.*: is empty"), ("{% for %}", "chat_template: ")):
        (tmp_path / "a.jinja").write_text(content)
        with pytest.raises(tj.UserError, match=message):
            task_of(config_of(tmp_path, base, GOOD * 3, **given))
    for folder, message in (("llama", "has no chat template. Give a file"), ("bert", "holds a MaskedLM")):
        with pytest.raises(tj.UserError, match=message):
            task_of(config_of(tmp_path, FIXTURES / folder, GOOD * 3))
    with pytest.raises(tj.UserError, match="train.init_from: gives no tokenizer"):
        chat_tokenizer(Config().data, None)


def test_a_long_chat_keeps_its_first_tokens_and_one_without_an_answer_there_is_left_out(base, tmp_path):
    chats = line(user("x"), bot("y" * 90)) * 3 + line(user("x" * 90), bot("y")) * 3 + GOOD * 4
    path = tmp_path / "val.jsonl"
    path.write_text(GOOD)
    for limit, given in ((48, 0), (40, 40), (48, 1024)):
        settings = {"data.max_chat_tokens": given, "data.val_path": str(path)}
        task = task_of(config_of(tmp_path, base, chats, **settings))
        assert f"; 6 cut to {limit} tokens, which lose " in task.description
        assert task.description.endswith("; 3 left out, whose answers are all in the lost part")
        assert int(task.train_batch(0)["tokens"].shape[1]) == limit + 1
    with pytest.raises(tj.UserError, match="chats.jsonl, line 3: has no answer in its first 9 tokens, and no other"):
        task_of(config_of(tmp_path, base, GOOD * 3, **settings | {"data.max_chat_tokens": 9}))


def test_the_loss_of_packed_chats_is_the_sum_of_their_losses_alone(tmp_path):
    tokenizer, path = case_tokenizer(CASES["chatml"]), tmp_path / "a.jsonl"
    system = {"role": "system", "content": "Be kind."}
    chats = [(user("a b c"), bot("x"), user("y"), bot("z z")), (system, user("q"), bot("r" * 30))]
    path.write_text(GOOD + "".join(line(*chat) for chat in chats))
    config = Config.from_dict({"train": {"task": "chat"}, "data": {"source": "chat", "path": str(path)}}).data
    examples = encode_chats(read_chats(str(path), "data.path"), tokenizer, config, 99).examples
    shape = TransformerConfig(vocab_size=tokenizer.vocab_size, max_len=101, num_layers=1, d_model=14, num_heads=2)
    model = GPT(shape)
    params = random_like(jax.eval_shape(model.init, jax.random.key(0), np.zeros((2, 5), int))["params"])

    @jax.jit
    def loss(batch):
        return causal_lm(lambda *args, **kwargs: model.apply({"params": params}, *args, **kwargs), batch)[:2]

    rows = pack_examples(examples, 102, 0)
    assert len(rows["tokens"]) == 2  # two chats share a row
    together = loss(packed_batch(rows, np.arange(2), 3, 0))
    apply, total = jax.jit(model.apply), np.zeros(2)
    for ids, is_target in examples:
        num = len(ids) - 1
        padded = np.pad(ids, (0, 101 - num), constant_values=7)[None]
        logits = np.asarray(apply({"params": params}, padded[:, :-1]))[0, :num]
        nats = np.asarray(jax.nn.logsumexp(logits, axis=-1)) - logits[np.arange(num), ids[1:]]
        total += nats[is_target[1:]].sum(), is_target[1:].sum()
    np.testing.assert_allclose(together, total, rtol=1e-5)
    assert total[1] == 4 + 2 + 4 + 31
