"""Generated texts of known entropy: a Markov chain, a hidden Markov model and a grammar, with exact probabilities.

All three are chains of hidden states that emit a character at every step. So one sampler draws from them, and one
forward algorithm (Rabiner 1989, section III.A) computes the exact probability of every character given those before
it. No model can have a smaller expected loss on the same context: that is the entropy floor.
"""

import dataclasses
import functools
import itertools
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

NUM_CHARACTERS = 500_000  # of the training and the validation split together
PARTS = ("train", "val", "test")  # each drawn with its own seed
LETTERS = "abcdefghijklmnopqrstuvwxyz "


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """Stationary hidden Markov process with V characters and S hidden states: the true distribution of a text.

    The chain of states must be irreducible and aperiodic: then every window of a long text, wherever windows are cut,
    is drawn from one distribution, that of `stationary`.

    `arcs` [V, S, S]: arcs[v, i, j] is the probability, in state i, to emit character v and to move to state j. A
    product of such matrices is the probability of a text (Jaeger 2000, "Observable operator models", section 2).
    """

    characters: str
    arcs: np.ndarray  # [V, S, S] float64; sums to 1 over v and j

    @functools.cached_property
    def stationary(self) -> np.ndarray:
        """Stationary distribution of the hidden states, [S]: the belief before any character is read."""
        num_states = self.arcs.shape[1]
        balance = self.arcs.sum(axis=0).T - np.eye(num_states)
        equations = np.vstack([balance, np.ones(num_states)])
        right_side = np.eye(num_states + 1)[-1]  # balance is 0, and the shares add up to 1
        return np.linalg.lstsq(equations, right_side, rcond=None)[0].clip(0)

    def draw(self, length: int, seed: Sequence[int] | int) -> str:
        """Draw a text that begins in the stationary distribution, so that all its windows are equal in law."""
        num_characters, num_states, _ = self.arcs.shape
        random = np.random.default_rng(seed)
        outcomes: list[tuple[list[float], list[str], list[int]]] = []  # by state: cumulative p, characters, next states
        for i in range(num_states):
            emitted, next_states = np.nonzero(self.arcs[:, i])
            cumulative = np.cumsum(self.arcs[emitted, i, next_states])
            outcomes.append((cumulative[:-1].tolist(), [self.characters[v] for v in emitted], next_states.tolist()))
        text = []
        state = int(random.choice(num_states, p=self.stationary / self.stationary.sum()))
        for uniform in random.random(length).tolist():
            bounds, characters, states = outcomes[state]
            k = bisect_right(bounds, uniform)
            text.append(characters[k])
            state = states[k]
        return "".join(text)

    def predict(self, symbols: np.ndarray) -> np.ndarray:
        """Forward algorithm: probabilities of the next character after each prefix of each row.

        Args:
          symbols: [B, T] int, indices into `characters`; below 0 for padding, which is skipped.
        Returns:
          [B, T, V] float64: p(next character | symbols[:, : t + 1]), with nothing known of the text before.
        """
        emissions = self.arcs.sum(axis=2).T  # [S, V]
        belief = np.tile(self.stationary, (len(symbols), 1))  # [B, S], the probability of each state
        predicted = np.empty((*symbols.shape, len(self.characters)))
        for t, column in enumerate(symbols.T):
            for v in np.unique(column[column >= 0]):
                rows = column == v
                belief[rows] = belief[rows] @ self.arcs[v]
            belief /= belief.sum(axis=1, keepdims=True)  # else it underflows in a long text
            predicted[:, t] = belief @ emissions
        return predicted

    def nats(self, symbols: np.ndarray) -> np.ndarray:
        """Surprisal -log p(symbols[:, t + 1] | symbols[:, : t + 1]), float64 [B, T] from [B, T + 1]; 0 at padding."""
        targets = symbols[:, 1:]
        chosen = np.take_along_axis(self.predict(symbols[:, :-1]), np.maximum(targets, 0)[..., None], axis=2)[..., 0]
        return -np.log(np.where(targets >= 0, chosen, 1.0))


