"""Known mistakes of exercise 07: the mask of an encoder, pooling, masked words and their loss."""

import numpy as np

from course.grading import Exercise, Mistake, Part


def may_attend(is_token, *, hidden="keys", order="both", inverted=False, own="as_others"):
    """Mask of an encoder, with its mistakes as switches."""
    is_token = np.asarray(is_token)
    B, T = is_token.shape
    keys = np.broadcast_to(is_token[:, None, :], (B, T, T))
    queries = np.broadcast_to(is_token[:, :, None], (B, T, T))
    mask = {"keys": keys, "queries": queries, "both": keys & queries, "either": keys | queries}.get(hidden)
    if hidden == "none":
        mask = np.ones((B, T, T), bool)
    elif hidden == "first_text":
        mask = np.broadcast_to(keys[:1], (B, T, T))
    elif hidden == "same_kind":
        mask = keys == queries
    before = np.tri(T, dtype=bool)
    mask = mask & {"both": np.ones((T, T), bool), "causal": before, "later": before.T}[order]
    if own == "hidden":
        mask = mask & ~np.eye(T, dtype=bool)
    elif own == "always":
        mask = mask | np.eye(T, dtype=bool)
    return ~mask if inverted else mask


def mean_pool(x, is_token, *, divide="tokens", sum_of="tokens", axis="positions", empty="zeros"):
    """Mean pooling, with its mistakes as switches."""
    x, is_token = np.asarray(x, np.float64), np.asarray(is_token)
    B, T, D = x.shape
    weights = is_token[:, :, None].astype(float)
    if sum_of == "first":
        return np.stack([row[mask.argmax()] for row, mask in zip(x, is_token, strict=True)])
    if sum_of == "slot_0":
        return x[:, 0]
    if sum_of == "up_to_count":
        weights = (np.arange(T)[None] < is_token.sum(axis=1, keepdims=True))[:, :, None].astype(float)
    total = (x if sum_of == "all" else x * weights).sum(axis=1)
    if axis == "width":
        return (x * weights).sum(axis=2) / D
    count = weights.sum(axis=1)
    if divide == "T":
        return total / T
    if divide == "not_zero":
        return total / np.maximum((x * weights != 0).sum(axis=1), 1)
    if divide == "none":
        return total
    if divide == "batch":
        return total / max(weights.sum(), 1)
    if divide == "mean_length":
        return total / max(weights.sum() / B, 1)
    if divide == "root":
        return total / np.sqrt(np.maximum(count, 1))
    if divide == "plus_one":
        return total / (count + 1)
    with np.errstate(all="ignore"):
        return total / (count if empty == "nan" else np.maximum(count, 1))


def max_pool(x, is_token, *, padding="hidden", empty="zeros", by="dimension"):
    """Max pooling, with its mistakes as switches."""
    x, is_token = np.asarray(x, np.float64), np.asarray(is_token)[:, :, None]
    if padding == "zero":
        return np.where(is_token, x, 0.0).max(axis=1)
    if padding == "seen":
        return x.max(axis=1)
    if padding == "small":
        return np.where(is_token, x, -10.0).max(axis=1)
    if by == "token":
        sums = np.where(is_token[:, :, 0], x.sum(axis=2), -np.inf)
        largest = x[np.arange(len(x)), sums.argmax(axis=1)]
    elif by == "size":
        largest = np.where(is_token, np.abs(x), -np.inf).max(axis=1)
    elif by == "least":
        largest = np.where(is_token, x, np.inf).min(axis=1)
    else:
        largest = np.where(is_token, x, -np.inf).max(axis=1)
    is_empty = ~is_token.any(axis=1)
    if by == "not below 0":
        return np.maximum(largest, 0)
    if empty == "infinite":
        return largest
    if empty == "nan":
        return np.where(is_empty, np.nan, largest)
    if empty == "lowest":
        return np.where(is_empty, -1e9, largest)
    if empty == "float32":
        return np.where(is_empty, np.finfo(np.float32).min, largest)
    if empty == "first":
        return np.where(is_empty, x[:, 0], largest)
    return np.where(is_empty, 0.0, largest)


