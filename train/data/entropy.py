"""Texts of known entropy: a Markov chain, a hidden Markov model and a grammar, and what each truly says comes next.

All three are one kind of thing, a chain of hidden states that writes a character at every step. So one sampler draws
from them, and one forward algorithm (Rabiner 1989, section III.A) gives the exact probability of every character after
those before it. No model can have a smaller expected loss on the same context: that is the floor.
"""

import dataclasses
import functools
import itertools
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

NUM_CHARACTERS = 500_000  # of the training and the validation part together
PARTS = ("train", "val", "test")  # each drawn with a seed of its own
LETTERS = "abcdefghijklmnopqrstuvwxyz "


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """A stationary process with V characters and S hidden states.

    The chain of states must be irreducible and without a period: then every window of a long text, wherever windows are
    cut, is drawn from one distribution, that of `stationary`.

    `arcs` [V, S, S]: in state i, the probability to write character v and to go to state j is arcs[v, i, j]. A product
    of such matrices is the probability of a text (Jaeger 2000, "Observable operator models", section 2).
    """

    characters: str
    arcs: np.ndarray  # float64; sums to 1 over v and j

    @functools.cached_property
    def stationary(self) -> np.ndarray:
        """The share of time in each state, [S]: what is known of the state where nothing has been read."""
        num_states = self.arcs.shape[1]
        leaving = self.arcs.sum(axis=0).T - np.eye(num_states)
        equations, sums = np.vstack([leaving, np.ones(num_states)]), np.eye(num_states + 1)[-1]
        return np.linalg.lstsq(equations, sums, rcond=None)[0].clip(0)

    def draw(self, length: int, seed: Sequence[int] | int) -> str:
        """A text that begins at the stationary distribution, so that all windows of it are equal in law."""
        num_characters, num_states, _ = self.arcs.shape
        random = np.random.default_rng(seed)
        outcomes = []  # of each state: running sums of probabilities, characters, next states
        for i in range(num_states):
            written, following = np.nonzero(self.arcs[:, i])
            sums = np.cumsum(self.arcs[written, i, following])
            outcomes.append((sums[:-1].tolist(), [self.characters[v] for v in written], following.tolist()))
        text, state = [], int(random.choice(num_states, p=self.stationary / self.stationary.sum()))
        for uniform in random.random(length).tolist():
            sums, written, following = outcomes[state]
            k = bisect_right(sums, uniform)
            text.append(written[k])
            state = following[k]
        return "".join(text)

    def predict(self, symbols: np.ndarray) -> np.ndarray:
        """The probabilities of the next character, after each prefix of each row.

        Args:
          symbols: [B, T] int, places in `characters`; below 0 for padding, which says nothing.
        Returns:
          [B, T, V] float64, of the character after symbols[:, : t + 1], where no more than these is known.
        """
        writes = self.arcs.sum(axis=2).T  # [S, V]
        belief = np.tile(self.stationary, (len(symbols), 1))  # [B, S], the probability of each state
        predicted = np.empty((*symbols.shape, len(self.characters)))
        for t, column in enumerate(symbols.T):
            for v in np.unique(column[column >= 0]):
                rows = column == v
                belief[rows] = belief[rows] @ self.arcs[v]
            belief /= belief.sum(axis=1, keepdims=True)  # else it becomes smaller than any number, of a long text
            predicted[:, t] = belief @ writes
        return predicted

    def nats(self, symbols: np.ndarray) -> np.ndarray:
        """-log p(symbols[:, t + 1] | symbols[:, : t + 1]), float64 [B, T] of [B, T + 1]; 0 where the target is < 0."""
        targets = symbols[:, 1:]
        chosen = np.take_along_axis(self.predict(symbols[:, :-1]), np.maximum(targets, 0)[..., None], axis=2)[..., 0]
        return -np.log(np.where(targets >= 0, chosen, 1.0))


def markov_chain(characters: str, transitions: np.ndarray) -> Truth:
    """The next character depends on the last alone. The state is the last character.

    Args:
      transitions: [V, V], rows sum to 1: p(next | last).
    """
    return Truth(characters, np.einsum("ij,jv->vij", transitions, np.eye(len(characters))))


