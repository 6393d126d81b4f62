"""Known mistakes of exercise 10: loss, learning rate, clipping and AdamW, by wrong twins."""

import numpy as np

from course.grading import Exercise, Mistake, Part

EPSILONS = (1e-7, 1e-8, 1e-9, 1e-10, 1e-12)  # that people add to a probability


def next_token_loss(
    logits,
    tokens,
    is_token,
    *,
    shift="next",
    mask="targets",
    divide="targets",
    over="all",
    axis="tokens",
    stable=True,
    log="nats",
    sign=-1,
    empty=0.0,
    twice=False,
    normalizer="log",
):
    """Right twin; each switch makes one mistake. None where a mistake makes no sense."""
    logits, tokens, is_token = np.asarray(logits, np.float64), np.asarray(tokens), np.asarray(is_token)
    if shift == "none":
        targets, is_target, before = tokens, is_token, is_token
    elif shift == "back":
        targets, is_target, before, logits = tokens[:, :-1], is_token[:, :-1], is_token[:, 1:], logits[:, 1:]
    elif shift == "two":
        if tokens.shape[1] < 3:
            return None
        targets, is_target, before, logits = tokens[:, 2:], is_token[:, 2:], is_token[:, :-2], logits[:, :-2]
    elif shift == "around":
        targets, is_target, before = np.roll(tokens, -1, axis=1), np.roll(is_token, -1, axis=1), is_token
    elif shift == "around, mask stays":
        targets, is_target, before = np.roll(tokens, -1, axis=1), is_token, is_token
    else:
        targets, is_target, before, logits = tokens[:, 1:], is_token[:, 1:], is_token[:, :-1], logits[:, :-1]
    if mask == "inputs":
        is_target = before
    elif mask == "both":
        is_target = is_target & before
    elif mask == "inverted":
        is_target = ~is_target
    elif mask == "id 0":
        is_target = is_target & (targets != 0)
    elif mask == "up to count":
        is_target = np.arange(targets.shape[1]) < is_token.sum(axis=1, keepdims=True) - 1
    elif mask == "none":
        is_target = np.ones_like(is_target)
    axis = {"tokens": -1, "time": 1, "rows": 0}[axis]

    def softmax(x):
        e = np.exp(x - x.max(axis=axis, keepdims=True) if stable else x)
        return e / e.sum(axis=axis, keepdims=True)

    if stable and log in ("nats", "bits", "ten"):
        peak = logits.max() if stable == "global" else logits.max(axis=axis, keepdims=True)
        log_sum = (np.log2 if normalizer == "log2" else np.log)(np.exp(logits - peak).sum(axis=axis, keepdims=True))
        log_probs = logits - peak - (0 if normalizer == "largest" else log_sum)
        if twice:
            log_probs = np.exp(log_probs)
            log_probs = log_probs - np.log(np.exp(log_probs).sum(axis=axis, keepdims=True))
    else:
        probs = softmax(logits)
        log_probs = {"none": probs, "nothing": logits}.get(log if isinstance(log, str) else "", np.log(probs))
    if isinstance(log, tuple):
        kind, epsilon = log
        log_probs = np.log(probs + epsilon if kind == "add" else np.maximum(probs, epsilon))
    log_probs = log_probs / {"bits": np.log(2), "ten": np.log(10)}.get(log, 1.0)
    nats = sign * np.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    counted = np.where(is_target | (mask == "none in the sum"), nats, 0.0)
    if over == "rows":
        per_row = counted.sum(axis=1) / np.maximum(is_target.sum(axis=1), 1)
        return per_row.mean()
    if over == "batch":
        return counted.sum() / len(tokens)
    if over == "sum":
        return counted.sum()
    if over == "each":
        return counted
    if over == "perplexity":
        return np.exp(counted.sum() / max(is_target.sum(), 1))
    weight = {
        "targets": is_target.sum(),
        "all": is_target.size,
        "tokens": is_token.sum(),
        "plus one": is_target.sum() + 1,
    }[divide]
    if weight == 0:
        return empty
    return counted.sum() / weight


def loss_cases():
    """From one target that can be checked by hand to batches with padding and large logits."""
    yes = np.ones((1, 2), bool)
    yield "one target", (np.array([[[0.0, 0.0], [5.0, 1.0]]]), np.array([[0, 1]]), yes)
    yield "two targets", (np.log([[[1.0, 3.0], [4.0, 1.0], [1.0, 9.0]]]), np.array([[1, 1, 0]]), np.ones((1, 3), bool))
    random = np.random.default_rng(0)
    B, T, V = 3, 7, 5
    tokens = random.integers(0, V, (B, T))
    logits = random.normal(size=(B, T, V))
    yield "no padding", (logits, tokens, np.ones((B, T), bool))
    is_token = np.arange(T) < np.array([[7], [4], [2]])
    yield "padding at the end", (random.normal(size=(B, T, V)), tokens, is_token)
    yield "padding at the start", (random.normal(size=(B, T, V)), tokens, is_token[:, ::-1].copy())
    is_token = random.random((B, T)) < 0.6
    yield "padding anywhere", (random.normal(size=(B, T, V)), random.integers(0, V, (B, T)), is_token)
    near = np.array([[[0.0, x], [0.0, 0.0]] for x in (-16, -18, -20, -23, -27)])
    yield "probabilities near 0", (near, np.ones((5, 2), int), np.ones((5, 2), bool))
    yield "large logits", (1e4 * random.normal(size=(B, T, V)), tokens, np.ones((B, T), bool))
    yield (
        "a row of padding",
        (random.normal(size=(B, T, V)), tokens, np.array([True, False, True])[:, None] & np.ones(T, bool)),
    )
    yield "padding only", (random.normal(size=(B, T, V)), tokens, np.zeros((B, T), bool))
    yield "only first tokens", (random.normal(size=(B, T, V)), tokens, np.arange(T) < np.ones((B, 1)))


