r"""The last number of an answer, as a person would read it.

>>> last_number("12 apples cost $1,234.50 in all") == Fraction("1234.5")
True
>>> last_number("the ratio is 3/2"), last_number(r"so $\frac{3}{2}$"), last_number("at 11:30")
(Fraction(3, 2), Fraction(3, 2), (Fraction(11, 1), Fraction(30, 1)))
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TypeAlias

Number: TypeAlias = "Fraction | tuple[Fraction, ...]"
"""A number; or its parts, where it has several that cannot be added: a time, a date, a version."""

MOST = 400
"""A power beyond this is not computed: nobody's answer, and slow."""
MOST_DIGITS = 1000
"""A longer number is as many numbers as it has parts of so many digits: Python reads none of
4,300."""
FULL_WIDTH = {0xFF01 + each: 0x21 + each for each in range(0x7E - 0x20)}
ASCII: dict[int, str | int | None] = {
    **FULL_WIDTH,
    **dict.fromkeys(map(ord, "\u2212\u2012\u2013\ufe63"), "-"),
    0x2044: "/",
}
"""Digits and signs that are written otherwise, such as the minus sign of mathematics."""
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
WHOLE = r"\d{1,3}(?:,\d{3})+(?!\d)|\d+"
QUANTITY = re.compile(
    rf"""
      \\[dt]?frac\s*\{{\s*(?P<top>-?\d+)\s*\}}\s*\{{\s*(?P<bottom>-?\d+)\s*\}}
    | (?P<parts>\d+(?:[:]\d+)+ | \d+(?:/\d+){{2,}} | \d+(?:\.\d+){{2,}})
    | (?:(?P<mixed>{WHOLE})\s+)?(?P<over>{WHOLE})\s?/\s?(?P<under>{WHOLE})(?!\.?\d)
    | (?P<plain>{PLAIN})
      (?:\s?(?:\^|\*\*)\s?(?P<power>-?\d+|\{{-?\d+\}})
       | [eE](?P<e>[+-]?\d+)(?!\w)
       | \s?(?:\\times|\\cdot|\xd7|\*|x)\s?10\s?(?:\^|\*\*)\s?(?P<ten>-?\d+|\{{-?\d+\}}))?
    """,
    re.VERBOSE | re.ASCII,
)


def last_number(text: str) -> Number | None:
    r"""Returns the last number in a text, None if there is none.

    Read are thousands parted by commas (`1,234`, LaTeX's `1{,}234`), decimals, exponents (`1e3`,
    `2 \times 10^{3}`), powers (`10^2`), fractions (`3/2`, `1 1/2`, `\frac{3}{2}`), times, dates and
    versions, digits of full width, and a minus before the number or its currency. A minus behind a
    word, a digit or a closing bracket is a hyphen or a difference, and one that opens a line of a
    list is its mark.

    >>> [str(last_number(text)) for text in ("-$5", "covid-19", "3 - 5", "1.5e3")]
    ['-5', '19', '5', '1500']
    """
    plain = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda found: f"^{found[0].translate(RAISED)}", text)
    plain = plain.translate(ASCII).replace("{,}", ",").replace("\\$", "$").replace("\\%", "%")
    last = max(QUANTITY.finditer(plain), key=lambda found: found.start(), default=None)
    if last is None:
        return None
    if len(last[0]) > MOST_DIGITS:
        parts = re.findall(f".{{1,{MOST_DIGITS}}}", re.sub(r"\D", "", last[0]))
        return tuple(Fraction(part) for part in parts)
    value = _value(last)
    if _is_negative(plain[: last.start()], plain[last.end() :]):
        return tuple(-each for each in value) if isinstance(value, tuple) else -value
    return value


def _value(found: re.Match[str]) -> Number:
    group = {name: (text or "").replace(",", "") for name, text in found.groupdict().items()}
    if group["parts"]:
        return tuple(Fraction(part) for part in re.split(r"[:/.]", group["parts"]))
    top, bottom = group["top"] or group["over"], group["bottom"] or group["under"]
    if top:
        if not int(bottom):
            return (Fraction(top), Fraction(0))
        return Fraction(group["mixed"] or 0) + Fraction(int(top), int(bottom))
    plain, power = Fraction(group["plain"]), int((group["power"] or "1").strip("{}"))
    tens = int((group["e"] or group["ten"] or "0").strip("{}"))
    if abs(power) > MOST or abs(tens) > MOST or (not plain and power < 0):
        return (plain, Fraction(power), Fraction(tens))
    return plain**power * Fraction(10) ** tens


def _is_negative(before: str, behind: str) -> bool:
    """Returns whether a minus belongs to the number between two texts."""
    sign = re.search(r"-(\s?)[$€£¥]?\s?$", before) or re.search(r"[$€£¥]\s?-()$", before)
    if sign is None:
        return False
    front = before[: sign.start()]
    if re.search(r"[\w)\]}%.]$", front):
        return False  # a hyphen, or a difference without blanks
    if not sign.group(1):
        return True
    if re.search(r"(?:[\d)\]}%]|(?<![^\W_])[^\W\d_])\s*$", front):
        return False  # 3 - 5, (a) - 5, x - 5
    is_first = not front or front.endswith("\n")
    is_listed = bool(front or re.match(r"[^\S\n]*[.)]?[^\S\n]*\w", behind))
    return not (is_first and is_listed)
