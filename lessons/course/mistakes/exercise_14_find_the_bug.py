"""Mistakes known to the grader of exercise 14: right lines that may look wrong, each with the reason why it is right."""

# ruff: noqa: E501
from course.grading import Exercise, Mistake, Part

BUGS = {1: 3, 2: 5, 3: 4, 4: 4, 5: 4, 6: 3, 7: 4, 8: 4, 9: 3, 10: 7, 11: 5, 12: 3}

# By function: why each line that is named in error is right. Line 1, the signature, is right in all of them.
RIGHT_LINES = {
    1: {
        2: "the products of each query with each key: \"btnh,bsnh->bnts\" sums over h, the numbers of a head.",
        4: "scores of hidden keys become so small that exp makes 0 of them.",
        5: "softmax over the keys, the last axis of [B, N, T, S].",
        6: "a query that may attend to nothing has uniform weights after line 5; here they become 0.",
        7: "the mean of the values. The broken law says that the numbers differ from softmax(q k^T / sqrt(H)) v: which line has the root?",
    },
    2: {
        2: "the products are as they should be. Look at the law: the weights of what should sum to 1?",
        3: "q.shape[-1] is H, the width of a head.",
        4: "hidden keys get a very small score, as they should.",
        6: "this only sets hidden weights to 0, which they are already but in empty rows.",
        7: "the mean of the values, with whatever weights came in. Which line makes the weights?",
    },
    3: {
        2: "products of queries and keys, for each head.",
        3: "the root of H. The broken law is about something else: hidden keys.",
        5: "softmax over the keys is right, but look at what it is given.",
        6: "this line alone would be too late, since the rest no longer sums to 1; but it does no harm. Which line should have hidden the keys?",
        7: "the mean of the values. With v = 1 it gives the sum of the weights, which is below 1 here. Why?",
    },
    4: {
        2: "the number of query heads that share a key-value head.",
        3: "repeat gives the heads 0, 0, 1, 1: consecutive query heads share one. Compare the other line that makes copies.",
        5: "products over the root of H.",
        6: "the mask before the softmax, over the keys.",
        7: "empty rows become 0, and the values are averaged. Are these values in the order of the keys?",
    },
    5: {
        2: "scaled products. They may be large, and that is allowed.",
        3: "hidden scores become very small. The broken law is about very large ones.",
        5: "hidden keys get the weight 0. What did exp make of the others?",
        6: "the sum over the keys, kept as an axis for the division.",
        7: "the maximum avoids 0 / 0 in an empty row. Infinity over infinity is another matter: where does it come from?",
    },
    6: {
        2: "the three sizes.",
        4: "the products within each head, over the root of its width. Was each head cut out of one token?",
        5: "the triangle, and no padding. It is right, and still later tokens are seen: so rows of `heads` are not tokens.",
        6: "mask, then softmax over the keys.",
        7: "swap, then reshape: this is how heads are joined. How should they have been split?",
    },
    7: {
        2: "the number of tokens.",
        3: "products of all pairs of tokens, scaled.",
        5: "both must hold: in the past, and a token. Is the past the past?",
        6: "the mask comes before the softmax, which is over the keys.",
        7: "the mean of the vectors. The broken law says a later token is seen: which line decides that?",
    },
    8: {
        2: "the mean over the numbers of one token, axis -1.",
        3: "each number minus its token's mean. Does the next line use the same axis as the mean?",
        5: "the root of the variance, with epsilon inside. Whose variance?",
    },
    9: {
        2: "True counts as 1, padding as 0: a running sum then counts tokens.",
        4: "padding before the first token would have -1, which is no position. Look at the broken law: do rows depend on each other?",
    },
    10: {
        2: "pairs are (x[i], x[i + H / 2]), so there are H / 2 of them.",
        3: "wavelengths grow geometrically: the speed of pair i is 10000^(-i / half).",
        4: "position times speed, [B, T, 1, H / 2].",
        5: "the first and the second number of each pair.",
        6: "first cos - second sin is the first row of a rotation. Compare the second row.",
        8: "the pairs are joined as they were split.",
    },
    11: {
        2: "without a key nothing is dropped: this is how evaluation runs.",
        3: "x as it is, for evaluation. In training the mean must be the same: is it?",
        4: "bernoulli gives True with the probability 1 - rate: kept. What happens to the kept ones?",
    },
    12: {
        2: "the slopes of the paper: 2^(-8/N), 2^(-16/N), ...",
        4: "further away, a larger penalty, with the slope of the head. But is it the distance that comes in?",
    },
}  # fmt: skip


def part(number):
    """One function: its answer is the number of a line, and every other line is a mistake with its reason."""

    def twin(*, line=BUGS[number]):
        return line

    right = {1: "the signature and what it says are right; the comment tells what the function is meant to do.", **RIGHT_LINES[number]}  # fmt: skip
    mistakes = tuple(
        Mistake(f"BUG_{number}: line {line} is right", f"Line {line} of number {number}: {why}", {"line": line})
        for line, why in right.items()
    )
    return Part(f"BUG_{number}", twin, lambda: [("", ())], mistakes)


EXERCISE = Exercise(
    "Find the bug",
    tuple(part(number) for number in BUGS),
    hints=(
        "Run the file. A law names the property that is broken and the index: in which line of the function could that "
        "property be lost? Compare functions that should do the same: numbers 1, 2 and 3.",
        "Change the line that you suspect, in a copy, and run again: if the law holds, it was the line. Write the "
        "meaning of every axis beside its number: axis 0 texts, axis 1 tokens, axis -1 numbers of a vector.",
        "1: which root? 2: which axis? 3: exp(0)? 4: order of the copies? 5: exp of a large number? 6: split without a "
        "swap? 7: how wide is the triangle? 8 and 9: which axis? 10: is the pair still whole? 11: kept or dropped share? "
        "12: is it a distance?",
    ),
)
