"""The same random tensors through mergetomix's merges and through mergekit 0.1.5.

mergekit runs in an environment of its own.

Three experts with the weights .2, .3 and .5 (two for slerp), two matrices and two vectors, params
of size 1 and deltas of size .3, float32. Methods without chance: the largest difference between
merged params, relative to the largest merged delta.

What is mapped, where mergekit's words differ from the papers' or from ours:
- weights are ours throughout. Ours are means; mergekit's task_arithmetic, dare_linear, della_linear
  and breadcrumbs are sums with weights that add up to one: the same. For our task_arithmetic
  mergekit's weights are k w_i.
- `normalize: true` for ties, dare_ties and breadcrumbs_ties: the mean over the experts that agree,
  which the papers take. It is mergekit's default for ties, not for the other two.
- slerp: mergekit's base_model is the first expert, t the second's weight. Nearer than about 1.8
  degrees (cosine .9995) mergekit takes the line; the arc differs from it by the angle squared over
  eight.
- multislerp: ours is the mean on the sphere of the params, mergekit's `karcher` with equal weights
  and without a base, given more steps. mergekit's own `multislerp` takes one step from the plain
  mean, without the logarithm: another formula, whose distance is shown and not judged.
- dare: `rescale: true` in mergekit restores the sum of magnitudes and does not divide by the
  density. Compared with `rescale: false`, ours times the density.
- della: mergekit's epsilon is half of the paper's and ours: probabilities from density - epsilon to
  density + epsilon. Its rescaling is that of dare, where the paper divides by each value's
  probability; so what is compared is what is kept, with one expert. The vote on signs is that of
  ties.
- mergekit has no fisher and no regmean.

Methods with chance: NUM_SEEDS draws of both sides, values in five buckets by the magnitude of the
mean delta. For each bucket of each tensor: z of the difference of means (towards the sign of the
delta), z of the difference of variances, and the p of a Kolmogorov-Smirnov test between the pooled
draws of both (cautious, as values have few levels). With 20 buckets the largest |z| should lie near
2.4, the smallest p no lower than about 1/20. The same is shown with our density changed by a tenth,
to tell what is noticed.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments import python_of
from safetensors.torch import load_file, save_file
from scipy.stats import ks_2samp
from torch import Tensor

from mergetomix.merge import METHODS, Parts, effective_number

SHAPES = {"matrix": (40, 60), "tall": (100, 20), "vector": (200,), "bias": (50,)}
EXPERTS, WEIGHTS = ("a", "b", "c"), (0.2, 0.3, 0.5)
NUM_SEEDS, NUM_BUCKETS = 1000, 5
LARGEST, LARGEST_Z, SMALLEST_P = 1e-5, 5.0, 1e-5  # beyond which the script fails
DENSITY = 0.4


@dataclass(frozen=True)
class Comparison:
    """One method of ours with its options, and what of mergekit's it is compared with.

    Args:
        factor: what ours is multiplied by.
        from_zero: whether the base is zero, so that what is dropped is exactly zero.
    """

    method: str
    theirs: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, float] = field(default_factory=dict)
    experts: Sequence[str] = EXPERTS
    weights: Sequence[float] = WEIGHTS
    base: str | None = "base"
    factor: float = 1.0
    judged: bool = True
    from_zero: bool = False

    @property
    def name(self) -> str:
        return self.method if self.method == self.theirs else f"{self.method} / {self.theirs}"


def by_expert(values: Sequence[float], experts: Sequence[str] = EXPERTS) -> dict[str, float]:
    return dict(zip(experts, values, strict=True))


def same(value: float, experts: Sequence[str] = EXPERTS) -> dict[str, float]:
    return dict.fromkeys(experts, value)


WEIGHT = {"weight": by_expert(WEIGHTS)}
THIRDS = (1 / 3, 1 / 3, 1 / 3)
EXACT = (
    Comparison("linear", "linear", WEIGHT, base=None),
    Comparison(
        "task_arithmetic",
        "task_arithmetic",
        {"weight": by_expert([effective_number(WEIGHTS) * w for w in WEIGHTS])},
    ),
    Comparison("ties", "ties", {**WEIGHT, "density": same(DENSITY)}, {"density": DENSITY}),
    Comparison(
        "breadcrumbs",
        "breadcrumbs",
        {**WEIGHT, "density": same(DENSITY), "gamma": same(0.05)},
        {"density": DENSITY, "gamma": 0.05},
    ),
    Comparison(
        "breadcrumbs_ties",
        "breadcrumbs_ties",
        {**WEIGHT, "density": same(DENSITY), "gamma": same(0.05), "normalize": True},
        {"density": DENSITY, "gamma": 0.05},
    ),
    Comparison("slerp", "slerp", {"t": 0.7}, experts=("a", "b"), weights=(0.3, 0.7), base="a"),
    Comparison("multislerp", "karcher", {"max_iter": 100, "tol": 1e-6}, weights=THIRDS, base=None),
    Comparison("multislerp", "multislerp", WEIGHT, base=None, judged=False),
)
CHANCE = (
    Comparison(
        "dare_linear",
        "dare_linear",
        {**WEIGHT, "density": same(DENSITY), "rescale": False},
        {"density": DENSITY},
        factor=DENSITY,
        from_zero=True,
    ),
    Comparison(
        "dare_ties",
        "dare_ties",
        {**WEIGHT, "density": same(DENSITY), "rescale": False, "normalize": True},
        {"density": DENSITY},
        factor=DENSITY,
        from_zero=True,
    ),
    *(
        Comparison(
            name,
            name,
            {
                "weight": {"a": 1.0},
                "density": {"a": DENSITY},
                "epsilon": {"a": 0.15},
                "rescale": False,
            },
            {"density": DENSITY, "epsilon": 0.3},
            experts=("a",),
            weights=(1.0,),
            from_zero=True,
        )
        for name in ("della_linear", "della")
    ),
)


def random_inputs() -> dict[str, Tensor]:
    """Params of the base and of the experts, of a base that is zero too, as "<model>.<param>"."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for param, shape in SHAPES.items():
        base = torch.randn(shape, generator=generator)
        found[f"base.{param}"], found[f"zero.{param}"] = base, torch.zeros(shape)
        for expert in EXPERTS:
            delta = 0.3 * torch.randn(shape, generator=generator)
            found[f"{expert}.{param}"], found[f"{expert}0.{param}"] = base + delta, delta
    return found


