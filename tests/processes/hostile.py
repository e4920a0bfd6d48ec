"""Completions that a policy may write to hurt a verifier, by what they are."""

HANG = {
    "a tower of powers": r"\boxed{9^{9^{9^{9}}}}",
    "a power of ten": r"\boxed{10^{10^{10}}}",
    "a factorial": r"\boxed{100000000!}",
    "a factorial of a factorial": r"\boxed{((9!)!)!}",
    "a sum of many terms": r"\boxed{\sum_{k=1}^{10^9} k^k}",
    "a product to expand": r"$\boxed{(x+y+z)^{200}}$",
    "binomials": r"\boxed{\binom{10^{9}}{10^{8}}}",
}
"""These take sympy longer, or more memory, than any machine has."""

SLOW = {
    "deep fractions": r"\boxed{" + r"\frac{1}{1+" * 150 + "1" + "}" * 150 + "}",
    "an integral": r"\boxed{\int_0^1 e^{e^{e^x}} dx}",
}
"""These take sympy about 2 s: whether they are verified depends on the machine."""

STRAIN = {
    "a tower of twos": r"\boxed{2^{2^{2^{2^{2}}}}}",
    "deep brackets": r"\boxed{" + "(" * 3000 + "1" + ")" * 3000 + "}",
    "deep braces": r"\boxed{" + "{" * 1500 + "1" + "}" * 1500 + "}",
    "a long sum": "$" + "1+" * 20000 + "1$",
    "megabytes": "7 + " * 500_000,
    "many dollars": "$" * 200_000,
    "many boxes": r"\boxed{" * 50_000,
    "many digits": r"\boxed{" + "9" * 100_000 + "}",
    "5,000 digits": r"\boxed{" + "9" * 5_000 + "}",
    "a root of a root": r"\boxed{" + r"\sqrt{" * 300 + "2" + "}" * 300 + "}",
    "lone surrogates": "\\boxed{\ud800}",
    "null characters": "\\boxed{\x00}",
}
"""These are long or deep."""