def hidden_markov_model(characters: str, transitions: np.ndarray, emissions: np.ndarray) -> Truth:
    """A chain of states that is not seen, each of which writes a character.

    Args:
      transitions: [S, S], rows sum to 1: p(next state | state); emissions: [S, V], p(character | state).
    """
    return Truth(characters, np.einsum("ij,jv->vij", transitions, emissions))


@dataclasses.dataclass(frozen=True)
class Grammar:
    """Bracketed arithmetic, a line for each expression.

    An unambiguous probabilistic grammar, LL(1), with a nonterminal for each depth d:

        line    -> expr_0 "\\n"
        expr_d  -> term_d                      1 - more[d]
                 | term_d operator expr_d      more[d] * operators[operator]
        term_d  -> atom                        (1 - minus - open[d]) * atoms[atom]
                 | "-" term_d                  minus
                 | "(" expr_{d+1} ")"          open[d] * brackets["()"]

    Brackets must fit, as in the languages of Dyck, but depth ends at the last d, where open[d] is 0. So what is to come
    depends on finitely many things, the brackets that are open and whether a term or what follows one is due, and these
    are the states of a chain. What a window says of brackets that were opened before it is inferred exactly, too.
    Without the sign all lines would be even in length, so that windows of even length would all begin at even places:
    then a model that has learned this from other windows is below the floor, for whose start all places are alike.
    """

    atoms: dict[str, float]
    operators: dict[str, float]
    brackets: dict[str, float]  # by the pair of them
    more: tuple[float, ...]  # by depth
    open: tuple[float, ...]
    minus: float  # the sign

    def truth(self) -> Truth:
        """The grammar as a chain of states."""
        pairs, depths = list(self.brackets), range(len(self.more))
        stacks = [stack for d in depths for stack in itertools.product(pairs, repeat=d)]
        states = {state: i for i, state in enumerate(itertools.product(stacks, ("term", "after")))}
        characters = "".join(sorted({"\n", "-", *self.atoms, *self.operators, *"".join(pairs)}))
        arcs = np.zeros((len(characters), len(states), len(states)))

        def arc(state, character, probability, following):
            if probability:
                arcs[characters.index(character), states[state], states[following]] += probability

        for stack in stacks:
            more, deeper = self.more[len(stack)], self.open[len(stack)]
            for atom, p in self.atoms.items():
                arc((stack, "term"), atom, (1 - self.minus - deeper) * p, (stack, "after"))
            arc((stack, "term"), "-", self.minus, (stack, "term"))
            for pair, p in self.brackets.items():
                arc((stack, "term"), pair[0], deeper * p, ((*stack, pair), "term"))
            for operator, p in self.operators.items():
                arc((stack, "after"), operator, more * p, (stack, "term"))
            if stack:
                arc((stack, "after"), stack[-1][1], 1 - more, (stack[:-1], "after"))
            else:
                arc((stack, "after"), "\n", 1 - more, (stack, "term"))
        return Truth(characters, arcs)


@functools.cache
def known_truth(name: str) -> Truth:
    """The truth behind a `data.source`, always the same: one of TRUTHS."""
    return TRUTHS[name]()


def _markov() -> Truth:
    random = np.random.default_rng(1)
    return markov_chain(LETTERS, random.dirichlet(np.full(len(LETTERS), 0.3), size=len(LETTERS)))


def _hmm() -> Truth:
    random, num_states = np.random.default_rng(2), 8
    wander = random.dirichlet(np.full(num_states, 0.5), size=num_states)
    emissions = random.dirichlet(np.full(16, 0.3), size=num_states)
    return hidden_markov_model(LETTERS[:16], 0.9 * np.eye(num_states) + 0.1 * wander, emissions)


def _grammar() -> Truth:
    atoms = {"1": 0.3, "2": 0.2, "3": 0.1, "x": 0.25, "y": 0.1, "z": 0.05}
    operators = {"+": 0.4, "-": 0.3, "*": 0.2, "/": 0.1}
    more, deeper = (0.6, 0.5, 0.4, 0.4), (0.4, 0.3, 0.2, 0.0)
    return Grammar(atoms, operators, {"()": 0.65, "[]": 0.35}, more, deeper, minus=0.1).truth()


TRUTHS = {"markov": _markov, "hmm": _hmm, "grammar": _grammar}


def draw_part(name: str, part: str, length: int) -> str:
    """A part of a source, one of PARTS: parts have nothing in common but the truth."""
    return known_truth(name).draw(length, (0, PARTS.index(part)))