def attention_pool(
    x, scores, is_token, *, mask="before", softmax="positions", overflow=False, empty="zeros", weights_of="softmax"
):
    """Attention pooling, with its mistakes as switches."""
    x, scores, is_token = np.asarray(x, np.float64), np.asarray(scores, np.float64), np.asarray(is_token)
    if weights_of == "scores":
        masked = scores * is_token
        return np.einsum("bt,btd->bd", masked, x)
    if weights_of == "normalized":
        masked = scores * is_token
        with np.errstate(all="ignore"):
            weights = masked / masked.sum(axis=1, keepdims=True)
        return np.einsum("bt,btd->bd", np.where(is_token.any(axis=1, keepdims=True), weights, 0), x)
    if weights_of == "largest":
        best = np.where(is_token, scores, -np.inf).argmax(axis=1)
        return np.where(is_token.any(axis=1)[:, None], x[np.arange(len(x)), best], 0)
    if weights_of == "equal":
        return mean_pool(x, is_token)
    if softmax == "texts" and not is_token.any(axis=0).all():
        return None
    if weights_of == "root":
        scores = scores / np.sqrt(x.shape[2])
    if mask == "none":
        seen = scores
    elif mask == "zero_before":
        seen = scores * is_token
    elif mask in ("after", "renormalized"):
        seen = scores
    elif mask == "inverted":
        seen = np.where(is_token, -np.inf, scores)
    else:
        seen = np.where(is_token, scores, -np.inf)
    axis = {"positions": 1, "texts": 0, "all": None}[softmax]
    with np.errstate(all="ignore"):
        if overflow == "global":
            weights = np.exp(seen - seen.max())
        elif overflow:
            weights = np.exp(seen)
        else:
            top = seen.max(axis=axis, keepdims=True)
            weights = np.exp(seen - np.where(np.isfinite(top), top, 0))
        total = weights.sum(axis=axis, keepdims=True)
        weights = weights / (np.maximum(total, 1e-300) if overflow == "caught" else total)
        if mask == "after":
            weights = weights * is_token
        if mask == "renormalized":
            weights = weights * is_token
            weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
        if weights_of == "mean":
            weights = weights / x.shape[1]
        is_empty = ~is_token.any(axis=1, keepdims=True)
        if mask in ("before",):
            if empty == "zeros":
                weights = np.where(is_empty, 0, weights)
            elif empty == "own":
                own = np.exp(scores - scores.max(axis=1, keepdims=True))
                weights = np.where(is_empty, own / own.sum(axis=1, keepdims=True), weights)
            elif empty == "uniform":
                weights = np.where(is_empty, 1 / x.shape[1], weights)
        return np.einsum("bt,btd->bd", weights, x)


def corrupt(
    tokens, is_chosen, choice, random_tokens, mask_id, *, chosen="used", shares=(0.8, 0.9), kinds="mrk", border="below"
):
    """Corruption of BERT, with its mistakes as switches."""
    tokens = np.asarray(tokens)
    first, second = shares
    is_first = choice <= first if border == "at" else choice < first
    is_second = choice <= second if border == "at" else choice < second
    values = {"m": np.full_like(tokens, mask_id), "r": np.asarray(random_tokens), "k": tokens, "0": 0 * tokens}
    hidden = np.where(is_first, values[kinds[0]], np.where(is_second, values[kinds[1]], values[kinds[2]]))
    if chosen == "all":
        return hidden
    if chosen == "inverted":
        return np.where(is_chosen, tokens, hidden)
    if chosen == "others_hidden":
        return np.where(is_chosen, hidden, mask_id)
    return np.where(is_chosen, hidden, tokens)


