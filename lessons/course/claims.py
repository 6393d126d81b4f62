"""Claims about Transformers that courses and tutorials make, each beside the outcome of a lesson that tested it.

`python -m lessons claims` writes lessons/claims.md: the numbers are read from the pages of the lessons.
"""

import re
from pathlib import Path
from typing import NamedTuple


class Claim(NamedTuple):
    """A claim, the verdict, and its tests: pairs of a lesson and the question of one of its predictions.

    `name`: its anchor in claims.md.
    """

    name: str
    claim: str
    verdict: str
    tests: tuple[tuple[str, str], ...]


CLAIMS = (
    Claim(
        "order",
        '"Without positions a Transformer does not see the order of words: dog bites man is man bites dog."',
        "True of an encoder, and of one causal layer. False of a GPT with two layers or more: the mask lets it count.",
        (
            (
                "02_self_attention",
                "Encoder, 2 layers, no positions: largest difference at the full stop between both sentences?",
            ),
            (
                "02_self_attention",
                "How many layers does a GPT without positions need, to tell the two sentences apart?",
            ),
        ),
    ),
    Claim(
        "sines",
        "A worked table of sines and cosines whose exponents are misprinted, copied from course to course.",
        "The law that makes sines useful, a shift is a rotation, breaks. The loss does not notice: a wrong "
        "formula can train well, so test formulas, not losses.",
        (
            (
                "04_positional_encoding",
                "With the misprint, how far is the worst number after a shift by 1, with the best possible matrix?",
            ),
            (
                "04_positional_encoding",
                "Loss on new text with the misprinted table minus loss with the right one, in nats?",
            ),
        ),
    ),
    Claim(
        "scale-embeddings",
        "Nobody says it: the paper multiplies embeddings by the root of D before it adds the sines.",
        "Without it, and with small embeddings, the sines drown the words, and the model learns worse than "
        "one without positions, for half of its training or longer.",
        (
            (
                "04_positional_encoding",
                "Embeddings of size 0.02: halfway through training, the loss with sines minus the loss without "
                "positions?",
            ),
        ),
    ),
    Claim(
        "extrapolation",
        '"Sines extend to texts longer than those of training."',
        "They can be computed there. The model cannot use them: its loss rises beyond the length of "
        "training. ALiBi's does not.",
        (
            ("04_positional_encoding", "Sines: loss at the positions 24 to 47? (a guess: 2.7)"),
            ("11_relative_positions", "Sines: how many nats a character worse at positions from 128 on than up to 64?"),
            ("11_relative_positions", "ALiBi: how many nats a character worse from 128 on than up to 64?"),
        ),
    ),
    Claim(
        "sat",
        '"In a GPT, sat attends to cat, on and mat" in "the cat sat on the mat".',
        "It contradicts itself: on and mat come after sat, and a causal mask hides them. The sentence "
        "describes an encoder.",
        (
            (
                "02_self_attention",
                "In a causal model, what is the weight of *mat* for *sat*, in 'the cat sat on the mat'?",
            ),
        ),
    ),
    Claim(
        "mask",
        '"The causal mask sets the upper triangle of the weights to zero."',
        "The scores become minus infinity before the softmax. Zeros after it leave rows that do not sum to one.",
        (
            (
                "02_self_attention",
                "Zeros are written after the softmax. What do the weights of the first of five words sum to, on "
                "average?",
            ),
        ),
    ),
    Claim(
        "inference",
        '"Transformers are faster at inference, since they work in parallel. A hundred words take one step."',
        "Reading a hundred words takes one step, and so does training on them. Writing a hundred words takes "
        "a hundred steps.",
        (
            (
                "08_transformer_decoder",
                "128 tokens, with the cache: how many times longer does one by one take than all at once?",
            ),
        ),
    ),
    Claim(
        "recurrent",
        '"Recurrent networks are worse, and they forget."',
        "Worse: not here, a GRU of the same size beats the GPT on a small text. They forget: yes, when much "
        "has to be recalled exactly.",
        (
            (
                "08_transformer_decoder",
                "Grammar, equal size and steps: loss of the GRU minus loss of the GPT, in nats?",
            ),
            ("08_transformer_decoder", "Share of the 24 letters that the GPT recalls?"),
            (
                "08_transformer_decoder",
                "Share of the 24 letters that the GRU recalls? (A guess among 15 letters: 0.07.)",
            ),
        ),
    ),
    Claim(
        "residual",
        '"Without residual connections, gradients vanish in a hundred layers."',
        "A deep stack does not learn without them, that is true. But its gradient explodes here; whether it "
        "explodes or vanishes depends on the layers and on how they are initialized.",
        (
            (
                "05_feedforward_networks",
                "100 layers of norm, matrix and ReLU, without residual: length of the gradient at the input?",
            ),
            ("05_feedforward_networks", "The same with residual connections?"),
            (
                "05_feedforward_networks",
                "24 layers without residual connections, 400 steps: the loss at the end? (1: nothing learned)",
            ),
            ("05_feedforward_networks", "And with them?"),
        ),
    ),
    Claim(
        "heads",
        '"One head learns syntax, another meaning, another long distances."',
        "Heads divide the work if the work has parts. Which head takes which part is a matter of the seed, "
        "and nothing labels it.",
        (
            ("03_multi_head_attention", "In how many of 8 copies does head 0 take the near token, t - 1?"),
            ("03_multi_head_attention", "Set head 0 of the two to zero. The loss becomes?"),
        ),
    ),
    Claim(
        "perplexity",
        '"A good model has a perplexity of 40 to 60."',
        "A perplexity is of a tokenizer and a text. The same model has another one for each way of cutting "
        "the text. Bits per byte can be compared.",
        (
            (
                "10_transformer_training",
                "What is the perplexity of the mini Transformer on its validation text, per token?",
            ),
            ("10_transformer_training", "The same model, the same text: what is its perplexity per character?"),
        ),
    ),
    Claim(
        "feed-forward",
        '"Most parameters are in the feed-forward layers."',
        "Of the blocks, two thirds, at any size. Of the whole model it depends on the vocabulary: less than "
        "half of GPT-2 small, two thirds of GPT-3.",
        (
            ("05_feedforward_networks", "Which share of the parameters of a block's matrices is in the FFN?"),
            (
                "06_transformer_architecture",
                "GPT-2 small: what percentage of all its parameters is in the feed-forward layers?",
            ),
            ("06_transformer_architecture", "And of GPT-3 175B?"),
        ),
    ),
    Claim(
        "context",
        '"Attention gives a model an unlimited context."',
        "Nothing in the formula ends, but the scores grow with the square of the length, and models are "
        "worse beyond the lengths they were trained on.",
        (
            (
                "11_relative_positions",
                "Trained at 64: a text that is 4 times as long has how many times as many scores to compute?",
            ),
            (
                "12_attention_optimizations",
                "The formula: 4,096 tokens in place of 2,048. By what factor does its temporary memory grow?",
            ),
            ("11_relative_positions", "T5: how many nats a character worse from 128 on than up to 64?"),
        ),
    ),
    Claim(
        "modern",
        '"Modern blocks (RMSNorm, SwiGLU, parallel blocks, normalized queries) are better."',
        "At this size, the difference is inside the spread of seeds for nearly all of them. They are chosen "
        "for speed and stability at scale, which a small test does not see.",
        (
            (
                "13_modern_blocks",
                "RMSNorm, SwiGLU, the parallel block and normalized queries and keys: how many of the four win?",
            ),
        ),
    ),
    Claim(
        "explanation",
        '"Attention weights show why a model answers as it does."',
        "They show where a head reads. The word that decides may have a small weight, and a head that never "
        "looks at the answer may be needed for it. Take something away, and measure.",
        (
            (
                "16_looking_inside",
                "At 'it', averaged over all heads and stories: how much weight is on the animal that makes the sound?",
            ),
            (
                "16_looking_inside",
                "All other words stay, and the animal is exchanged: the probability that the model still gives to "
                "the old sound?",
            ),
            (
                "16_looking_inside",
                "The head that looks at the previous letter never looks at the right answer. What does its loss "
                "cost, in nats?",
            ),
        ),
    ),
)

