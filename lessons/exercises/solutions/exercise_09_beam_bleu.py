"""Exercise 09: beam search and BLEU.

About 60 minutes; hard. Read lesson 09 first.

A decoder gives probabilities of the next token. Beam search looks for a good whole text, and BLEU measures how near a
translation is to that of a person. Here both are written by hand, for a model that fits on a line: a chain, in which
the next token depends on the last one only. NumPy and Python are all you need. Do not change what comes in.

Write the five functions, then:  python -m lessons check 09
Stuck?                           python -m lessons hint 09
"""

from collections import Counter

import numpy as np


def length_penalty(n, alpha):
    """The number by which the log-probability of n tokens is divided: ((5 + n) / 6) to the power of alpha.

    Wu et al. 2016, equation 14.

    Args:
      n: int, the number of tokens, 1 or more.
      alpha: a number. 0: no penalty, all lengths are divided by 1.
    Returns:
      a number. length_penalty(7, 1) is 2, length_penalty(7, 0.5) is 1.414.
    """
    # answer
    return ((5 + n) / 6) ** alpha
    # end


def beam_search(first, transitions, end, num_beams, max_tokens, alpha):
    """The best text that a beam search finds.

    A text is a list of ids. It is complete when its last id is `end`, or when it has max_tokens ids. The
    log-probability of a text is the sum of those of its tokens. The score of a complete text of n ids is its
    log-probability divided by length_penalty(n, alpha); `end`, if it has one, counts as one of the n.

    The search has open beams: texts that go on. It begins with one, the empty text. At each step
      1. every open beam is continued with every id;
      2. a continuation with `end` is complete: remember its score. It uses up no beam;
      3. of all other continuations together, the num_beams with the highest log-probability are the new open beams.
    After max_tokens steps the open beams are complete, too. The answer is the complete text with the highest score.

    Args:
      first: float [V], log-probability of each id as first token.
      transitions: float [V, V]; transitions[i, j] is the log-probability of id j after id i.
      end: int, the id that ends a text.
      num_beams, max_tokens: int, 1 or more.
      alpha: a number, for length_penalty.
    Returns:
      (text, score): a list of int, with `end` if it has one, and a number.

    With first = log [0.6, 0.4], transitions = log [[0.5, 0.5], [0.9, 0.1]], end = 1, num_beams = 1, max_tokens = 2 and
    alpha = 0: the complete texts are [1] with log 0.4, [0, 1] with log 0.3 and [0, 0] with log 0.3. The best is [1].
    """
    # answer
    V = len(first)
    complete = []
    beams = [(0.0, [])]
    for _ in range(max_tokens):
        going_on = []
        for log_prob, text in beams:
            row = transitions[text[-1]] if text else first
            for token in range(V):
                (complete if token == end else going_on).append((log_prob + row[token], [*text, token]))
        beams = sorted(going_on, key=lambda beam: -beam[0])[:num_beams]
    complete += beams
    log_prob, text = max(complete, key=lambda found: found[0] / length_penalty(len(found[1]), alpha))
    return text, log_prob / length_penalty(len(text), alpha)
    # end


def ngram_precision(hypothesis, reference, n):
    """How many n-grams of the hypothesis are in the reference: (matches, total).

    An n-gram is n words in a row. `total` counts the n-grams of the hypothesis, repetitions included; 0 if it is
    shorter than n. `matches` counts those that are in the reference, and each n-gram at most as often as the reference
    has it ("clipped": Papineni et al. 2002, section 2.1).

    Args:
      hypothesis, reference: lists of words.
      n: int, 1 or more.
    Returns:
      (matches, total), two int.

    ngram_precision(["the", "the", "the", "cat"], ["the", "cat", "sat"], 1) is (2, 4): "the" counts once.
    """
    # answer
    found = Counter(tuple(hypothesis[i : i + n]) for i in range(len(hypothesis) - n + 1))
    wanted = Counter(tuple(reference[i : i + n]) for i in range(len(reference) - n + 1))
    return (found & wanted).total(), found.total()
    # end


def brevity_penalty(hypothesis_length, reference_length):
    """The factor for translations that are too short: exp(1 - r / c) if c is below r, else 1.

    Papineni et al. 2002, section 2.3. c is the length of the hypotheses, r that of the references. With c = 0 it is 0.

    Returns:
      a number. brevity_penalty(5, 10) is exp(-1), about 0.368; brevity_penalty(10, 5) is 1.
    """
    # answer
    if hypothesis_length == 0:
        return 0.0
    return min(1.0, float(np.exp(1 - reference_length / hypothesis_length)))
    # end


def bleu(hypotheses, references):
    """BLEU of a whole corpus, from 0 to 100, as sacrebleu computes it without smoothing.

    For each n from 1 to 4 add up the matches of all sentences, and the totals of all sentences: their quotient is the
    precision p_n of the corpus. BLEU is 100 times the brevity penalty of the corpus (all words of all hypotheses, all
    words of all references) times the geometric mean of the four precisions: exp of the mean of log p_n. If a precision
    is 0, or there is no n-gram of a length, BLEU is 0.

    Args:
      hypotheses, references: lists of sentences, equally many; a sentence is a list of words.
    Returns:
      a number.
    """
    # answer
    pairs = list(zip(hypotheses, references, strict=True))
    log_precisions = []
    for n in range(1, 5):
        counts = [ngram_precision(hypothesis, reference, n) for hypothesis, reference in pairs]
        matches = sum(count[0] for count in counts)
        total = sum(count[1] for count in counts)
        if matches == 0:
            return 0.0
        log_precisions.append(np.log(matches / total))
    penalty = brevity_penalty(sum(map(len, hypotheses)), sum(map(len, references)))
    return 100 * penalty * float(np.exp(np.mean(log_precisions)))
    # end
