"""Known mistakes of exercise 09: beam search with a length penalty, and BLEU."""

import itertools
from collections import Counter

import numpy as np

from course.grading import Exercise, Mistake, Part


def length_penalty(n, alpha, *, form="gnmt"):
    """Length penalty, with its mistakes as switches."""
    return {
        "gnmt": lambda: ((5 + n) / 6) ** alpha,
        "mean": lambda: n**alpha,
        "factor": lambda: (5 + n) / 6 * alpha,
        "no_alpha": lambda: (5 + n) / 6,
        "inside": lambda: (5 + n) ** alpha / 6,
        "precedence": lambda: 5 + n / 6**alpha,
        "inverse": lambda: (6 / (5 + n)) ** alpha,
        "negative": lambda: ((5 + n) / 6) ** -alpha if alpha else 1.0,
        "whole": lambda: ((5 + n) // 6) ** alpha,
        "five": lambda: ((5 + n) / 5) ** alpha,
        "six": lambda: ((6 + n) / 6) ** alpha,
        "below": lambda: (5 + n) / 6**alpha,
        "added": lambda: (5 + n / 6) ** alpha,
        "less": lambda: ((4 + n) / 6) ** alpha,
        "exchanged": lambda: alpha ** ((5 + n) / 6) if alpha >= 0 else None,
        "n": lambda: n,
        "log": lambda: np.log(((5 + n) / 6) ** alpha),
    }[form]()


def beam_search(
    first,
    transitions,
    end,
    num_beams,
    max_tokens,
    alpha,
    *,
    score="divide",
    form="gnmt",
    count_end=True,
    history="sum",
    width="given",
    ends="free",
    stop="late",
    cut="complete",
    more_steps=0,
    prune="together",
    choose="best",
    returns="score",
    transposed=False,
    drop_end=False,
    domain="log",
):
    """Beam search, with its mistakes as switches."""
    if transposed:
        transitions = transitions.T
    V = len(first)
    if prune == "nothing" and V**max_tokens > 50_000:
        return None  # it would take minutes
    complete, beams = [], [(0.0, [])]

    def score_of(found):
        n = len(found[1]) - (not count_end and found[1][-1] == end)
        if score == "none" or n == 0 or (score == "open only" and found[1][-1] == end):
            return found[0]
        penalty = length_penalty(n, alpha, form=form)
        return found[0] * penalty if score == "multiply" else found[0] / penalty

    W = 1 if width == "one" else num_beams
    for _ in range(max_tokens + more_steps):
        going_on, ended_now = [], []
        for log_prob, text in beams:
            if text and text[-1] == end and ends == "stay":  # only where ends stay among the beams
                going_on.append((log_prob, text))
                continue
            row = transitions[text[-1]] if text else transitions[0] if history == "row 0" else first
            if domain == "probability":
                row = np.exp(row)
            if ends == "best_only" and row.argmax() != end:
                row = np.where(np.arange(V) == end, -np.inf, row)
            own = []
            for token in range(V):
                kept = 0.0 if history == "last" else log_prob
                item = (kept + row[token], [*text, token])
                (ended_now if token == end else own).append(item)
            if prune == "each":
                own = sorted(own, key=lambda beam: -beam[0])[:W]
            going_on += own
        if ends == "stay":
            going_on, ended_now = going_on + ended_now, []
        if ends == "go on":
            going_on = going_on + ended_now
        if ends in ("compete", "compete_free", "compete_all"):
            likely = sorted(going_on + ended_now, key=lambda beam: -beam[0])[:W]
            if ends != "compete_all":
                ended_now = [beam for beam in likely if beam[1][-1] == end]
            if ends != "compete_free":
                going_on = [beam for beam in likely if beam[1][-1] != end]
        complete += ended_now
        if stop == "first" and complete:
            going_on = []
        sign = 1 if choose == "worst" else -1
        beams = going_on
        if prune == "together":
            beams = sorted(going_on, key=lambda beam: sign * beam[0])[:W]
        if stop == "better" and complete and beams and max(map(score_of, complete)) > beams[0][0]:
            beams = []
        if stop == "enough" and len(complete) >= num_beams:
            beams = []
    if cut == "complete":
        complete = complete + beams
    elif cut == "only_open":
        complete = beams
    complete = [found for found in complete if found[0] > -np.inf]
    if not complete:
        return None
    best = (min if choose == "lowest" else max)(
        complete, key=(lambda found: found[0]) if choose == "unpenalized" else score_of
    )
    value = {"score": lambda: score_of(best), "log": lambda: best[0], "exp": lambda: np.exp(best[0])}[returns]()
    text = best[1][:-1] if drop_end and best[1][-1] == end else best[1]
    return text, float(value)


def ngram_precision(
    hypothesis, reference, n, *, clip=True, of="hypothesis", unique=False, windows="all", words=False, floor=0
):
    """Matches and total of n-grams, with its mistakes as switches."""
    if windows == "shorter too":
        counts = [ngram_precision(hypothesis, reference, k) for k in range(1, n + 1)]
        return tuple(map(sum, zip(*counts, strict=True)))
    less = {"all": 1, "one_less": 0, "one_more": 2, "all starts": n, "apart": 1}[windows]
    step = n if windows == "apart" else 1

    def ngrams(sentence):
        if words is True:
            return Counter(sentence)
        order = {"bag": sorted, "letters": "".join}.get(words, tuple)
        starts = range(0, max(len(sentence) - n + less, 0), step)
        if words == "lower":
            sentence = [word.lower() for word in sentence]
        return Counter(tuple(order(sentence[i : i + n])) for i in starts)

    found, wanted = ngrams(hypothesis), ngrams(reference)
    if unique:
        found, wanted = Counter(set(found)), Counter(set(wanted))
    if clip is True:
        matches = (found & wanted).total()
    elif clip == "larger":
        matches = sum((found | wanted)[gram] for gram in found if gram in wanted)
    elif clip == "reference":
        matches = sum(count for gram, count in wanted.items() if gram in found)
    elif clip == "position":
        a, b = ([tuple(s[i : i + n]) for i in range(max(len(s) - n + 1, 0))] for s in (hypothesis, reference))
        matches = sum(x == y for x, y in zip(a, b, strict=False))
    elif clip == "once":
        matches = sum(gram in wanted for gram in found)
    else:
        matches = sum(count for gram, count in found.items() if gram in wanted)
    total = {
        "hypothesis": found.total(),
        "reference": wanted.total(),
        "words": len(hypothesis),
        "negative": len(hypothesis) - n + 1,
        "longer": max(found.total(), wanted.total()),
    }[of]
    return int(matches), int(total) if of == "negative" else max(int(total), floor)


def brevity_penalty(hypothesis_length, reference_length, *, form="exp"):
    """Brevity penalty, with its mistakes as switches."""
    c, r = hypothesis_length, reference_length
    if form == "empty_is_one" and c == 0:
        return 1.0
    if form == "swapped":
        return 0.0 if r == 0 else min(1.0, float(np.exp(1 - c / r)))
    if c == 0:
        return 0.0
    return {
        "exp": lambda: min(1.0, float(np.exp(1 - r / c))),
        "empty_is_one": lambda: min(1.0, float(np.exp(1 - r / c))),
        "no_limit": lambda: float(np.exp(1 - r / c)),
        "linear": lambda: min(1.0, c / r),
        "ratio": lambda: c / r,
        "long": lambda: 1.0 if c < r else float(np.exp(1 - r / c)),
        "sign": lambda: 1.0 if c >= r else float(np.exp(r / c - 1)),
        "difference": lambda: min(1.0, float(np.exp(c - r))),
        "inverse_ratio": lambda: 1.0 if c >= r else float(np.exp(1 - c / r)),
        "no_one": lambda: 1.0 if c >= r else float(np.exp(-r / c)),
        "both ways": lambda: float(np.exp(-abs(1 - r / c))),
        "complement": lambda: 1.0 if c >= r else 1 - float(np.exp(1 - r / c)),
        "no_exp": lambda: 1.0 if c >= r else 1 - r / c,
        "whole": lambda: 1.0 if c >= r else float(np.exp(1 - r // c)),
    }[form]()


def bleu(
    hypotheses,
    references,
    *,
    level="corpus",
    mean="geometric",
    orders=(1, 2, 3, 4),
    percent=True,
    brevity="corpus",
    zero="zero",
    clip=True,
    of="hypothesis",
    form="exp",
    logarithm=np.log,
):
    """BLEU, with its mistakes as switches."""
    if level == "sentence":
        pairs = zip(hypotheses, references, strict=True)
        options = {"mean": mean, "orders": orders, "percent": percent, "zero": zero, "clip": clip, "form": form}
        return float(np.mean([bleu([h], [r], **options) for h, r in pairs])) if len(hypotheses) else 0.0
    if level == "one text":
        hypotheses, references = ([list(itertools.chain(*side))] for side in (hypotheses, references))
    precisions = []
    for n in orders:
        counts = [ngram_precision(h, r, n, clip=clip, of=of) for h, r in zip(hypotheses, references, strict=True)]
        if level == "mean_precision":
            precisions.append(np.mean([matches / total if total else 0.0 for matches, total in counts]))
        else:
            matches, total = (sum(column) for column in zip(*counts, strict=True))
            if zero == "plus one":
                matches, total = matches + 1, total + 1
            precisions.append(matches / total if total else 0.0)
    precisions = np.array(precisions)
    if zero == "skipped":
        precisions = precisions[precisions > 0]
    if zero == "epsilon":
        precisions = precisions + 1e-2
    if len(precisions) == 0 or (mean != "arithmetic" and (precisions == 0).any()):
        return 0.0
    value = {
        "geometric": lambda: np.exp(np.log(precisions).mean()),
        "arithmetic": lambda: precisions.mean(),
        "product": lambda: np.prod(precisions),
        "base": lambda: np.exp(np.log2(precisions).mean()),
        "base10": lambda: np.exp(np.log10(precisions).mean()),
        "logs": lambda: np.log(precisions).mean(),
    }[mean]()
    lengths = [(len(h), len(r)) for h, r in zip(hypotheses, references, strict=True)]
    if brevity == "corpus":
        value *= brevity_penalty(*(sum(column) for column in zip(*lengths, strict=True)), form=form)
    elif brevity == "last":
        value *= brevity_penalty(*lengths[-1])
    elif brevity == "sentences":
        value *= np.mean([brevity_penalty(c, r) for c, r in lengths])
    return float(value) * (100 if percent else 1)


# Cases, from tiny to large


def _chain(seed, V, sharpness=0.6):
    random = np.random.default_rng(seed)
    return np.log(random.dirichlet(np.full(V, sharpness), size=V + 1) * 0.98 + 0.02 / V)


def _penalty_cases():
    for n, alpha in ((7, 1), (7, 0.5), (1, 1.0), (4, 0), (13, 0.6), (20, 2.0), (3, -1.0), (100, 0.7)):
        yield f"n = {n}, alpha = {alpha:g}", (n, alpha)


# Seed of a chain, V, num_beams, max_tokens, alpha: searches that miss the best text, and searches that find it.
SEARCHES = (
    (1, 5, 2, 4, 0.0),
    (426, 6, 2, 3, 1.5),
    (2467, 4, 1, 3, 0.6),
    (2, 5, 2, 6, 1.0),
    (626, 5, 2, 5, 4.0),
    (377, 6, 2, 5, 4.0),
    (2266, 5, 1, 4, -1.0),
    (2223, 4, 2, 6, 1.5),
    (2095, 4, 2, 6, 1.0),
    (1558, 4, 1, 6, 1.5),
    (2436, 6, 3, 5, 3.0),
    (1652, 4, 3, 5, 1.0),
    (1713, 6, 2, 5, 4.0),
    (12, 6, 3, 5, 4.0),
)


def _beam_cases():
    example = np.log([[0.6, 0.4], [0.5, 0.5], [0.9, 0.1]])
    yield "the example", (example[0], example[1:], 1, 1, 2, 0.0)
    yield "the example, one token", (example[0], example[1:], 1, 1, 1, 0.0)
    yield "the example, alpha 1", (example[0], example[1:], 1, 2, 3, 1.0)
    garden = np.log([[0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.05, 0.05, 0.9], [1 / 3, 1 / 3, 1 / 3]])
    yield "greedy goes wrong", (garden[0], garden[1:], 2, 2, 4, 0.0)
    yield "greedy goes wrong, one beam", (garden[0], garden[1:], 2, 1, 4, 0.0)
    endless = np.log([[0.7, 0.299, 0.001], [0.2, 0.799, 0.001], [0.6, 0.399, 0.001], [1 / 3, 1 / 3, 1 / 3]])
    yield "no end is likely", (endless[0], endless[1:], 2, 2, 5, 1.0)
    flat = np.log([[0.25, 0.2, 0.18, 0.17, 0.12, 0.08], *[[0.201, 0.2, 0.199, 0.198, 0.197, 0.005]] * 6])
    yield "the least likely end is the best", (flat[0], flat[1:], 5, 1, 4, 0.0)
    yield "the same with two beams", (flat[0], flat[1:], 5, 2, 4, 0.0)
    for seed, V, num_beams, max_tokens, alpha in SEARCHES:
        chain = _chain(seed, V)
        label = f"{num_beams} beams, {V} ids, {max_tokens} tokens, alpha {alpha:g}"
        yield label, (chain[0], chain[1:], V - 1, num_beams, max_tokens, alpha)


def _words(text):
    return text.split()


PAIRS = [
    ("the cat sat on the mat", "the cat is on the mat"),
    ("there is a dog in the big garden now", "a dog is in the garden of the big house"),
    ("we saw the red house at the end of the road", "we saw the red house at the end of the street"),
    ("yes", "yes"),
    ("the the the the the the the", "the cat is on the mat"),
    ("he said that he would come to the station", "he said that he would come to the old station in the morning"),
    ("a b a b a b", "a b a b c"),
    ("it rains and it rains and it rains", "it rains"),
]


def _precision_cases():
    yield "the example", (_words("the the the cat"), _words("the cat sat"), 1)
    yield "pairs of words", (_words("the cat sat"), _words("the cat is"), 2)
    yield "words that join to the same letters", (_words("ab c d"), _words("a bc d"), 2)
    yield "small and large letters", (_words("The cat"), _words("the cat"), 1)
    yield "shorter than n", (_words("the cat"), _words("the cat sat on"), 4)
    yield "empty", ([], _words("the cat"), 1)
    yield "an empty reference", (_words("a b c"), [], 2)
    for hypothesis, reference in PAIRS:
        for n in (1, 2, 3):
            yield f"{hypothesis!r}, n = {n}", (_words(hypothesis), _words(reference), n)


def _brevity_cases():
    for c, r in ((5, 10), (10, 5), (10, 10), (9, 10), (0, 7), (3, 10), (1, 4), (100, 120)):
        yield f"c = {c}, r = {r}", (c, r)


def _bleu_cases():
    hypotheses, references = ([_words(side) for side in sides] for sides in zip(*PAIRS, strict=True))
    yield "one sentence, equal", ([_words("the cat sat on the mat")],) * 2
    yield "one sentence, too short", ([_words("the cat sat on")], [_words("the cat sat on the mat")])
    yield "one sentence", (hypotheses[2:3], references[2:3])
    yield "too long", ([_words("so the cat sat on the mat today")], [_words("the cat sat on the mat")])
    yield "nothing in common", ([_words("a b c d e")], [_words("f g h i j")])
    yield "no four words match", ([_words("the cat sat on mats")], [_words("the cat sat in mats")])
    yield "three words only", ([_words("the cat sat")], [_words("the cat sat")])
    yield "two sentences", (hypotheses[1:3], references[1:3])
    yield "one of them empty", ([[], hypotheses[2]], [references[0], references[2]])
    yield "short and long", (hypotheses[5:7], references[5:7])
    yield "all", (hypotheses, references)


# Laws


def _check_against_all(answer):
    """With beams for all beginnings the search finds the best of all texts."""
    for seed in (21, 22, 23):
        V, max_tokens, alpha = 4, 4, 1.0
        chain = _chain(seed, V, 1.0)
        best = -np.inf
        for n in range(1, max_tokens + 1):
            for text in itertools.product(range(V), repeat=n):
                if V - 1 in text[:-1] or (text[-1] != V - 1 and n < max_tokens):
                    continue
                log_prob = chain[0][text[0]] + sum(chain[1 + a][b] for a, b in itertools.pairwise(text))
                best = max(best, log_prob / length_penalty(n, alpha))
        score = answer(chain[0], chain[1:], V - 1, 3 ** (max_tokens - 1) * 3, max_tokens, alpha)[1]
        assert abs(score - best) < 1e-6, f"with beams for all beginnings the best score is {best:.4f}, not {score:.4f}."


EXERCISE = Exercise(
    "Beam search and BLEU",
    (
        Part(
            "length_penalty",
            length_penalty,
            _penalty_cases,
            (
                Mistake(
                    "only the 6 has the power",
                    "Set brackets around the quotient: all of (5 + n) / 6 has the power alpha.",
                    {"form": "below"},
                ),
                Mistake(
                    "6 divides n alone", "Brackets: 5 and n are added before they are divided by 6.", {"form": "added"}
                ),
                Mistake(
                    "4 in place of 5 above",
                    "It is 5 + n, and n counts from 1: one token has the penalty 1.",
                    {"form": "less"},
                ),
                Mistake(
                    "basis and exponent are exchanged",
                    "alpha is the exponent, the quotient is what is raised to it.",
                    {"form": "exchanged"},
                ),
                Mistake(
                    "the length itself",
                    "n ** alpha is another penalty (the mean, with alpha = 1). Wu et al. add 5 and divide by 6.",
                    {"form": "mean"},
                ),
                Mistake("alpha is a factor", "alpha is an exponent: with 0 the penalty is 1.", {"form": "factor"}),
                Mistake("alpha is ignored", "Where is alpha? It is the exponent.", {"form": "no_alpha"}),
                Mistake(
                    "only the numerator has the power",
                    "The whole quotient has the power: put it in parentheses. With n = 1 the result is 1.",
                    {"form": "inside"},
                ),
                Mistake(
                    "missing parentheses",
                    "A power binds more than a quotient, and that more than a sum. Put the sum in parentheses, and the "
                    "quotient as well.",
                    {"form": "precedence"},
                ),
                Mistake("upside down", "Longer texts have a larger penalty: 5 + n is above.", {"form": "inverse"}),
                Mistake("divided in whole numbers", "// cuts off the fraction. Take /.", {"form": "whole"}),
                Mistake("5 in place of 6 below", "With n = 1 the quotient is 1: what stands below?", {"form": "five"}),
                Mistake("6 in place of 5 above", "With n = 1 the quotient is 1: what is added to n?", {"form": "six"}),
                Mistake("a logarithm", "The penalty is the power itself, not its logarithm.", {"form": "log"}),
            ),
        ),
        Part(
            "beam_search",
            beam_search,
            _beam_cases,
            (
                Mistake(
                    "divided by the number of tokens",
                    "The score is divided by length_penalty(n, alpha), not by n.",
                    {"form": "n"},
                ),
                Mistake(
                    "the first token comes from row 0",
                    "The first token has probabilities of its own, `first`: no id stands before it.",
                    {"history": "row 0"},
                ),
                Mistake(
                    "a text goes on after `end`",
                    "A continuation with `end` is complete. It is remembered, and it is continued no further.",
                    {"ends": "go on"},
                ),
                Mistake(
                    "ends push open texts out",
                    "You remember every end, but num_beams counts them as well. Prune only those that go on.",
                    {"ends": "compete_all"},
                ),
                Mistake(
                    "only texts without `end` get a penalty",
                    "Every complete text has its log-probability divided by the penalty, those with `end` too.",
                    {"score": "open only"},
                ),
                Mistake(
                    "stops as soon as a complete text looks best",
                    "Log-probabilities only fall, but the penalty may lift a longer text: go on for max_tokens steps.",
                    {"stop": "better"},
                ),
                Mistake(
                    "the lowest score",
                    "Scores are below 0, and the best is the highest, nearest to 0.",
                    {"choose": "lowest"},
                ),
                Mistake(
                    "the score is multiplied by the penalty",
                    "A log-probability is negative: a factor above 1 makes long texts worse, but they are to be "
                    "helped. Divide.",
                    {"score": "multiply"},
                ),
                Mistake(
                    "no length penalty", "alpha changes nothing in your result: divide the scores.", {"score": "none"}
                ),
                Mistake(
                    "the mean log-probability",
                    "You divide by n ** alpha. Use length_penalty, which adds 5 and divides by 6.",
                    {"form": "mean"},
                ),
                Mistake(
                    "`end` does not count in the length",
                    "n is the number of all ids of the text, and `end` is one of them.",
                    {"count_end": False},
                ),
                Mistake(
                    "only the last token counts",
                    "The log-probability of a text is the sum over its tokens: carry it along.",
                    {"history": "last"},
                ),
                Mistake("one beam: greedy", "num_beams is ignored: your search keeps one beam.", {"width": "one"}),
                Mistake(
                    "a text that ends uses up a beam",
                    "You keep the best num_beams of all continuations, with those that end among them. They are to be "
                    "set aside first: every end is remembered, and num_beams others go on.",
                    {"ends": "compete"},
                ),
                Mistake(
                    "texts that ended stay among the beams",
                    "A complete text keeps its place in your beam, so fewer open ones go on, or it is pushed out and "
                    "lost. Put complete texts into a list of their own.",
                    {"ends": "stay"},
                ),
                Mistake(
                    "unlikely ends are forgotten",
                    "You remember an end only if it is among the best num_beams continuations. Remember every end: the "
                    "length penalty may still make it the best.",
                    {"ends": "compete_free"},
                ),
                Mistake(
                    "ends only where `end` is the most likely token",
                    "Every open beam is continued with every id, so each may end at each step.",
                    {"ends": "best_only"},
                ),
                Mistake(
                    "stops at the first complete text",
                    "The first text to be complete is rarely the best. Go on for max_tokens steps.",
                    {"stop": "first"},
                ),
                Mistake(
                    "stops with num_beams complete texts",
                    "A better one may still come. Here the search goes on for max_tokens steps.",
                    {"stop": "enough"},
                ),
                Mistake(
                    "open beams are lost at the end",
                    "After max_tokens steps the open beams are complete, too: add them before you choose.",
                    {"cut": "lost"},
                ),
                Mistake(
                    "only the open beams are compared",
                    "The texts that ended on the way must be among those that you choose from.",
                    {"cut": "only_open"},
                ),
                Mistake("one step too few", "There are max_tokens steps, and you take one less.", {"more_steps": -1}),
                Mistake("one step too many", "There are max_tokens steps, and you take one more.", {"more_steps": 1}),
                Mistake(
                    "each beam keeps its own best",
                    "You keep num_beams continuations of every beam, so there are more and more of them. Keep "
                    "num_beams of all together.",
                    {"prune": "each"},
                ),
                Mistake(
                    "nothing is dropped",
                    "You search all texts: right, but not a beam search, and too slow for real models. Keep num_beams.",
                    {"prune": "nothing"},
                ),
                Mistake(
                    "keeps the worst", "You keep the least likely continuations: look at the sort.", {"choose": "worst"}
                ),
                Mistake(
                    "the best is chosen without the penalty",
                    "You return a score with the penalty, but choose the text by its log-probability.",
                    {"choose": "unpenalized"},
                ),
                Mistake(
                    "a log-probability in place of the score",
                    "The text is right; the score that you return lacks the penalty.",
                    {"returns": "log"},
                ),
                Mistake(
                    "a probability in place of the score",
                    "The text is right; return its score, not its probability.",
                    {"returns": "exp"},
                ),
                Mistake(
                    "transitions are read by columns",
                    "transitions[i, j] is from i to j: the row of the last id has its continuations.",
                    {"transposed": True},
                ),
                Mistake("`end` is not in the text", "A complete text has `end` as its last id.", {"drop_end": True}),
                Mistake(
                    "probabilities are added",
                    "The probability of a text is a product, so its logarithm is a sum of logarithms: do not take exp.",
                    {"domain": "probability"},
                ),
            ),
            laws=(_check_against_all,),
        ),
        Part(
            "ngram_precision",
            ngram_precision,
            _precision_cases,
            (
                Mistake(
                    "shorter pieces at the end count",
                    "A slice near the end has fewer than n words: there are len - n + 1 n-grams.",
                    {"windows": "all starts"},
                ),
                Mistake(
                    "n-grams that do not overlap",
                    "Each word begins an n-gram: go on by one word, not by n.",
                    {"windows": "apart"},
                ),
                Mistake(
                    "all n-grams up to n",
                    "Only those of n words are asked for; bleu adds the others itself.",
                    {"windows": "shorter too"},
                ),
                Mistake(
                    "the order of the words is lost", "'a b' and 'b a' are two n-grams: do not sort.", {"words": "bag"}
                ),
                Mistake(
                    "words are glued together",
                    "'ab' 'c' and 'a' 'bc' are two n-grams: keep the words apart, in a tuple.",
                    {"words": "letters"},
                ),
                Mistake(
                    "letters are made small",
                    "'The' and 'the' are two words here: leave words as they are.",
                    {"words": "lower"},
                ),
                Mistake(
                    "the larger of both counts",
                    "Clipped means the smaller one: min, or `&` of two counters.",
                    {"clip": "larger"},
                ),
                Mistake(
                    "not clipped",
                    "'the the the' must not count three times if the reference has one 'the'.",
                    {"clip": False},
                ),
                Mistake(
                    "counted in the reference",
                    "You count n-grams of the reference that the hypothesis has. Take the smaller of both counts.",
                    {"clip": "reference"},
                ),
                Mistake(
                    "each n-gram matches once",
                    "An n-gram that both have twice counts twice: the smaller of both counts, not 1.",
                    {"clip": "once"},
                ),
                Mistake(
                    "compared position by position",
                    "An n-gram may be at another position in the reference.",
                    {"clip": "position"},
                ),
                Mistake(
                    "recall in place of precision",
                    "The total is the number of n-grams of the hypothesis, not of the reference.",
                    {"of": "reference"},
                ),
                Mistake(
                    "the total of the longer one",
                    "The total is that of the hypothesis, however long.",
                    {"of": "longer"},
                ),
                Mistake(
                    "words in place of n-grams in the total",
                    "6 words have 5 pairs: the total is the number of n-grams.",
                    {"of": "words"},
                ),
                Mistake(
                    "a total below 0", "A sentence shorter than n has no n-gram: the total is 0.", {"of": "negative"}
                ),
                Mistake(
                    "a total of at least 1",
                    "A sentence shorter than n has total 0. The sum over the corpus keeps you from dividing by it.",
                    {"floor": 1},
                ),
                Mistake(
                    "sets in place of counts",
                    "A set forgets repetitions. Count each n-gram: collections.Counter.",
                    {"unique": True},
                ),
                Mistake(
                    "the last n-gram is missing", "len - n + 1 n-grams: your range ends early.", {"windows": "one_less"}
                ),
                Mistake(
                    "one n-gram too many",
                    "The last slice is shorter than n: len - n + 1 n-grams.",
                    {"windows": "one_more"},
                ),
                Mistake("single words, whatever n is", "n makes no difference: slice n words.", {"words": True}),
            ),
        ),
        Part(
            "brevity_penalty",
            brevity_penalty,
            _brevity_cases,
            (
                Mistake(
                    "long hypotheses are punished as well",
                    "The factor is 1 for all that are long enough: precision already punishes words too many.",
                    {"form": "both ways"},
                ),
                Mistake("1 minus the exponential", "The factor is exp(1 - r / c) itself.", {"form": "complement"}),
                Mistake(
                    "the exponential is missing",
                    "1 - r / c is the exponent, below 0 for short hypotheses.",
                    {"form": "no_exp"},
                ),
                Mistake(
                    "long hypotheses are rewarded",
                    "The factor is never above 1: precision already pays for words too many.",
                    {"form": "no_limit"},
                ),
                Mistake(
                    "hypothesis and reference are swapped",
                    "You punish long hypotheses. Short ones are to be punished: r / c is above 1 for them.",
                    {"form": "swapped"},
                ),
                Mistake("the plain ratio", "It is exp(1 - r / c), not c / r.", {"form": "linear"}),
                Mistake(
                    "the plain ratio, above 1 as well", "It is exp(1 - r / c), and never above 1.", {"form": "ratio"}
                ),
                Mistake(
                    "the condition is the wrong way round",
                    "The exponential is for c below r, the 1 for all others.",
                    {"form": "long"},
                ),
                Mistake("the sign", "Your factor is above 1 for short hypotheses: 1 - r / c.", {"form": "sign"}),
                Mistake("a difference", "Lengths are compared by their ratio, r / c.", {"form": "difference"}),
                Mistake(
                    "the ratio is upside down",
                    "1 - c / r is above 0 for short hypotheses, so your factor is above 1.",
                    {"form": "inverse_ratio"},
                ),
                Mistake("the 1 is missing", "With c = r the exponent must be 0: 1 - r / c.", {"form": "no_one"}),
                Mistake("divided in whole numbers", "// cuts off the fraction. Take /.", {"form": "whole"}),
                Mistake("1 for nothing", "With c = 0 nothing was translated: 0.", {"form": "empty_is_one"}),
            ),
        ),
        Part(
            "bleu",
            bleu,
            _bleu_cases,
            (
                Mistake(
                    "all sentences joined to one",
                    "n-grams must not cross the end of a sentence, and each sentence has its own reference.",
                    {"level": "one text"},
                ),
                Mistake(
                    "1 added to all counts",
                    "That is smoothing, which helps single sentences. Here nothing is added.",
                    {"zero": "plus one"},
                ),
                Mistake(
                    "the lengths of the last sentence",
                    "The brevity penalty takes the sums of all lengths: use +=.",
                    {"brevity": "last"},
                ),
                Mistake(
                    "the mean over sentences",
                    "BLEU of a corpus adds up matches and totals over all sentences first. The mean of the BLEUs of "
                    "sentences is another number.",
                    {"level": "sentence"},
                ),
                Mistake(
                    "precisions averaged over sentences",
                    "Add up matches, add up totals, and divide once for each n. A mean of quotients gives short "
                    "sentences too much weight.",
                    {"level": "mean_precision"},
                ),
                Mistake(
                    "the arithmetic mean",
                    "The geometric mean: exp of the mean of the logarithms.",
                    {"mean": "arithmetic"},
                ),
                Mistake(
                    "the product without its root",
                    "The fourth root is missing: the mean of four logarithms, not their sum.",
                    {"mean": "product"},
                ),
                Mistake("logarithms to base 2", "exp belongs to the natural logarithm: np.log.", {"mean": "base"}),
                Mistake("logarithms to base 10", "exp belongs to np.log, not to np.log10.", {"mean": "base10"}),
                Mistake("exp is missing", "The mean of logarithms is negative: take exp of it.", {"mean": "logs"}),
                Mistake("n up to 3", "n goes from 1 to 4, so range(1, 5).", {"orders": (1, 2, 3)}),
                Mistake("n up to 5", "n goes from 1 to 4.", {"orders": (1, 2, 3, 4, 5)}),
                Mistake("only four words in a row", "All four n count, from 1 to 4.", {"orders": (4,)}),
                Mistake("only single words", "Pairs, triples and four words in a row count as well.", {"orders": (1,)}),
                Mistake("n from 2", "n begins with 1.", {"orders": (2, 3, 4)}),
                Mistake("from 0 to 1", "The scale is 0 to 100.", {"percent": False}),
                Mistake(
                    "no brevity penalty",
                    "The brevity penalty is missing, or 1: its arguments are numbers of words, not of sentences.",
                    {"brevity": "none"},
                ),
                Mistake(
                    "the brevity penalty of each sentence",
                    "One brevity penalty for the whole corpus, from the sums of the lengths.",
                    {"brevity": "sentences"},
                ),
                Mistake(
                    "precisions of 0 are left out",
                    "If one precision is 0, BLEU is 0: it is not left out of the mean.",
                    {"zero": "skipped"},
                ),
                Mistake("not clipped", "Make ngram_precision pass first: its matches are clipped.", {"clip": False}),
                Mistake(
                    "recall in place of precision",
                    "Make ngram_precision pass first: the total is that of the hypothesis.",
                    {"of": "reference"},
                ),
                Mistake(
                    "long hypotheses are rewarded",
                    "Make brevity_penalty pass first: it is never above 1.",
                    {"form": "no_limit"},
                ),
                Mistake(
                    "the brevity penalty is swapped",
                    "Make brevity_penalty pass first: first the hypotheses, then the references.",
                    {"form": "swapped"},
                ),
            ),
        ),
    ),
    (
        "Write the functions in order: beam_search uses length_penalty, bleu uses the two above it. For beam_search "
        "keep two lists: open beams and complete texts, each entry a pair of log-probability and ids.",
        "beam_search: in each step make all continuations of all open beams; those that end go to the complete list, "
        "the rest is sorted and cut to num_beams. After the loop add the open beams to the complete list. Counter from "
        "collections counts n-grams (as tuples), and `&` of two counters takes the smaller counts.",
        "bleu: for n in 1, 2, 3, 4: matches = sum over sentences, total = sum over sentences; collect log(matches / "
        "total), or return 0 if there is no match. Then 100 * brevity_penalty(sum of lengths of the hypotheses, of the "
        "references) * exp(mean of the logarithms).",
    ),
)