LOSS = Part(
    "next_token_loss",
    next_token_loss,
    loss_cases,
    (
        Mistake(
            "padding left out of the number only",
            "The sum includes the loss at padding: multiply by the mask before you add up.",
            {"mask": "none in the sum"},
        ),
        Mistake(
            "token 0 taken for padding",
            "An id of 0 is a token like the others. is_token says what padding is.",
            {"mask": "id 0"},
        ),
        Mistake(
            "padding taken to be on the right",
            "Padding may be at the start as well, or in between: use is_token itself, not the number of tokens.",
            {"mask": "up to count"},
        ),
        Mistake(
            "divided by one target too many",
            "Nothing is added to the number of targets; only where it is 0, the loss is 0.",
            {"divide": "plus one"},
        ),
        Mistake(
            "one largest logit for the whole batch",
            "Where all logits are far below the largest of the batch, log 0 is left: take each position's own largest.",
            {"stable": "global"},
        ),
        Mistake(
            "a logarithm to base 2 of the sum", "exp and log2 do not belong together: np.log.", {"normalizer": "log2"}
        ),
        Mistake(
            "the largest logit in place of the sum",
            "The largest logit was taken away, but log(sum(exp)) of what is left is missing.",
            {"normalizer": "largest"},
        ),
        Mistake(
            "no shift: each token is predicted from itself",
            "The logits at t are for the token at t + 1. Compared with the token at t, a model only has to copy its "
            "input, and its loss falls to 0 while it learns nothing.",
            {"shift": "none"},
        ),
        Mistake(
            "shifted the wrong way",
            "Token t is compared with the logits at t + 1, which have read it. Leave out the last logits and the first "
            "token, not the other way round.",
            {"shift": "back"},
        ),
        Mistake(
            "shifted by two",
            "Two tokens are lost. A batch of T + 1 tokens is often cut into inputs and targets beforehand; here the "
            "shift is made once, by you.",
            {"shift": "two"},
        ),
        Mistake(
            "the last position predicts the first token",
            "np.roll brings the first token round to the end, where the last logits are asked for it. Slice instead of "
            "rolling.",
            {"shift": "around"},
        ),
        Mistake(
            "rolled, and the mask was not",
            "np.roll brings the first token round to the end, and is_token must describe the targets as well. Slice "
            "tokens and is_token alike.",
            {"shift": "around, mask stays"},
        ),
        Mistake(
            "padding counted",
            "Positions whose target is padding are in your mean. A model is then trained to predict padding, which is "
            "easy, and the loss looks better than it is.",
            {"mask": "none"},
        ),
        Mistake(
            "mask of the inputs, not of the targets",
            "Your mask says which inputs are tokens. What counts is whether the target is one: shift is_token as the "
            "tokens are shifted.",
            {"mask": "inputs"},
        ),
        Mistake(
            "a target counts only after a token",
            "You ask for a token on both sides of the shift. Only the target decides: the first token after padding is "
            "a target, too.",
            {"mask": "both"},
        ),
        Mistake("the perplexity", "The loss itself is asked for, not exp of it.", {"over": "perplexity"}),
        Mistake(
            "mask upside down",
            "is_token is True for what counts. You count the padding and nothing else.",
            {"mask": "inverted"},
        ),
        Mistake(
            "divided by all positions",
            "The sum leaves padding out, but the number below it does not. The more padding, the smaller your loss.",
            {"divide": "all"},
        ),
        Mistake(
            "divided by the number of tokens",
            "The first token of a row is a token and no target. Count the targets.",
            {"divide": "tokens"},
        ),
        Mistake(
            "a mean of the means of rows",
            "A row with two targets weighs as much as a row with a hundred. Sum over everything, then divide once.",
            {"over": "rows"},
        ),
        Mistake(
            "divided by the number of rows",
            "This is the loss of a text, not of a token: it grows with the length. Divide by the number of targets.",
            {"over": "batch"},
        ),
        Mistake("a sum, not a mean", "Divide by the number of targets.", {"over": "sum"}),
        Mistake(
            "one number for each position",
            "The loss is a single number: sum over the targets of the batch, then divide.",
            {"over": "each"},
        ),
        Mistake(
            "softmax over the positions",
            "The probabilities must sum to 1 over the vocabulary, the last axis, at every position.",
            {"axis": "time"},
        ),
        Mistake(
            "softmax over the rows of the batch",
            "The probabilities must sum to 1 over the vocabulary, which is the last axis; axis 0 is the batch.",
            {"axis": "rows"},
        ),
        Mistake(
            "exp overflows",
            "exp(1000) is infinite. Take the largest logit away first: softmax does not change.",
            {"stable": False},
        ),
        Mistake(
            "the logarithm of a probability that became 0",
            "exp of a very small logit is 0, and log 0 is infinite. Subtract log(sum(exp)) from the logits: no "
            "probability is needed.",
            {"log": "of probabilities"},
        ),
        *(
            Mistake(
                f"{epsilon:g} added to the probability",
                f"It hides the infinity, but the loss cannot rise above {-np.log(epsilon):.1f} any more, and its "
                "gradient is lost there. Subtract log(sum(exp)) from the logits: then nothing has to be added.",
                {"log": ("add", epsilon)},
            )
            for epsilon in EPSILONS
        ),
        *(
            Mistake(
                f"probabilities clipped at {epsilon:g}",
                f"It hides the infinity, but at {-np.log(epsilon):.1f} the loss is flat and has no gradient. Subtract "
                "log(sum(exp)) from the logits: then nothing has to be clipped.",
                {"log": ("clip", epsilon)},
            )
            for epsilon in EPSILONS
        ),
        Mistake(
            "no logarithm", "It is minus the probability so far. The loss is minus its logarithm.", {"log": "none"}
        ),
        Mistake(
            "logits taken for log-probabilities",
            "Logits are not normalized: exp of them need not sum to 1. Subtract log(sum(exp(logits))).",
            {"log": "nothing"},
        ),
        Mistake("bits, not nats", "np.log2 gives bits. Nats are the natural logarithm.", {"log": "bits"}),
        Mistake("logarithm to base 10", "np.log10 is not the natural logarithm.", {"log": "ten"}),
        Mistake(
            "softmax taken twice",
            "What goes into the logarithm went through a softmax twice: the loss can then never come near 0.",
            {"twice": True},
        ),
        Mistake("the sign is missing", "Log-probabilities are below 0; the loss is minus their mean.", {"sign": 1}),
        Mistake(
            "0 / 0 without any target",
            "A batch of padding has no target: 0 / 0 is NaN, and one NaN in the loss ruins all parameters.",
            {"empty": np.nan},
        ),
    ),
)