def masked_lm_loss(
    logits, targets, is_chosen, *, mean="chosen", loss="cross_entropy", overflow="", shift=0, empty="zero", axis=-1
):
    """Loss of a masked language model, with its mistakes as switches."""
    logits, targets, is_chosen = np.asarray(logits, np.float64), np.asarray(targets), np.asarray(is_chosen)
    B, T, V = logits.shape
    if axis == 1 and V < T:
        return None
    with np.errstate(all="ignore"):
        if overflow == "both":
            log_probs = np.log(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True))
        elif overflow == "below":
            weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
            log_probs = np.log(weights / weights.sum(axis=-1, keepdims=True))
        else:
            shifted = logits - (logits.max() if overflow == "global" else logits.max(axis=axis, keepdims=True))
            log_probs = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
        scores = logits if loss == "logit" else np.exp(log_probs) if loss == "probability" else log_probs
        scores = scores / np.log(2) if loss == "bits" else scores
        if loss == "twice":
            scores = np.exp(scores) - np.log(np.exp(np.exp(scores)).sum(axis=-1, keepdims=True))
        if loss == "added":
            scores = np.log(np.exp(scores) + 1e-9)
        if shift:
            scores, targets = scores[:, :-1], targets[:, 1:]
            is_chosen = is_chosen[:, 1:] if shift == 1 else is_chosen[:, :-1]
        nats = -np.take_along_axis(scores, targets[:, :, None], axis=-1)[:, :, 0]
        if loss == "sign":
            nats = -nats
        if loss == "accuracy":
            nats = (log_probs.argmax(axis=-1) != targets).astype(float)
        if mean == "all_positions":
            return float(nats.mean()) if nats.size else 0.0
        if mean == "others":
            return float((nats * ~is_chosen).sum() / max((~is_chosen).sum(), 1))
        total = (nats * is_chosen).sum()
        count = is_chosen.sum()
        if mean == "texts":
            rows = (nats * is_chosen).sum(axis=1) / np.maximum(is_chosen.sum(axis=1), 1)
            return float(rows.mean())
        divisor = {"sum": 1, "plus_one": count + 1, "everything": B * T, "batch": B, "vocabulary": max(count * V, 1)}
        if mean in divisor:
            return float(total / divisor[mean])
        return float(total / (count if empty == "nan" else max(count, 1)))


# Cases, from tiny to large

RAGGED = np.array(
    [
        [True, True, True, True, True, False, False],
        [False, False, True, True, True, True, True],
        [True, True, True, True, True, True, True],
        [False, False, False, False, False, False, False],
        [False, True, False, True, True, False, False],
    ]
)


def _mask_cases():
    yield "two tokens and padding", (np.array([[True, True, False]]),)
    yield "padding on the left", (np.array([[False, True, True]]),)
    yield "one token", (np.array([[True]]),)
    yield "two texts", (np.array([[True, True, False, False], [True, True, True, True]]),)
    yield "a text of padding", (np.array([[False, False], [True, True]]),)
    yield "five texts", (RAGGED,)


def _pool_cases():
    random = np.random.default_rng(7)
    yield "three positions", (np.array([[[2.0], [4.0], [9.0]]]), np.array([[True, True, False]]))
    yield "negative numbers", (np.array([[[-2.0], [-4.0], [9.0]]]), np.array([[True, True, False]]))
    yield "padding on the left", (np.array([[[9.0], [2.0], [5.0]]]), np.array([[False, True, True]]))
    yield "no padding", (random.normal(size=(2, 3, 5)), np.ones((2, 3), bool))
    yield "two lengths", (random.normal(size=(2, 4, 3)), np.array([[True] * 4, [True, False, False, False]]))
    yield "a text of padding", (random.normal(size=(2, 3, 2)), np.array([[True, True, True], [False] * 3]))
    zeros = np.array([[[0.0, 4.0], [2.0, 0.0], [6.0, 6.0]]])
    yield "zeros in the vectors of tokens", (zeros, np.array([[True, True, False]]))
    yield "large numbers", (random.normal(size=(2, 3, 2)) * 1e3 - 1e6, np.array([[True, False, True], [True] * 3]))
    yield "five texts", (random.normal(size=(5, 7, 11)), RAGGED)


