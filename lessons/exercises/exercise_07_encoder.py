"""Exercise 07: an encoder's mask, pooling, and masked words.

About 50 minutes; medium. Read lesson 07 first.

An encoder reads a whole text at once. Texts in a batch have different lengths, so short ones are filled up with
padding, and padding must change nothing: not the attention, not the vector of the text, not the loss. NumPy is all you
need. B is the number of texts, T their padded length, D the width of a vector, V the size of the vocabulary. Do not
change the arrays that come in.

Write the six functions, then:  python -m lessons check 07
Stuck?                          python -m lessons hint 07
"""

import numpy as np


def may_attend(is_token):
    """Which position may look at which in an encoder: at all tokens, before and after itself, but never at padding.

    Padding as a query has no meaning, so its row is as all others: it may look at the tokens.

    Args:
      is_token: bool [B, T], False for padding, which may be on either side.
    Returns:
      bool [B, T, T]; [b, t, s] is True if position t may look at position s.

    may_attend([[True, True, False]]) is [[[True, True, False], [True, True, False], [True, True, False]]].
    """
    raise NotImplementedError  # your answer


def mean_pool(x, is_token):
    """One vector for each text: the mean of the vectors of its tokens. A text of padding only gets zeros.

    Args:
      x: float [B, T, D]; is_token: bool [B, T].
    Returns:
      float [B, D].

    mean_pool([[[2.0], [4.0], [9.0]]], [[True, True, False]]) is [[3.0]].
    """
    raise NotImplementedError  # your answer


def max_pool(x, is_token):
    """One vector for each text: in each dimension the largest number of its tokens. A text of padding only gets zeros.

    Args:
      x: float [B, T, D]; is_token: bool [B, T].
    Returns:
      float [B, D].

    max_pool([[[-2.0], [-4.0], [9.0]]], [[True, True, False]]) is [[-2.0]].
    """
    raise NotImplementedError  # your answer


def attention_pool(x, scores, is_token):
    """One vector for each text: a mean of its tokens, weighted by the softmax of their scores over the tokens.

    Padding has weight 0, and the weights of the tokens sum to 1. A text of padding only gets zeros. Scores may be as
    large as 1,000, and no number may overflow.

    Args:
      x: float [B, T, D]; scores: float [B, T]; is_token: bool [B, T].
    Returns:
      float [B, D].

    With x = [[[2.0], [4.0], [9.0]]], equal scores and is_token = [[True, True, False]] it is [[3.0]].
    """
    raise NotImplementedError  # your answer


def corrupt(tokens, is_chosen, choice, random_tokens, mask_id):
    """Hide chosen tokens as BERT does: 80 % become the mask, 10 % a random token, 10 % stay. Devlin et al. 2019, 3.1.

    The random numbers come in, so that the result can be checked.

    Args:
      tokens: int [B, T].
      is_chosen: bool [B, T]; all other tokens stay as they are.
      choice: float [B, T], from 0 to 1. Below 0.8: the mask; else below 0.9: the random token; else the token itself.
      random_tokens: int [B, T], the random token of each position.
      mask_id: int.
    Returns:
      int [B, T].

    corrupt([[5, 6, 7, 8]], [[True, True, True, False]], [[0.1, 0.85, 0.95, 0.1]], [[1, 2, 3, 4]], 99) is
    [[99, 2, 7, 8]].
    """
    raise NotImplementedError  # your answer


def masked_lm_loss(logits, targets, is_chosen):
    """Mean cross-entropy at the chosen positions of all texts together, in nats. 0 if no position is chosen.

    The cross-entropy of a position is -log of the probability that the softmax of its logits gives to its target, the
    token that was there before. Logits may be as large as 1,000, and no number may overflow.

    Args:
      logits: float [B, T, V]; targets: int [B, T]; is_chosen: bool [B, T].
    Returns:
      a number.

    With logits of zeros it is log V, whatever is chosen.
    """
    raise NotImplementedError  # your answer
