"""Bugs in what bounds the cost of untrusted input, in the form of mutants.py."""

MUTANTS_OF_COSTS = {
    "repetitions of nothing are free": (
        "sampling.automaton",
        "self.spend(1 + len(parts))",
        "pass",
        ("regex_costs", {}),
    ),
    "characters of a class are free": ("sampling.automaton", "self.spend(len(sequences))", "pass", ("regex_costs", {})),
    # Texts in pieces
    "line end between two pieces": (
        "lines",
        'text.endswith("\\r") and following',
        'text.endswith("\\n") and following',
        ("lines", {}),
    ),
    "text cut within spaces": ("tokenizers.subwords", 'r"\\S(?=[ \\n])"', 'r".(?=[ \\n])"', ("token_pieces", {})),
    "word cut at the end of a piece": (
        "tokenizers.subwords",
        "waiting = [piece[cut:]]",
        "waiting = [piece[cut:].lstrip()]",
        ("token_pieces", {}),
    ),
}