def job_of(number: int, comparison: Comparison) -> dict[str, Any]:
    """What mergekit's side is asked for. Of a base that is zero the experts are the deltas."""
    rename = (
        (lambda name: "zero" if name == "base" else f"{name}0") if comparison.from_zero else str
    )
    experts = [rename(name) for name in comparison.experts]
    base = None if comparison.base is None else rename(comparison.base)
    parameters = {
        key: {rename(name): number for name, number in value.items()}
        if isinstance(value, dict)
        else value
        for key, value in comparison.parameters.items()
    }
    return {
        "name": str(number),
        "method": comparison.theirs,
        "parameters": parameters,
        "inputs": experts if base is None or base in experts else [base, *experts],
        "base": base,
        "params": list(SHAPES),
        "num_seeds": NUM_SEEDS if comparison in CHANCE else None,
    }


def theirs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mergekit's results, as "<place of the comparison>.<param>"."""
    with tempfile.TemporaryDirectory() as folder:
        jobs, given, results = (
            Path(folder) / name
            for name in ("jobs.json", "inputs.safetensors", "results.safetensors")
        )
        jobs.write_text(
            json.dumps([job_of(number, each) for number, each in enumerate((*EXACT, *CHANCE))])
        )
        save_file(dict(inputs), given)
        script = Path(__file__).with_name("peer_mergekit.py")
        subprocess.run([python_of("mergekit"), script, "merge", jobs, given, results], check=True)
        return load_file(results)


def parts_of(comparison: Comparison, inputs: Mapping[str, Tensor], param: str) -> Parts:
    base = inputs[f"zero.{param}" if comparison.from_zero else f"base.{param}"]
    suffix = "0" if comparison.from_zero else ""
    deltas = [inputs[f"{expert}{suffix}.{param}"] - base for expert in comparison.experts]
    return Parts(param, base, deltas, comparison.weights, comparison.experts)