def _attention_pool_cases():
    random = np.random.default_rng(70)
    for label, (x, is_token) in _pool_cases():
        B, T = is_token.shape
        scores = np.zeros((B, T)) if B == 1 else random.normal(size=(B, T)) + 0.5
        yield label, (x, scores, is_token)
    large = np.array([[1000.0, 999.0, 0.0], [-1000.0, -1001.0, 0.0]])
    yield "scores of 1,000", (random.normal(size=(2, 3, 2)), large, np.array([[True, True, False]] * 2))


def _corrupt_cases():
    random = np.random.default_rng(71)
    is_chosen = np.array([[True, True, True, False]])
    yield (
        "four tokens",
        (np.array([[5, 6, 7, 8]]), is_chosen, np.array([[0.1, 0.85, 0.95, 0.1]]), np.array([[1, 2, 3, 4]]), 99),
    )
    yield (
        "at the borders",
        (np.array([[5, 6, 7]]), np.ones((1, 3), bool), np.array([[0.0, 0.8, 0.9]]), np.array([[1, 2, 3]]), 99),
    )
    yield "nothing chosen", (np.array([[5, 6]]), np.zeros((1, 2), bool), np.array([[0.1, 0.85]]), np.array([[1, 2]]), 9)
    shape = 5, 31
    tokens, other = random.integers(0, 50, shape), random.integers(0, 50, shape)
    yield "many", (tokens, random.random(shape) < 0.5, random.random(shape), other, 50)
    shape = 7, 101
    tokens, other = random.integers(0, 50, shape), random.integers(0, 50, shape)
    yield "15 % chosen", (tokens, random.random(shape) < 0.15, random.random(shape), other, 50)


def _loss_cases():
    random = np.random.default_rng(72)
    yield "zeros", (np.zeros((1, 2, 3)), np.array([[0, 2]]), np.array([[True, False]]))
    yield "one position", (np.array([[[1.0, 2.0]]]), np.array([[0]]), np.array([[True]]))
    yield "two positions", (np.array([[[1.0, 2.0], [3.0, 0.0]]]), np.array([[0, 1]]), np.array([[False, True]]))
    yield "nothing chosen", (random.normal(size=(1, 2, 3)), np.array([[0, 1]]), np.zeros((1, 2), bool))
    large = np.array([[[1000.0, 998.0, 0.0], [-1000.0, -1001.0, -1002.0]]])
    yield "logits of 1,000", (large, np.array([[1, 0]]), np.array([[True, True]]))
    yield "an unlikely target", (np.array([[[0.0, 1000.0]]]), np.array([[0]]), np.array([[True]]))
    is_chosen = np.array([[True, False, True, True, False], [False, True, False, False, False]])
    yield "two texts", (random.normal(size=(2, 5, 7)), random.integers(0, 7, (2, 5)), is_chosen)
    many = random.random((5, 13)) < 0.3
    yield "many", (random.normal(size=(5, 13, 17)) * 2, random.integers(0, 17, (5, 13)), many)


# Laws


def _check_encoder(answer):
    """A small encoder with the learner's mask: attention of one head over random vectors of the tokens."""
    from transformer_jax.testing import check_encoder

    random = np.random.default_rng(73)
    embedding, positions = random.normal(size=(11, 8)), random.normal(size=(32, 8))

    def encode(tokens, is_token):
        tokens, is_token = np.asarray(tokens), np.asarray(is_token)
        mask = np.asarray(answer(is_token.copy()))
        index = np.maximum(np.cumsum(is_token, axis=1) - 1, 0)
        x = embedding[tokens] + positions[index]
        scores = np.where(mask, np.einsum("btd,bsd->bts", x, x) / 8, -1e30)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True)) * mask
        weights = weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-30)
        return np.where(is_token[:, :, None], x + weights @ x, 0)

    check_encoder(encode, vocab_size=11, has_positions=True)


_NORMALIZED = "The weights of the tokens must sum to 1: what gets weight 0 must leave the sum before you divide."

