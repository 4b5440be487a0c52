"""Merging as pure functions over tensors: wide sums, one rounding at the end.

proxy(w) = theta_0 + factor * combine(deltas, w), with w on the simplex. `linear` combines as
sum_i w_i delta_i, and factor = k * scale(k) with scale(k) = k ** -exponent and
k = 1 / sum_i w_i^2, the effective number of datasets. With equal weights its proxy is
theta_0 + scale(k) * sum_i delta_i (arXiv 2505.16066, where scale(k) = 1 / k); with exponent 1 it
is theta_0 + sum_i w_i delta_i for any weights (arXiv 2601.17858). METHODS holds every other way to
combine.
"""

from mergetomix.merge.coefficients import coefficients, delta_factor, effective_number, scale
from mergetomix.merge.lora_delta import lora_product, stack_of_peft
from mergetomix.merge.methods import METHODS, OPTIONS
from mergetomix.merge.parts import Parts

__all__ = [
    "METHODS",
    "OPTIONS",
    "Parts",
    "coefficients",
    "delta_factor",
    "effective_number",
    "lora_product",
    "scale",
    "stack_of_peft",
]
