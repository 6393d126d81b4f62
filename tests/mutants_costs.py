"""Bugs in what bounds the cost of untrusted input, in the form of mutants.py."""

MUTANTS_OF_COSTS = {
    "repetitions of nothing are free": (
        "sampling.automaton",
        "self.spend(1 + len(parts))",
        "pass",
        ("regex_costs", {}),
    ),
    "characters of a class are free": ("sampling.automaton", "self.spend(len(sequences))", "pass", ("regex_costs", {})),
}
