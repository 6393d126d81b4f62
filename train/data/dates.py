"""Generated translation pairs: dates, times, durations and quantities in two languages, as CLDR formats them (Babel).

A small translation task without a download and with one right answer: the same value, in the same style.
"""

import datetime
import functools

import numpy as np
from babel import Locale, UnknownLocaleError
from babel.dates import format_date, format_time, format_timedelta
from babel.numbers import format_decimal
from babel.units import format_unit

from transformer_jax.errors import UserError

from ..config import DataConfig

SIZES = {"train": 60_000, "val": 1_000, "test": 1_000}
UNITS = ("length-kilometer", "mass-kilogram", "volume-liter", "length-meter", "temperature-celsius", "duration-hour")
STYLES = ("short", "long", "full")  # no "medium": in May it equals "long" in English, but not in German


def dates(config: DataConfig, fields: tuple[str, str], split: str) -> list[tuple[str, str]]:
    """Generate the pairs of a split, in `data.source_language` and `data.target_language`. Splits share no source.

    Raises:
      UserError: a language that is not in CLDR.
    """
    languages = []
    for name in ("source_language", "target_language"):
        try:
            languages.append(Locale.parse(getattr(config, name)))
        except (UnknownLocaleError, ValueError, TypeError) as error:
            value = getattr(config, name)
            raise UserError(f"data.{name}={value!r}: unknown language. Give a code, such as en, de or fr.") from error
    pairs = _generate(*languages, sum(SIZES.values()))
    first = {"val": 0, "test": SIZES["val"], "train": SIZES["val"] + SIZES["test"]}[split]
    return list(pairs[first : first + SIZES[split]])


@functools.lru_cache(maxsize=1)  # a run loads several splits of the same pairs
def _generate(source_language: Locale, target_language: Locale, num_pairs: int) -> tuple[tuple[str, str], ...]:
    """Pairs with distinct sources, in an order that does not depend on their number."""
    random = np.random.default_rng(0)
    pairs: dict[str, str] = {}
    while len(pairs) < num_pairs:
        format_in = FORMATTERS[random.integers(len(FORMATTERS))](random)
        source, target = (format_in(language) for language in (source_language, target_language))
        pairs.setdefault(source, target)
    return tuple(pairs.items())


def _date(random):
    day = datetime.date(1950, 1, 1) + datetime.timedelta(days=int(random.integers(36_500)))
    style = STYLES[random.integers(3)]
    return lambda language: format_date(day, style, locale=language)


def _time(random):
    time = datetime.time(int(random.integers(24)), int(random.integers(60)), int(random.integers(60)))
    style = ("short", "medium")[random.integers(2)]
    return lambda language: format_time(time, style, locale=language)


def _moment(random):
    date = _date(random)
    time = _time(random)
    return lambda language: f"{date(language)} {time(language)}"


def _duration(random):
    seconds = int(random.choice([60, 3600, 86_400, 604_800, 2_592_000])) * int(random.integers(1, 60))
    return lambda language: format_timedelta(datetime.timedelta(seconds=seconds), threshold=1.5, locale=language)


def _quantity(random):
    unit = UNITS[random.integers(len(UNITS))]
    value = round(float(random.uniform(0, 10_000)), int(random.integers(3)))
    return lambda language: format_unit(value, unit, "long", locale=language)


def _number(random):
    value = round(float(random.uniform(0, 10**7)), int(random.integers(4)))
    return lambda language: format_decimal(value, locale=language)


# Each draws a value and returns a function: locale -> text. An entry that stands twice is drawn twice as often.
FORMATTERS = (_date, _date, _moment, _time, _duration, _quantity, _quantity, _number)
