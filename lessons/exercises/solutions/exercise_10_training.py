"""Exercise 10: the four functions of a training loop.

90 minutes, difficulty 3 of 5. NumPy only.

A training loop has four small functions at its heart: the loss with its shift, the learning rate of a step, the
clipping of the gradient, and the optimizer. Each is a few lines, and each has a classic mistake that still trains,
only worse: nothing crashes, and nobody notices. Write all four.

Check:  python -m lessons check 10      Hints:  python -m lessons hint 10
"""

import numpy as np


def next_token_loss(logits, tokens, is_token):
    """Mean cross-entropy of next-token prediction, in nats.

    The logits at position t are the model's prediction of the token at position t + 1. So the last logits predict
    nothing, and the first token is predicted by nothing. A target that is padding does not count, neither in the sum
    nor in the number that the sum is divided by. The mean is over all targets of the batch together.

    Args:
      logits: [B, T, V] float, maybe very large (1e4): softmax must not overflow.
      tokens: [B, T] int, from 0 to V - 1.
      is_token: [B, T] bool, False for padding.
    Returns:
      The mean of -log softmax(logits)[target] over the targets that are tokens; 0.0 if there are none.

    Example: B = 1, T = 2, V = 2, logits [[[0, 0], [5, 1]]], tokens [[0, 1]], all of them tokens: the one target is
    token 1, predicted by [0, 0] with probability 1/2, so the loss is log 2 = 0.6931.
    """
    # answer
    targets = tokens[:, 1:]
    is_target = is_token[:, 1:]
    logits = logits[:, :-1]
    logits = logits - logits.max(axis=-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nats = -np.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return np.where(is_target, nats, 0.0).sum() / max(is_target.sum(), 1)
    # end


def learning_rate(step, peak, warmup, total, final):
    """Learning rate of a step: linear warmup, then half a wave of a cosine.

    It is 0 at step 0 and rises in a straight line to `peak` at step `warmup`. From there it falls as half a cosine
    wave, flat at both ends, to `final` at step `total`, and stays there.

    Args:
      step: int, from 0 on; may be larger than `total`.
      peak, final: learning rates, final <= peak.
      warmup: int, steps of warmup; 0: the first step has the peak.
      total: int, above `warmup`.
    Returns:
      A float.

    Example: peak 1, warmup 10, total 30, final 0.2: step 5 has 0.5, step 10 has 1, step 20 (half of the way down) has
    the middle of 1 and 0.2, which is 0.6, and step 30 has 0.2.
    """
    # answer
    if step < warmup:
        return peak * step / warmup
    progress = min((step - warmup) / (total - warmup), 1.0)
    return final + (peak - final) * 0.5 * (1.0 + np.cos(np.pi * progress))
    # end


def clip_by_global_norm(grads, max_norm):
    """Gradients, made shorter all by the same factor if they are too long together.

    The global norm is the length of all numbers of all arrays, as if they were one long vector. If it is above
    `max_norm`, every array is multiplied by one factor, so that the global norm is `max_norm`. Otherwise nothing
    changes. The arrays that came in stay as they are.

    Args:
      grads: dict from names to float arrays of any shapes. They may all be 0.
      max_norm: float above 0.
    Returns:
      A new dict with the same names.

    Example: {"a": [3.0], "b": [4.0]} has the norm 5; clipped to 1 it is {"a": [0.6], "b": [0.8]}.
    """
    # answer
    norm = np.sqrt(sum(np.sum(grad**2) for grad in grads.values()))
    factor = max_norm / norm if norm > max_norm else 1.0
    return {name: grad * factor for name, grad in grads.items()}
    # end


def adamw_step(param, grad, m, v, step, lr, b1, b2, epsilon, weight_decay):
    """One step of AdamW for one array: Kingma and Ba 2015, algorithm 1, with Loshchilov and Hutter's decay.

    m is the decaying mean of the gradients, v that of their squares:

        m = b1 m + (1 - b1) grad          v = b2 v + (1 - b2) grad^2

    Both begin at 0 and are too small at first, so the update corrects them (but m and v are kept as they are):

        m_hat = m / (1 - b1^step)         v_hat = v / (1 - b2^step)
        param = param - lr (m_hat / (sqrt(v_hat) + epsilon) + weight_decay param)

    with the old param on the right. The arrays that came in stay as they are.

    Args:
      param, grad, m, v: arrays of one shape.
      step: int, 1 for the first step.
    Returns:
      The new param, m and v.

    Example: param 2.0, grad 0.5, m 0, v 0, step 1, lr 0.1, b1 0.9, b2 0.99, epsilon 0, weight_decay 0: m is 0.05, v is
    0.0025, m_hat 0.5, sqrt(v_hat) 0.5, and so the new param is 2.0 - 0.1 = 1.9.
    """
    # answer
    m = b1 * m + (1 - b1) * grad
    v = b2 * v + (1 - b2) * grad**2
    m_hat = m / (1 - b1**step)
    v_hat = v / (1 - b2**step)
    return param - lr * (m_hat / (np.sqrt(v_hat) + epsilon) + weight_decay * param), m, v
    # end