EXERCISE = Exercise(
    "An encoder's mask, pooling, and masked words",
    (
        Part(
            "may_attend",
            may_attend,
            _mask_cases,
            (
                Mistake(
                    "causal",
                    "You hide what comes later. That is a decoder; an encoder looks in both directions.",
                    {"order": "causal"},
                ),
                Mistake(
                    "only what comes later",
                    "You hide what comes before. An encoder looks in both directions.",
                    {"order": "later"},
                ),
                Mistake(
                    "rows in place of columns",
                    "A row is the position that looks, a column the one that is looked at. Padding must not be looked "
                    "at: hide columns.",
                    {"hidden": "queries"},
                ),
                Mistake(
                    "rows of padding are hidden, too",
                    "Only columns are to be hidden. A row without any True has no softmax, and nobody reads it anyway.",
                    {"hidden": "both"},
                ),
                Mistake(
                    "tokens look at padding",
                    "With `or` a token may look at everything, padding as well. Only the column decides.",
                    {"hidden": "either"},
                ),
                Mistake(
                    "tokens with tokens, padding with padding",
                    "You compare both positions, so padding looks at padding. Only the column decides.",
                    {"hidden": "same_kind"},
                ),
                Mistake("nothing is hidden", "Padding can be seen: where does is_token enter?", {"hidden": "none"}),
                Mistake(
                    "the first text decides for all",
                    "Each text has a length of its own: keep the axis B.",
                    {"hidden": "first_text"},
                ),
                Mistake("inverted", "True means: may look. Yours is True where it must not.", {"inverted": True}),
                Mistake("a token cannot see itself", "Every token may look at itself.", {"own": "hidden"}),
                Mistake(
                    "padding sees itself",
                    "Padding is never looked at, by padding neither: do not add the diagonal.",
                    {"own": "always"},
                ),
            ),
            laws=(_check_encoder,),
        ),
        Part(
            "mean_pool",
            mean_pool,
            _pool_cases,
            (
                Mistake(
                    "zeros are taken for padding",
                    "You count the numbers that are not 0. A token may have a 0 in its vector: count with is_token.",
                    {"divide": "not_zero"},
                ),
                Mistake(
                    "divided by the padded length",
                    "A short text gets a smaller vector the more padding it has. Divide by its number of tokens.",
                    {"divide": "T"},
                ),
                Mistake(
                    "padding is in the sum",
                    "The vectors of padding are in your sum, though you divide by the number of tokens.",
                    {"sum_of": "all"},
                ),
                Mistake(
                    "the plain mean",
                    "is_token makes no difference: padding is in the sum, and in the number.",
                    {"sum_of": "all", "divide": "T"},
                ),
                Mistake("a sum", "Divide by the number of tokens.", {"divide": "none"}),
                Mistake(
                    "divided by the tokens of the batch",
                    "Every text is divided by its own number of tokens: sum is_token along one axis.",
                    {"divide": "batch"},
                ),
                Mistake(
                    "divided by the mean length",
                    "Every text is divided by its own number of tokens, not by the mean over texts.",
                    {"divide": "mean_length"},
                ),
                Mistake("divided by the root", "A mean divides by the number, not by its root.", {"divide": "root"}),
                Mistake(
                    "divided by one too many",
                    "A guard against 0 must not change the other numbers: take the larger of the number and 1.",
                    {"divide": "plus_one"},
                ),
                Mistake(
                    "NaN for a text of padding",
                    "0 / 0 is NaN, and one NaN spoils a whole training. The result is to be 0 there.",
                    {"empty": "nan"},
                ),
                Mistake(
                    "the mean over the width",
                    "You average the D numbers of a vector. Average over the positions, axis 1.",
                    {"axis": "width"},
                ),
                Mistake(
                    "the first token", "That is another pooling, BERT's. Here it is the mean.", {"sum_of": "first"}
                ),
                Mistake("slot 0", "That is the vector of slot 0. Here it is the mean.", {"sum_of": "slot_0"}),
                Mistake(
                    "padding is taken to be on the right",
                    "You take as many positions from the left as there are tokens. Padding may be on the left, too.",
                    {"sum_of": "up_to_count"},
                ),
            ),
        ),
        Part(
            "max_pool",
            max_pool,
            _pool_cases,
            (
                Mistake(
                    "nothing below 0",
                    "Where all numbers of the tokens are negative, the largest of them is negative, too.",
                    {"by": "not below 0"},
                ),
                Mistake(
                    "NaN from 0 times infinity",
                    "A text of padding has the maximum -inf, and -inf times 0 is NaN. Choose with np.where instead.",
                    {"empty": "nan"},
                ),
                Mistake(
                    "padding counts as 0",
                    "0 is larger than a negative number, so it wins. Padding must be lower than all numbers.",
                    {"padding": "zero"},
                ),
                Mistake("padding is seen", "is_token makes no difference to your maximum.", {"padding": "seen"}),
                Mistake(
                    "padding is not low enough",
                    "Numbers may be below the value that you give to padding. Minus infinity is below all.",
                    {"padding": "small"},
                ),
                Mistake(
                    "minus infinity for a text of padding",
                    "With nothing to take the largest of, the result is to be 0.",
                    {"empty": "infinite"},
                ),
                Mistake(
                    "-1e9 for a text of padding",
                    "With nothing to take the largest of, the result is to be 0, not your value for padding.",
                    {"empty": "lowest"},
                ),
                Mistake(
                    "the lowest float for a text of padding",
                    "The lowest number of float32 is as bad as an infinity: the result is to be 0.",
                    {"empty": "float32"},
                ),
                Mistake(
                    "slot 0 for a text of padding",
                    "argmax of nothing is 0, so slot 0 is taken. The result is to be 0.",
                    {"empty": "first"},
                ),
                Mistake(
                    "one token for all dimensions",
                    "You choose one token. Each dimension has a largest number of its own.",
                    {"by": "token"},
                ),
                Mistake("the size without the sign", "-5 is less than 2: no absolute values.", {"by": "size"}),
                Mistake("the smallest", "That is the minimum.", {"by": "least"}),
            ),
        ),
        Part(
            "attention_pool",
            attention_pool,
            _attention_pool_cases,
            (
                Mistake(
                    "scores over the root of D",
                    "These scores are no dot products: nothing is divided by a root here.",
                    {"weights_of": "root"},
                ),
                Mistake(
                    "the weighted tokens are averaged",
                    "The weights already sum to 1: add the weighted tokens up, and do not divide by T.",
                    {"weights_of": "mean"},
                ),
                Mistake(
                    "one maximum for all texts",
                    "A text whose scores are all far below the largest of the batch is left with exp(-2000) = 0. Each "
                    "text needs its own maximum.",
                    {"overflow": "global"},
                ),
                Mistake(
                    "overflow, and 0 / 0 is caught",
                    "exp(1000) is infinite, and exp(-1000) is 0 for all tokens of a text. Take the largest score away.",
                    {"overflow": "caught"},
                ),
                Mistake(
                    "padding leaves after exp",
                    "Where padding has a far larger score than the tokens, nothing is left of them after its maximum "
                    "was taken away. Hide padding before the maximum.",
                    {"mask": "renormalized"},
                ),
                Mistake("padding is seen", "is_token makes no difference: padding has weight.", {"mask": "none"}),
                Mistake(
                    "a score of 0 for padding",
                    "exp(0) is 1, so padding has a weight still. Its score must be very low: minus infinity.",
                    {"mask": "zero_before"},
                ),
                Mistake("masked after the softmax", _NORMALIZED, {"mask": "after"}),
                Mistake("the mask is inverted", "You keep padding, and hide the tokens.", {"mask": "inverted"}),
                Mistake(
                    "softmax over the texts",
                    "The weights of one text sum to 1: the softmax runs over axis 1.",
                    {"softmax": "texts"},
                ),
                Mistake("softmax over everything", "Each text has a softmax of its own: axis 1.", {"softmax": "all"}),
                Mistake(
                    "overflow",
                    "exp(1000) is infinite. Subtract the largest score of a text first: the softmax stays the same.",
                    {"overflow": True, "empty": "nan"},
                ),
                Mistake(
                    "overflow, though a text of padding is 0",
                    "exp(1000) is infinite, and exp(-1000) is 0. Subtract the largest score of a text first.",
                    {"overflow": True},
                ),
                Mistake(
                    "NaN for a text of padding",
                    "The softmax of nothing is 0 / 0. The result is to be 0.",
                    {"empty": "nan"},
                ),
                Mistake(
                    "the mean of padding for a text of padding",
                    "With one large negative score for all positions the softmax becomes uniform. The result is 0.",
                    {"empty": "uniform"},
                ),
                Mistake(
                    "a text of padding is pooled by its own scores",
                    "A large number subtracted from all scores of a text changes nothing in their softmax, so padding "
                    "is pooled. The result is to be 0.",
                    {"empty": "own"},
                ),
                Mistake("no softmax", "The scores are no weights yet: take their softmax.", {"weights_of": "scores"}),
                Mistake(
                    "scores divided by their sum",
                    "Scores may be negative, so this is no mean: take their softmax.",
                    {"weights_of": "normalized"},
                ),
                Mistake(
                    "only the best token",
                    "You take the token with the largest score. A softmax gives something to each.",
                    {"weights_of": "largest"},
                ),
                Mistake("equal weights", "The scores make no difference: that is mean_pool.", {"weights_of": "equal"}),
            ),
        ),
        Part(
            "corrupt",
            corrupt,
            _corrupt_cases,
            (
                Mistake(
                    "the random token overwrites the mask",
                    "Below 0.8 is below 0.9 as well, so the second step replaces what the first one did.",
                    {"kinds": "rrk"},
                ),
                Mistake(
                    "all tokens are corrupted",
                    "Tokens that are not chosen stay as they are: is_chosen makes no difference in yours.",
                    {"chosen": "all"},
                ),
                Mistake(
                    "the others are corrupted", "You corrupt the tokens that are not chosen.", {"chosen": "inverted"}
                ),
                Mistake(
                    "the others are masked",
                    "Tokens that are not chosen stay as they are: the model must read them.",
                    {"chosen": "others_hidden"},
                ),
                Mistake(
                    "every chosen token becomes the mask",
                    "Then a model never needs to look at a token that is there. 10 % become random, and 10 % stay.",
                    {"kinds": "mmm"},
                ),
                Mistake(
                    "random and kept are swapped",
                    "From 0.8 to 0.9 the random token, from 0.9 on the token itself.",
                    {"kinds": "mkr"},
                ),
                Mistake(
                    "no random tokens",
                    "From 0.8 to 0.9 the random token takes the place; 0.1 is the width, not the border.",
                    {"kinds": "mkk"},
                ),
                Mistake("no token stays", "From 0.9 on the token itself stays.", {"kinds": "mrr"}),
                Mistake(
                    "80 % random, 10 % masked",
                    "The mask is for the large share, below 0.8, and the random token for the small one.",
                    {"kinds": "rmk"},
                ),
                Mistake("80 % stay", "Below 0.8 it is the mask that comes in.", {"kinds": "krm"}),
                Mistake(
                    "random tokens below 0.1",
                    "The shares lie side by side on the line from 0 to 1: the mask up to 0.8, then the random token up "
                    "to 0.9. Yours overlap.",
                    {"shares": (0.1, 0.9), "kinds": "rmk"},
                ),
                Mistake("the mask below 0.9", "The borders are 0.8 and 0.9, not 0.9 and 1.", {"shares": (0.9, 1.0)}),
                Mistake(
                    "random up to the end of 20 %",
                    "The random token has 10 %: from 0.8 to 0.9.",
                    {"shares": (0.7, 0.9)},
                ),
                Mistake("the border belongs to the left", "Below 0.8, not at it: compare with <.", {"border": "at"}),
                Mistake(
                    "0 in place of the mask", "Hidden tokens become mask_id, which is an argument.", {"kinds": "0rk"}
                ),
            ),
        ),
        Part(
            "masked_lm_loss",
            masked_lm_loss,
            _loss_cases,
            (
                Mistake(
                    "softmax over the positions of the text",
                    "The probabilities of a position sum to 1 over the vocabulary, which is the last axis.",
                    {"axis": 1},
                ),
                Mistake(
                    "one maximum for all logits",
                    "A position whose logits are all far below the largest of the batch gets log 0. Each has its own.",
                    {"overflow": "global"},
                ),
                Mistake(
                    "1e-9 added to the probability",
                    "It hides the infinity, but the loss cannot rise above 20.7 any more. Subtract log(sum(exp)).",
                    {"loss": "added"},
                ),
                Mistake(
                    "the softmax is taken twice",
                    "What goes into the logarithm went through a softmax twice.",
                    {"loss": "twice"},
                ),
                Mistake(
                    "divided by one position too many",
                    "Divide by the number of chosen positions; only where it is 0, the loss is 0.",
                    {"mean": "plus_one"},
                ),
                Mistake(
                    "the mean over all positions",
                    "All positions count in yours. Tokens that were not chosen can be read off, so they teach nothing.",
                    {"mean": "all_positions"},
                ),
                Mistake("the loss of the others", "You count the positions that were not chosen.", {"mean": "others"}),
                Mistake("a sum", "Divide by the number of chosen positions.", {"mean": "sum"}),
                Mistake(
                    "divided by all positions",
                    "The sum is over chosen positions, so divide by their number, not by B T.",
                    {"mean": "everything"},
                ),
                Mistake(
                    "divided by the texts",
                    "Texts have several chosen positions, or none: divide by the number of those.",
                    {"mean": "batch"},
                ),
                Mistake(
                    "a mean of means",
                    "You average within each text, then over texts. All chosen positions count alike, in one mean.",
                    {"mean": "texts"},
                ),
                Mistake(
                    "divided by V as well",
                    "A mean over an array [B, T, V] of one-hot products divides by V, too.",
                    {"mean": "vocabulary"},
                ),
                Mistake(
                    "shifted, as in a decoder",
                    "The target of position t is the token at t. Predicting the next one is what a decoder does.",
                    {"shift": 1},
                ),
                Mistake(
                    "targets shifted, the choice not",
                    "The target of position t is the token at t: nothing is shifted in an encoder.",
                    {"shift": 2},
                ),
                Mistake(
                    "the logit alone",
                    "A logit is no log-probability: subtract the logarithm of the sum of exponentials.",
                    {"loss": "logit"},
                ),
                Mistake(
                    "a probability without its logarithm",
                    "You average probabilities. The cross-entropy is minus their logarithm.",
                    {"loss": "probability"},
                ),
                Mistake("bits", "Nats are asked for: the natural logarithm.", {"loss": "bits"}),
                Mistake("the sign", "A cross-entropy is never below 0: a minus is missing.", {"loss": "sign"}),
                Mistake(
                    "the share of errors", "That counts wrong guesses. A loss must have a slope.", {"loss": "accuracy"}
                ),
                Mistake(
                    "overflow",
                    "exp(1000) is infinite. Subtract the largest logit of each position first.",
                    {"overflow": "both"},
                ),
                Mistake(
                    "the logarithm of 0",
                    "exp(-1000) is 0, and its logarithm minus infinity. Work with logarithms from the start: the logit "
                    "minus the logarithm of the sum.",
                    {"overflow": "below"},
                ),
                Mistake(
                    "NaN where nothing is chosen", "0 / 0 is NaN. With nothing chosen the loss is 0.", {"empty": "nan"}
                ),
            ),
        ),
    ),
    (
        "In every function ask: does anything change if I write other numbers at the padding? Nothing may. "
        "And what comes out for a text that is all padding?",
        "is_token[:, :, None] has the shape [B, T, 1] and fits x [B, T, D]. For a mean multiply by it and divide by "
        "its sum; for a maximum or a softmax put minus infinity where it is False, and look after texts of "
        "padding apart. "
        "np.where inside np.where gives three choices.",
        "masked_lm_loss: shifted = logits - max over the last axis; log_probs = shifted - log(sum(exp(shifted))); "
        "np.take_along_axis(log_probs, targets[:, :, None], axis=-1) picks the targets; multiply by -is_chosen, "
        "sum, and divide by max(number chosen, 1).",
    ),
)