def markov_chain(characters: str, transitions: np.ndarray) -> Truth:
    """Markov chain: the next character depends on the last one only. The state is the last character.

    Args:
      transitions: [V, V], rows sum to 1: p(next | last).
    """
    return Truth(characters, np.einsum("ij,jv->vij", transitions, np.eye(len(characters))))


def hidden_markov_model(characters: str, transitions: np.ndarray, emissions: np.ndarray) -> Truth:
    """Hidden Markov model: an unseen chain of states, each of which emits a character.

    Args:
      transitions: [S, S], rows sum to 1: p(next state | state).
      emissions: [S, V], rows sum to 1: p(character | state).
    """
    return Truth(characters, np.einsum("ij,jv->vij", transitions, emissions))


@dataclasses.dataclass(frozen=True)
class Grammar:
    """Probabilistic grammar of bracketed arithmetic, one expression per line.

    An unambiguous probabilistic grammar, LL(1), with a nonterminal for each depth d:

        line    -> expr_0 "\\n"
        expr_d  -> term_d                      1 - more[d]
                 | term_d operator expr_d      more[d] * operators[operator]
        term_d  -> atom                        (1 - minus - open[d]) * atoms[atom]
                 | "-" term_d                  minus
                 | "(" expr_{d+1} ")"          open[d] * brackets["()"]

    Brackets must match, as in Dyck languages, but depth ends at the last d, where open[d] is 0. So the future depends
    on a finite state: the open brackets, and whether a term or its continuation comes next. These are the states of a
    hidden Markov chain. Brackets that were opened before a window are inferred exactly, too.
    Without the sign, all lines would have an even length, so windows of even length would all begin at even positions.
    A model that learned this from other windows would be below the floor, which assumes any starting position.
    """

    atoms: dict[str, float]
    operators: dict[str, float]
    brackets: dict[str, float]  # by pair
    more: tuple[float, ...]  # p(another operator), by depth
    open: tuple[float, ...]  # p(bracket), by depth
    minus: float  # p(sign)

    def truth(self) -> Truth:
        """Compile the grammar to its hidden Markov chain."""
        pairs = list(self.brackets)
        depths = range(len(self.more))
        stacks = [stack for d in depths for stack in itertools.product(pairs, repeat=d)]
        states = {state: i for i, state in enumerate(itertools.product(stacks, ("term", "after")))}
        characters = "".join(sorted({"\n", "-", *self.atoms, *self.operators, *"".join(pairs)}))
        arcs = np.zeros((len(characters), len(states), len(states)))

        def arc(state, character, probability, following):
            if probability:
                arcs[characters.index(character), states[state], states[following]] += probability

        for stack in stacks:
            more = self.more[len(stack)]
            deeper = self.open[len(stack)]
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
    """True distribution behind a `data.source`, always the same: one of TRUTHS."""
    return TRUTHS[name]()


def _markov() -> Truth:
    random = np.random.default_rng(1)
    return markov_chain(LETTERS, random.dirichlet(np.full(len(LETTERS), 0.3), size=len(LETTERS)))


def _hmm() -> Truth:
    random = np.random.default_rng(2)
    num_states = 8
    wander = random.dirichlet(np.full(num_states, 0.5), size=num_states)
    emissions = random.dirichlet(np.full(16, 0.3), size=num_states)
    return hidden_markov_model(LETTERS[:16], 0.9 * np.eye(num_states) + 0.1 * wander, emissions)


def _grammar() -> Truth:
    atoms = {"1": 0.3, "2": 0.2, "3": 0.1, "x": 0.25, "y": 0.1, "z": 0.05}
    operators = {"+": 0.4, "-": 0.3, "*": 0.2, "/": 0.1}
    brackets = {"()": 0.65, "[]": 0.35}
    return Grammar(atoms, operators, brackets, more=(0.6, 0.5, 0.4, 0.4), open=(0.4, 0.3, 0.2, 0.0), minus=0.1).truth()


TRUTHS = {"markov": _markov, "hmm": _hmm, "grammar": _grammar}


def draw_part(name: str, part: str, length: int) -> str:
    """Draw one split of a source, one of PARTS: splits have nothing in common but their distribution."""
    return known_truth(name).draw(length, (0, PARTS.index(part)))