def learning_rate(
    step,
    peak,
    warmup,
    total,
    final,
    *,
    first=0,
    rises=True,
    span="after warmup",
    begin="warmup",
    floor="between",
    half=0.5,
    wave=1.0,
    shape="cosine",
    after="stays",
    boundary="peak",
    whole=False,
    zero="peak",
):
    """Right twin; each switch makes one mistake."""
    step = step + first
    if rises and warmup and step < warmup:
        if whole:
            return peak * (step // warmup)
        if rises == "at once":
            return peak
        if rises == "cosine":
            return peak * 0.5 * (1 - np.cos(np.pi * step / warmup))
        if rises == "squared":
            return peak * (step / warmup) ** 2
        if rises == "early":
            return peak * (step + 1) / warmup
        if rises == "short":
            return peak * step / (warmup - 1) if warmup > 1 else peak
        if rises == "from final":
            return final + (peak - final) * step / warmup
        return peak * step / warmup
    if zero != "peak" and warmup == 0 and step == 0:
        return np.nan if zero == "nan" else 0.0
    if after == "jumps" and step >= total:
        return final
    done = step if begin == "start" else step - warmup
    progress = (
        done
        / {"after warmup": total - warmup, "all": total, "plus": total + warmup, "minus one": total - warmup - 1}[span]
    )
    if after == "stays":
        progress = min(progress, 1.0)
    elif after == "zero" and progress > 1:
        return 0.0
    if whole is True:
        progress = progress // 1
    if shape == "constant":
        return peak
    if shape == "root":
        return peak if step == 0 else peak * min(1.0, np.sqrt(max(warmup, 1) / step))
    if shape == "linear":
        fall = 1 - progress
    elif shape == "exponential":
        if final <= 0:
            return None
        return peak * (final / peak) ** progress
    elif shape == "degrees":
        fall = 0.5 * (1 + np.cos(np.deg2rad(np.pi * progress)))
    elif shape == "sine":
        fall = half * (1 + np.sin(np.pi * progress))
    elif shape == "rising":
        fall = 0.5 * (1 - np.cos(np.pi * progress))
    elif shape == "quarter":
        fall = np.cos(0.5 * np.pi * progress)
    elif shape == "bare":
        fall = np.cos(np.pi * progress)
    else:
        fall = half * (1 + np.cos(wave * np.pi * progress))
    if floor == "none":
        return peak * fall
    if floor == "added":
        return final + peak * fall
    if floor == "max":
        return max(peak * fall, final)
    if floor == "share":
        return peak * (final + (1 - final) * fall)
    return final + (peak - final) * fall


def rate_cases():
    """Steps of the worked example, then other settings, with the corners of the curve."""
    for step in (5, 10, 20, 30, 0, 9, 11, 13, 25, 29, 31, 45):
        yield f"step {step} of the example", (step, 1.0, 10, 30, 0.2)
    for step in (0, 1, 7, 8, 40, 97, 100, 1000):
        yield f"step {step}, no warmup", (step, 2.0, 0, 97, 0.5)
    for step in (0, 1, 2, 3, 4, 11, 12):
        yield f"step {step}, warmup of 3", (step, 6.0, 3, 11, 0.0)
    for step in (0, 1, 2, 50):
        yield f"step {step}, warmup of 1", (step, 5.0, 1, 50, 5.0)


RATE = Part(
    "learning_rate",
    learning_rate,
    rate_cases,
    (
        Mistake(
            "divided by the whole run, with a jump at the end",
            "The half wave has `total - warmup` steps. Yours is not at its end when step `total` comes, and jumps.",
            {"span": "all", "after": "jumps"},
        ),
        Mistake(
            "0 at step 0 without a warmup",
            "With warmup 0 the first step has the peak: there is no step below 0.",
            {"zero": "zero"},
        ),
        Mistake(
            "whole numbers in the warmup", "step // warmup is 0 during all of the warmup. Take /.", {"whole": "warmup"}
        ),
        Mistake(
            "the peak from the start",
            "During the warmup your rate is the peak already. It must rise from 0.",
            {"rises": "at once"},
        ),
        Mistake(
            "a wave up as well", "The warmup is a straight line; only the way down is a wave.", {"rises": "cosine"}
        ),
        Mistake("cosine of 180", "np.cos takes radians: half a wave is pi, not 180.", {"wave": 180 / np.pi}),
        Mistake(
            "the wave goes up", "(1 - cos) / 2 goes from 0 to 1, and (1 + cos) / 2 from 1 to 0.", {"shape": "rising"}
        ),
        Mistake(
            "counted from 1",
            "Step 0 has the learning rate 0, and step `warmup` has the peak. You are one step ahead. (Some programs "
            "do that on purpose, since a step with 0 is wasted.)",
            {"first": 1},
        ),
        Mistake(
            "counted one step late", "Your curve is one step behind: step `warmup` must have the peak.", {"first": -1}
        ),
        Mistake(
            "no warmup",
            "The first steps have the whole cosine. Below `warmup` the rate rises in a straight line from 0.",
            {"rises": False},
        ),
        Mistake(
            "the warmup is one step ahead",
            "Step 0 has the learning rate 0. Yours begins with one share of the peak, and has the peak twice.",
            {"rises": "early"},
        ),
        Mistake(
            "the warmup is one step short",
            "The peak comes at step `warmup`, which is `warmup` steps after step 0.",
            {"rises": "short"},
        ),
        Mistake("no decay", "After the warmup the rate stays at the peak. It should fall.", {"shape": "constant"}),
        Mistake(
            "falls with the root of the step",
            "That is the schedule of Vaswani et al. 2017. Here the fall is half a wave of a cosine.",
            {"shape": "root"},
        ),
        Mistake(
            "the end comes a step early",
            "The final rate comes at step `total`, not at the step before.",
            {"span": "minus one"},
        ),
        Mistake("the warmup is a square", "It is a straight line: peak * step / warmup.", {"rises": "squared"}),
        Mistake(
            "the warmup begins at the final rate",
            "It begins at 0. `final` is for the end of the run.",
            {"rises": "from final"},
        ),
        Mistake(
            "a whole division",
            "// drops the part behind the point, so the curve has steps. Divide with /.",
            {"whole": True},
        ),
        Mistake(
            "progress counts the warmup",
            "Your cosine began at step 0, so at the end of the warmup the rate jumps down from the peak. Progress is 0 "
            "at step `warmup`.",
            {"begin": "start", "span": "all"},
        ),
        Mistake(
            "divided by the whole run",
            "The cosine has total - warmup steps. Divided by `total` it does not reach the end.",
            {"span": "all"},
        ),
        Mistake(
            "the warmup is added to the run",
            "`total` counts the warmup, so the cosine has total - warmup steps, not total + warmup.",
            {"span": "plus"},
        ),
        Mistake(
            "progress begins with the run",
            "Take the warmup away from the step as well: progress is 0 at step `warmup`.",
            {"begin": "start"},
        ),
        Mistake("ends at 0", "The last step has `final`, not 0.", {"floor": "none"}),
        Mistake(
            "the final rate was added on top",
            "At the peak you have peak + final. The wave goes between `peak` and `final`, so its height is their "
            "difference.",
            {"floor": "added"},
        ),
        Mistake(
            "cut off at the final rate",
            "max(..., final) makes a corner where the curve meets the floor. The whole wave must fit between peak and "
            "final.",
            {"floor": "max"},
        ),
        Mistake(
            "the final rate taken for a share of the peak",
            "`final` is a learning rate here, not a fraction of the peak.",
            {"floor": "share"},
        ),
        Mistake("the half is missing", "1 + cos goes from 2 to 0. Take half of it.", {"half": 1.0}),
        Mistake(
            "cosine from 1 to -1",
            "cos(pi progress) goes below 0, and so does your learning rate. Shift it and halve it: (1 + cos) / 2.",
            {"shape": "bare"},
        ),
        Mistake("a whole wave", "cos(2 pi progress) is back at the peak at the end. Half a wave: pi.", {"wave": 2.0}),
        Mistake(
            "pi is missing",
            "cos takes radians. From 0 to 1 it has hardly begun to fall; half a wave is pi.",
            {"wave": 1 / np.pi},
        ),
        Mistake(
            "a quarter of a wave",
            "cos(pi/2 progress) falls steepest at the end. Half a wave is flat at both ends.",
            {"shape": "quarter"},
        ),
        Mistake("a sine", "sin begins in the middle of the wave; cos begins at its top.", {"shape": "sine"}),
        Mistake("a straight line down", "It should fall as half a wave of a cosine.", {"shape": "linear"}),
        Mistake(
            "an exponential decay",
            "It falls by the same share at each step. It should fall as half a wave of a cosine.",
            {"shape": "exponential"},
        ),
        Mistake(
            "degrees instead of radians",
            "np.cos takes radians, and pi radians are half a turn: no conversion is needed.",
            {"shape": "degrees"},
        ),
        Mistake(
            "rises again after the end",
            "After step `total` the wave goes up again. Progress must not go above 1.",
            {"after": "rises"},
        ),
        Mistake("0 after the end", "After step `total` the rate stays at `final`.", {"after": "zero"}),
        Mistake("0 / 0 without warmup", "With warmup = 0 the first step has the peak.", {"zero": "nan"}),
    ),
)


def clip_by_global_norm(grads, max_norm, *, norm="global", factor="down", power=1, guard=True):
    """Right twin; each switch makes one mistake."""
    grads = {name: np.asarray(grad, np.float64) for name, grad in grads.items()}
    if norm == "values":
        return {name: np.clip(grad, -max_norm, max_norm) for name, grad in grads.items()}
    total = sum(np.sum(grad**2) for grad in grads.values())
    size = sum(grad.size for grad in grads.values())
    lengths = {
        "global": np.sqrt(total),
        "sum of norms": sum(np.sqrt(np.sum(grad**2)) for grad in grads.values()),
        "largest norm": max(np.sqrt(np.sum(grad**2)) for grad in grads.values()),
        "mean of norms": np.mean([np.sqrt(np.sum(grad**2)) for grad in grads.values()]),
        "squared": total,
        "mean": np.sqrt(total / size),
        "absolute": sum(np.sum(np.abs(grad)) for grad in grads.values()),
        "maximum": max(np.max(np.abs(grad)) for grad in grads.values()),
        "sums": np.sqrt(sum(np.sum(grad) ** 2 for grad in grads.values())),
        "signed": abs(sum(np.sum(grad) for grad in grads.values())),
        "first": np.sqrt(np.sum(next(iter(grads.values())) ** 2)),
    }

    def scale(length):
        if factor == "always":
            return max_norm / length if length or guard is False else 1.0
        if factor == "unit":
            return 1 / length if length > max_norm else 1.0
        if factor == "inverted":
            return length / max_norm if length > max_norm else 1.0
        if factor == "shrinks short":
            return min(1.0, length / max_norm)
        if factor == "up":
            return max_norm / length if 0 < length < max_norm else 1.0
        if factor == "root":
            return np.sqrt(max_norm / length) if length > max_norm else 1.0
        if factor == "none":
            return 1.0
        if factor == "zero":
            return 0.0 if length > max_norm else 1.0
        if factor == "nan":
            return min(1.0, max_norm / length) if length else np.nan
        return max_norm / length if length > max_norm else 1.0

    if norm == "per tensor":
        return {name: grad * scale(np.sqrt(np.sum(grad**2))) for name, grad in grads.items()}
    if norm == "per row":
        return {
            name: grad * np.vectorize(scale)(np.sqrt(np.sum(grad**2, axis=-1, keepdims=True)))
            for name, grad in grads.items()
        }
    return {name: grad * scale(lengths[norm]) for name, grad in grads.items()}


def clip_cases():
    """Two numbers by hand, gradients below, at and above the limit, zeros, and several shapes."""
    yield "3 and 4", ({"a": np.array([3.0]), "b": np.array([4.0])}, 1.0)
    yield "3 and 4, limit 2", ({"a": np.array([3.0]), "b": np.array([-4.0])}, 2.0)
    yield "short enough", ({"a": np.array([0.3]), "b": np.array([0.4])}, 1.0)
    yield "each is short, all are not", ({"a": np.array([0.8]), "b": np.array([-0.9])}, 1.0)
    random = np.random.default_rng(1)
    grads = {"kernel": random.normal(size=(3, 5)), "bias": random.normal(size=5), "scale": np.array(-2.0)}
    yield "kernel, bias and a number", (grads, 0.7)
    yield "a limit of 3.5", ({name: 10 * grad for name, grad in grads.items()}, 3.5)
    yield "a limit that nothing reaches", (grads, 1000.0)
    yield "all are 0", ({"a": np.zeros(3), "b": np.zeros((2, 2))}, 1.0)
    yield "a limit of 2 between", ({"a": np.full(4, 0.5), "b": np.full(2, -1.0)}, 2.0)


CLIP = Part(
    "clip_by_global_norm",
    clip_by_global_norm,
    clip_cases,
    (
        Mistake(
            "sums are squared",
            "Square each number, then add: numbers of different signs must not cancel.",
            {"norm": "sums"},
        ),
        Mistake(
            "clipped tensor by tensor",
            "Each array has its own norm and its own factor, so the direction of the whole gradient changes. Take one "
            "norm over all arrays, and one factor.",
            {"norm": "per tensor"},
        ),
        Mistake(
            "clipped row by row",
            "Each row of a kernel has its own factor. Take one norm over all numbers of all arrays.",
            {"norm": "per row"},
        ),
        Mistake(
            "clipped number by number",
            "np.clip limits each number and changes the direction. Here all are multiplied by one factor.",
            {"norm": "values"},
        ),
        Mistake(
            "norms added up",
            "Lengths of arrays do not add up to the length of all: 3 and 4 make 5, not 7. Add the squares.",
            {"norm": "sum of norms"},
        ),
        Mistake("the largest of the norms", "Add the squares of all arrays.", {"norm": "largest norm"}),
        Mistake("the mean of the norms", "Add the squares of all arrays; no mean.", {"norm": "mean of norms"}),
        Mistake("the root is missing", "The norm is the root of the sum of squares.", {"norm": "squared"}),
        Mistake(
            "a mean of squares",
            "np.mean of the squares makes the norm smaller, the more parameters there are. Take their sum.",
            {"norm": "mean"},
        ),
        Mistake(
            "sum of absolute values", "That is another norm. Add the squares, then the root.", {"norm": "absolute"}
        ),
        Mistake("largest absolute value", "The norm is the root of the sum of all squares.", {"norm": "maximum"}),
        Mistake(
            "numbers added without squares",
            "Numbers of opposite sign cancel. Square them before the sum.",
            {"norm": "signed"},
        ),
        Mistake("the norm of the first array", "The sum goes over all arrays.", {"norm": "first"}),
        Mistake(
            "short gradients are made longer",
            "Below the limit nothing changes: clipping is no normalization. Near the end of training gradients are "
            "small for good reasons.",
            {"factor": "always"},
        ),
        Mistake(
            "made longer, and 0 / 0",
            "Below the limit nothing changes; and gradients that are all 0 have the norm 0, by which you divide.",
            {"factor": "always", "guard": False},
        ),
        Mistake(
            "short gradients are made shorter",
            "norm / max_norm is below 1 for short gradients, which should stay as they are. The factor is upside down.",
            {"factor": "shrinks short"},
        ),
        Mistake("clipped to length 1", "The new norm is max_norm, not 1.", {"factor": "unit"}),
        Mistake("the factor is upside down", "max_norm / norm makes it shorter.", {"factor": "inverted"}),
        Mistake(
            "the comparison is the wrong way round",
            "You lengthen the short ones and leave the long ones. It is the norm above max_norm that is clipped.",
            {"factor": "up"},
        ),
        Mistake("root of the factor", "The factor is max_norm / norm itself.", {"factor": "root"}),
        Mistake("nothing is clipped", "Gradients above the limit come back unchanged.", {"factor": "none"}),
        Mistake(
            "long gradients are dropped",
            "A gradient that is too long is shortened and keeps its direction; it is not thrown away.",
            {"factor": "zero"},
        ),
        Mistake(
            "0 / 0 when all gradients are 0",
            "max_norm / 0 is infinite, and 0 times infinity is NaN. Divide only if the norm is above the limit.",
            {"factor": "nan"},
        ),
    ),
)


def adamw_step(
    param,
    grad,
    m,
    v,
    step,
    lr,
    b1,
    b2,
    epsilon,
    weight_decay,
    *,
    correct="both",
    counted=0,
    swap=False,
    outside=True,
    decay="decoupled",
    square=True,
    gain="one minus",
    root=True,
    sign=-1,
    uses="new",
    keeps="plain",
    reach="old",
    mixed="no",
    fixed=None,
):
    """Right twin; each switch makes one mistake."""
    param, grad, m, v = (np.asarray(x, np.float64) for x in (param, grad, m, v))
    if swap:
        b1, b2 = b2, b1
    if decay == "in the gradient":
        grad = grad + weight_decay * param
    old_m, old_v = m, v
    plain = b1, b2
    if mixed == "moments":
        b1, b2 = b2, b1
    if mixed == "b1 for v":
        b2 = b1
    gain_1, gain_2 = (1.0, 1.0) if gain == "one" else (1 - b1, 1 - b2)
    if gain == "one for m":
        gain_1 = 1.0
    squared = grad**2 if square else np.abs(grad)
    if gain == "swapped":
        m = (1 - b1) * m + b1 * grad
        v = (1 - b2) * v + b2 * grad**2
    else:
        m = b1 * m + gain_1 * grad
        v = b2 * v + (1 - b2 if gain == "one for m" else gain_2) * (grad if square is None else squared)
    b1, b2 = plain
    if uses == "v of m":
        v = b2 * old_v + gain_2 * m**2
    step = step + counted
    power_1, power_2 = b1**step, b2**step
    if step == 0 and correct != "none":
        return None
    by_m, by_v = 1 - power_1, 1 - power_2
    if correct == "no power":
        by_m, by_v = 1 - b1, 1 - b2
    if correct == "times":
        by_m, by_v = 1 - b1 * step, 1 - b2 * step
    if correct == "b1":
        by_v = by_m
    if correct == "crossed":
        by_m, by_v = by_v, by_m
    m_hat = m / by_m if correct in ("both", "m", "no power", "crossed", "times", "b1") else m
    v_hat = v / by_v if correct in ("both", "v", "no power", "crossed", "times", "b1") else v
    if correct == "multiplied":
        m_hat, v_hat = m * by_m, v * by_v
    if uses == "old":
        m_hat, v_hat = old_m / by_m, old_v / by_v
    if uses == "old, as they are":
        m_hat, v_hat = old_m, old_v
    if fixed:
        epsilon = fixed
    if uses == "nesterov":
        m_hat = (b1 * m + gain_1 * grad) / by_m
    if uses == "gradient":
        m_hat = grad
    if not outside:
        size = np.sqrt(v_hat + epsilon)
    elif root:
        size = np.sqrt(v_hat) + epsilon
    else:
        size = v_hat + epsilon
    with np.errstate(all="ignore"):
        update = np.sign(m_hat) if uses == "sign" else m_hat / size
        if outside is None:
            update = m_hat / np.sqrt(v_hat) + epsilon
    if decay == "lr for the decay only":
        new = param + sign * (update + lr * weight_decay * param)
    elif decay == "without lr":
        new = param + sign * lr * update - weight_decay * param
    elif decay == "grows":
        new = param + sign * lr * (update - weight_decay * param)
    elif decay == "constant":
        new = param + sign * lr * (update + weight_decay)
    elif decay in ("none", "in the gradient"):
        new = param + sign * lr * update
    elif decay == "after":
        new = param + sign * lr * update
        new = new - lr * weight_decay * new
    elif decay == "adapted":
        new = param + sign * lr * (m_hat + weight_decay * param) / size
    elif decay == "sign":
        new = param + sign * lr * (update + weight_decay * np.sign(param))
    else:
        new = param + sign * lr * (update + weight_decay * param)
    if correct == "late epsilon":
        new = param * (1 - lr * weight_decay) + sign * lr * np.sqrt(by_v) / by_m * m / (np.sqrt(v) + epsilon)
    if reach == "update":
        new = new - param
    if keeps == "corrected":
        m, v = m_hat, v_hat
    if keeps == "old":
        m, v = old_m, old_v
    return (new, v, m) if keeps == "exchanged" else (new, m, v)


def adamw_cases():
    """The worked example, one number with each term apart, then arrays at several steps."""
    x = np.array
    yield "the example", (x([2.0]), x([0.5]), x([0.0]), x([0.0]), 1, 0.1, 0.9, 0.99, 0.0, 0.0)
    yield "the example with decay", (x([2.0]), x([0.5]), x([0.0]), x([0.0]), 1, 0.1, 0.9, 0.99, 0.0, 0.3)
    yield "the second step", (x([2.0]), x([-0.5]), x([0.05]), x([0.0025]), 2, 0.1, 0.9, 0.99, 0.0, 0.0)
    yield "a gradient of 0", (x([2.0, -1.0]), x([0.0, 0.0]), x([0.0, 0.0]), x([0.0, 0.0]), 1, 0.1, 0.9, 0.9, 0.1, 0.5)
    random = np.random.default_rng(2)
    for step, epsilon, shape in ((1, 0.25, (3,)), (2, 1e-8, (2, 3)), (7, 0.5, (5, 2)), (1000, 0.03, (4,))):
        param, grad, m = (random.normal(size=shape) for _ in range(3))
        v = random.random(shape) + 0.1
        yield f"step {step}", (param, 3 * grad, m, v, step, 0.3, 0.8, 0.95, epsilon, 0.2)
    yield "no momentum", (param, grad, m, v, 3, 0.5, 0.0, 0.9, 0.1, 0.1)


ADAMW = Part(
    "adamw_step",
    adamw_step,
    adamw_cases,
    (
        Mistake(
            "the update lacks the learning rate",
            "lr stands before the bracket: it multiplies the quotient and the decay.",
            {"decay": "lr for the decay only"},
        ),
        Mistake(
            "moments with b1 and b2 exchanged",
            "m decays with b1 and v with b2. Your corrections are right.",
            {"mixed": "moments"},
        ),
        Mistake("b1 for v", "v decays with b2: v = b2 v + (1 - b2) grad^2.", {"mixed": "b1 for v"}),
        Mistake("b1 in the correction of v", "v_hat = v / (1 - b2^step).", {"correct": "b1"}),
        Mistake("times in place of power", "b1 ** step, not b1 * step, which is soon above 1.", {"correct": "times"}),
        Mistake("epsilon is added to the quotient", "Brackets: m_hat / (sqrt(v_hat) + epsilon).", {"outside": None}),
        Mistake(
            "gradients are not squared", "v is the mean of the squares. A negative v has no root.", {"square": None}
        ),
        Mistake(
            "m adds the whole gradient",
            "m = b1 m + (1 - b1) grad: the second factor is missing.",
            {"gain": "one for m"},
        ),
        Mistake(
            "old m and v, as they came in",
            "The update takes the new m and v, and corrects them.",
            {"uses": "old, as they are"},
        ),
        Mistake(
            "the sign alone", "Dividing by |m_hat| leaves the sign. Divide by the root of v_hat.", {"uses": "sign"}
        ),
        Mistake("a fixed epsilon", "epsilon is an argument, and need not be 1e-8.", {"fixed": 1e-08}),
        Mistake("v comes before m", "Return param, m, v in this order.", {"keeps": "exchanged"}),
        Mistake(
            "no bias correction",
            "m and v begin at 0 and are too small at first. Divide by 1 - b1^step and 1 - b2^step.",
            {"correct": "none"},
        ),
        Mistake(
            "epsilon is added before the correction",
            "The short form lr * sqrt(1 - b2^step) / (1 - b1^step) has another epsilon. Correct v first, then take the "
            "root, then add epsilon.",
            {"correct": "late epsilon"},
        ),
        Mistake("only m is corrected", "v begins at 0 too, and is even slower.", {"correct": "m"}),
        Mistake("only v is corrected", "m begins at 0 as well, and needs its own correction.", {"correct": "v"}),
        Mistake(
            "the correction has no power",
            "1 - b1 is right for the first step alone. It is 1 - b1**step.",
            {"correct": "no power"},
        ),
        Mistake("corrections crossed", "m is corrected by b1, v by b2.", {"correct": "crossed"}),
        Mistake(
            "multiplied by the correction",
            "m is too small at first, so it is divided by a number below 1.",
            {"correct": "multiplied"},
        ),
        Mistake("steps counted from 0", "step is 1 for the first step; you took one away.", {"counted": -1}),
        Mistake("steps counted from 2", "step is 1 for the first step already.", {"counted": 1}),
        Mistake("b1 and b2 swapped", "b1 is for the mean m, b2 for the squares v.", {"swap": True}),
        Mistake(
            "epsilon inside the root",
            "The root is taken of v_hat alone, and epsilon is added to it. (RMSNorm and LayerNorm have it inside.)",
            {"outside": False},
        ),
        Mistake(
            "weight decay in the gradient",
            "That is Adam with L2: the decay passes through m and v and is divided by the root, so weights with large "
            "gradients hardly decay. AdamW adds it beside the update. It is what the W stands for.",
            {"decay": "in the gradient"},
        ),
        Mistake(
            "weight decay divided by the root",
            "Only m_hat is divided by the root of v_hat. The decay stands beside the fraction, not in it.",
            {"decay": "adapted"},
        ),
        Mistake(
            "weight decay without the learning rate",
            "The decay is inside the bracket that lr multiplies; so it warms up and cools down with it.",
            {"decay": "without lr"},
        ),
        Mistake("weight decay grows the weights", "Decay takes a share away from the weights.", {"decay": "grows"}),
        Mistake(
            "weight decay without the weights",
            "Each weight loses a share of itself: weight_decay * param.",
            {"decay": "constant"},
        ),
        Mistake(
            "weight decay by the sign",
            "Each weight loses a share of itself, not a fixed amount: that would be L1.",
            {"decay": "sign"},
        ),
        Mistake("no weight decay", "The term weight_decay * param is missing.", {"decay": "none"}),
        Mistake(
            "decays the weights after the update",
            "The param on the right is the old one. You decay the one that was just moved.",
            {"decay": "after"},
        ),
        Mistake("v is a mean of absolute values", "v is a mean of squares.", {"square": False}),
        Mistake(
            "1 - b is missing",
            "m is a mean: what is added has the weight 1 - b1. Without it, it grows tenfold.",
            {"gain": "one"},
        ),
        Mistake("the weights of old and new are swapped", "b1 is the weight of the old m.", {"gain": "swapped"}),
        Mistake("divided by v_hat, not by its root", "Divide by the root of v_hat: v has squares.", {"root": False}),
        Mistake("uphill", "The gradient points uphill; the update goes against it.", {"sign": 1}),
        Mistake("moments of the step before", "Update m and v first, then use the new ones.", {"uses": "old"}),
        Mistake(
            "the gradient in place of m", "Above the line stands m_hat: that is the momentum.", {"uses": "gradient"}
        ),
        Mistake("Nesterov's momentum", "m is mixed with the gradient once, not twice.", {"uses": "nesterov"}),
        Mistake("v is a mean of squares of m", "v has the squares of the gradient itself.", {"uses": "v of m"}),
        Mistake(
            "the corrected moments are kept",
            "m and v go on as they are. If the corrected ones are returned, they are corrected again at each step.",
            {"keeps": "corrected"},
        ),
        Mistake(
            "the old moments are returned", "Return the new m and v, or nothing is ever learned.", {"keeps": "old"}
        ),
        Mistake("the update is returned", "Return the new param, not how far it moved.", {"reach": "update"}),
    ),
)

EXERCISE = Exercise(
    "Exercise 10: the four functions of a training loop",
    (LOSS, RATE, CLIP, ADAMW),
    (
        "Do the worked example of each docstring by hand first, on paper. Then the smallest case: one row, two tokens.",
        "Loss: cut logits, tokens and mask to the same T - 1 positions before anything else. Rate: compute progress, a "
        "number from 0 to 1 after the warmup. Clipping: one number for the whole dict, one factor. AdamW: five lines, "
        "in the order of the docstring.",
        "Loss: logits[:, :-1], tokens[:, 1:], is_token[:, 1:]; log-softmax is x - max - log(sum(exp(x - max))); "
        "np.take_along_axis picks the targets. Rate: final + (peak - final) * (1 + cos(pi * progress)) / 2. Clipping: "
        "np.sqrt(sum(np.sum(g**2) for g in grads.values())). AdamW: never write into the arrays (m *= b1); make new "
        "ones.",
    ),
)
