"""Which language is this name in? Names of languages, countries, scripts and currencies, as Unicode's CLDR writes them.

A small task of classification that needs no download. Names that two of the languages share are left out.
"""

import functools

import numpy as np
from babel import Locale

LANGUAGES = ("de", "en", "es", "fi", "fr", "hu", "it", "nl", "pl", "tr")
LISTS = ("languages", "territories", "scripts", "currencies", "variants")
SHARES = {"train": (0.2, 1.0), "val": (0.0, 0.1), "test": (0.1, 0.2)}


def languages(config, split: str) -> list[tuple[str, str, str]]:
    """(name, its language, where it is) of a part, train, val or test; they have no name in common."""
    names = _names()
    first, last = (round(share * len(names)) for share in SHARES[split])
    return [(name, language, f"languages, {split} example {i}") for i, (name, language) in enumerate(names[first:last])]


@functools.cache
def _names() -> list[tuple[str, str]]:
    owners: dict[str, set[str]] = {}
    for code in LANGUAGES:
        locale = Locale.parse(code)
        for names in LISTS:
            for name in getattr(locale, names).values():
                owners.setdefault(name, set()).add(locale.get_language_name("en"))
    ours = sorted((name, *owner) for name, owner in owners.items() if len(owner) == 1)
    return [ours[i] for i in np.random.default_rng(0).permutation(len(ours))]