HEAD = """# What is said about Transformers, tested

Sentences that courses and tutorials repeat, beside what a lesson found when it tried them. Each number was computed by
the lesson, in seconds, on a small model; the band in brackets held for three seeds. Follow the link to see the code,
and to change it. A small model can refute "always" and "never". It does not show what a large model does.

| what is said | verdict | what was measured |
|---|---|---|
"""
TAIL = """
This page is written by `python -m lessons claims` from `lessons/course/claims.py` and the pages of the lessons.
"""


def outcome_of(page: str, question: str) -> str:
    """The outcome, with its band, that a page of a lesson has for a question. LookupError: it does not ask it."""
    asked = f"> **Predict.** {question}\n"
    start = page.find(asked)
    if start < 0:
        raise LookupError(question)
    found = re.search(r"^outcome: (\S+) \(expected: (.*)\)$", page[start:], flags=re.M)
    return f"**{found[1]}**" + (f" ({found[2]})" if found[2] != found[1] else "")


def table(lessons: Path) -> str:
    """Text of claims.md."""
    rows = []
    for number, claim in enumerate(CLAIMS, 1):
        measured = []
        for stem, question in claim.tests:
            page = (lessons / f"{stem}.md").read_text(encoding="utf-8")
            measured.append(f"{question} {outcome_of(page, question)}, [lesson {stem[:2]}]({stem}.md)")
        cells = f'<a id="{claim.name}"></a>{number}. {claim.claim}', claim.verdict, "<br>".join(measured)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return HEAD + "".join(rows) + TAIL