def compare_exact(
    comparison: Comparison, inputs: Mapping[str, Tensor], found: Mapping[str, Tensor], number: int
) -> bool:
    """Prints the largest relative difference over all tensors."""
    worst = 0.0
    for param in SHAPES:
        parts = parts_of(comparison, inputs, param)
        ours = METHODS[comparison.method].combine(parts, **comparison.options)
        gap = (parts.base + ours - found[f"{number}.{param}"]).abs().max()
        worst = max(worst, float(gap / ours.abs().max()))
    note = "" if comparison.judged else " (another formula)"
    print(f"{comparison.name:44} largest relative difference {worst:.1e}{note}")
    return worst < LARGEST or not comparison.judged


def compare_chance(
    comparison: Comparison, inputs: Mapping[str, Tensor], found: Mapping[str, Tensor], number: int
) -> bool:
    """Prints how far both distributions are apart, and how far with another density."""
    right = distances(comparison, comparison.options, inputs, found, number)
    wrong = distances(
        comparison, {**comparison.options, "density": 1.1 * DENSITY}, inputs, found, number
    )
    for note, (z_mean, z_variance, p) in (("", right), (", with a density of .44 for .4", wrong)):
        shown = f"{comparison.name + note:44} largest |z| of means {abs(z_mean).max():.1f}"
        print(shown, "of variances", sep=", ", end=" ")
        print(f"{abs(z_variance).max():.1f}, smallest p {p.min():.1g}; {len(p)} buckets")
    return bool(
        abs(right[0]).max() < LARGEST_Z
        and abs(right[1]).max() < LARGEST_Z
        and right[2].min() > SMALLEST_P
    )


def distances(
    comparison: Comparison,
    options: Mapping[str, float],
    inputs: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    number: int,
) -> tuple[Any, Any, Any]:
    """z of means, z of variances and p for every bucket of every tensor."""
    rows = []
    for param in SHAPES:
        parts = parts_of(comparison, inputs, param)
        seeds = range(NUM_SEEDS)
        ours = torch.stack(
            [METHODS[comparison.method].combine(parts, seed=seed, **options) for seed in seeds]
        )
        mean = METHODS["linear"].combine(parts)
        one, other = ours.mul(comparison.factor), found[f"{number}.{param}"]
        if comparison.method.startswith("della"):
            one, other = (kept * mean for kept in ((one != 0).float(), (other != 0).float()))
        rows += buckets(
            one.flatten(1).double().numpy(),
            other.flatten(1).double().numpy(),
            mean.flatten().numpy(),
        )
    z_mean, z_variance, p = np.array(rows).T
    return z_mean, z_variance, p


def buckets(one_SV: Any, other_SV: Any, mean_V: Any) -> list[tuple[float, float, float]]:
    """(z of means, z of variances, p) of each bucket of values by the magnitude of their mean.

    S: seeds, V: values.
    """
    rows = []
    for places in np.array_split(np.argsort(np.abs(mean_V)), NUM_BUCKETS):
        one, other = (draws[:, places] * np.sign(mean_V[places]) for draws in (one_SV, other_SV))
        squares = [(draws - draws.mean(axis=0)) ** 2 for draws in (one, other)]
        # rounded: a value takes few levels, whose last digits must not set one side before another
        p = ks_2samp(one.ravel().round(4), other.ravel().round(4), method="asymp").pvalue
        rows.append((z_between(one, other), z_between(*squares), float(p)))
    return rows


def z_between(one_SV: Any, other_SV: Any) -> float:
    """z of the difference of two means over seeds and values; seeds are independent."""
    one, other = one_SV.mean(axis=1), other_SV.mean(axis=1)
    return float((one.mean() - other.mean()) / math.sqrt((one.var() + other.var()) / len(one)))


def main() -> None:
    inputs = random_inputs()
    found = theirs(inputs)
    agree = [compare_exact(each, inputs, found, number) for number, each in enumerate(EXACT)]
    agree += [
        compare_chance(each, inputs, found, number)
        for number, each in enumerate(CHANCE, start=len(EXACT))
    ]
    if not all(agree):
        raise SystemExit("some methods differ")


if __name__ == "__main__":
    main()
