"""Generated classification examples: names of countries, languages, scripts ... labelled by their language (CLDR).

A small classification task without a download. Names that several languages share are omitted.
"""

import functools

import numpy as np
from babel import Locale

from ..config import DataConfig

LANGUAGES = ("de", "en", "es", "fi", "fr", "hu", "it", "nl", "pl", "tr")
LISTS = ("languages", "territories", "scripts", "currencies", "variants")
SHARES = {"train": (0.2, 1.0), "val": (0.0, 0.1), "test": (0.1, 0.2)}


def languages(config: DataConfig | None, split: str) -> list[tuple[str, str, str]]:
    """Generate the (name, its language, location) of a split, train, val or test; splits share no name."""
    names = _names()
    first, last = (round(share * len(names)) for share in SHARES[split])
    return [(name, language, f"languages, {split} example {i}") for i, (name, language) in enumerate(names[first:last])]


@functools.cache
def _names() -> list[tuple[str, str]]:
    languages_of: dict[str, set[str]] = {}
    for code in LANGUAGES:
        locale = Locale.parse(code)
        language = locale.get_language_name("en")
        assert language is not None, f"CLDR has an English name of {code}"
        for names in LISTS:
            for name in getattr(locale, names).values():
                languages_of.setdefault(name, set()).add(language)
    unique = sorted((name, *owners) for name, owners in languages_of.items() if len(owners) == 1)
    return [unique[i] for i in np.random.default_rng(0).permutation(len(unique))]
