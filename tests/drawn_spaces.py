"""Spaces drawn by hypothesis, and how many examples a law is tried on."""

from __future__ import annotations

from hypothesis import HealthCheck, reject, settings
from hypothesis import strategies as st

from mergetomix.mixtures.spaces import Simplex, Subsets


def law(num: int) -> settings:
    """So many examples are drawn for a law, the same ones every time."""
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(max_examples=num, deadline=None, derandomize=True, suppress_health_check=slow)


@st.composite
def subsets(draw: st.DrawFn) -> Subsets:
    """Subsets of up to six datasets under constraints that do not contradict each other."""
    names = tuple("abcdef"[: draw(st.integers(1, 6))])
    few = st.frozensets(st.sampled_from(names), max_size=2)
    bounds = st.tuples(st.integers(1, 4), st.none() | st.integers(1, 6))
    sizes = st.none() | st.fixed_dictionaries(dict.fromkeys(names, st.floats(0.5, 5)))
    groups = draw(st.sampled_from([(), (frozenset("ab"),), (frozenset("ab"), frozenset("cd"))]))
    try:
        return Subsets(names, *draw(bounds), draw(few), draw(few), draw(sizes), groups)
    except ValueError:
        reject()


@st.composite
def weights(draw: st.DrawFn) -> Simplex:
    """Weights of up to five datasets under constraints that do not contradict each other."""
    names = tuple("abcde"[: draw(st.integers(2, 5))])
    few = st.frozensets(st.sampled_from(names), max_size=1)
    bounds = st.tuples(st.integers(1, 2), st.none() | st.integers(2, 4))
    caps = st.dictionaries(st.sampled_from(names), st.floats(0.3, 1), max_size=2)
    shares = st.sampled_from([0.0, 0.05, 0.2])
    try:
        return Simplex(names, *draw(bounds), draw(few), draw(few), draw(shares), draw(caps))
    except ValueError:
        reject()
