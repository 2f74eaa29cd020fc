"""What to keep of every step, beside the states, for the reverse pass to compute no product of it again.

`least_kept` is a minimum cut between the products of the transition and what its pullback reads: the fewest bytes from
which, with the states, all of that can be had without a product. In turn, a leaf of the state that follows from them
need not be saved (`implied_states`): h_t = o_t ⊙ tanh(c_t) of an LSTM, whose gates are kept. Whether they are worth
their memory depends on how much work it would be to compute them again (`worth_keeping`).
"""

import math
from collections.abc import Container, Iterable, Sequence
from typing import Any

from jax.extend.core import Jaxpr, Var

from jax_bptt.cuts import minimum_cut
from jax_bptt.jaxprs import is_costly, needed, shape_of, variables

KEEP_FROM = 60
"""Operations of products that it must take to compute a byte again for it to be kept.

(Measured on two CPU cores, H from 64 to 256, B from 1 to 128, exact and truncated: a GRU takes 3/8·H operations per
byte; an LSTM, whose h need not be saved then, 2/3·H. Below 60 the time was 0.94 to 1.20 of that with all kept, at a
fifth to two thirds of the memory; above, 1.00 to 1.18.)
"""


def least_kept(
    jaxpr: Jaxpr, level: dict[Var, int], states: Iterable[Any], costly: Iterable[Var], among: Container[Var]
) -> list[Var]:
    """The fewest bytes of a row from which, with the states, what the pullback reads can be had without products.

    Source:
        J. Ansel et al., "PyTorch 2: Faster machine learning through dynamic Python bytecode transformation and graph
        compilation", 2024, for what to save as a minimum cut.
    """
    states = set(variables(states))
    before: dict[Var, list[Var]] = {v: [] for v in costly if v not in states}
    sources, read = list(before), dict[Var, None]()
    for eqn in jaxpr.eqns:
        of_rows = [v for v in dict.fromkeys(variables(eqn.invars)) if level[v] == 1 and v not in states]
        for out in eqn.outvars:
            if level[out] == 2:
                read.update(dict.fromkeys(of_rows))
            elif level[out] == 1 and out not in states:
                before[out] = of_rows
                if is_costly(eqn) and out in among:
                    sources.append(out)
    size = {v: _bytes(v) for v in before}
    too_much = sum(size.values())
    return minimum_cut(before, {v: s if v in among else too_much for v, s in size.items()}, sources, read)


def implied_states(jaxpr: Jaxpr, before: Sequence[Var], known: Iterable[Any]) -> tuple[bool, ...]:
    """Of each leaf of the state after the step, whether what is known and the leaves that are saved tell it, too.

    Without a product and without a side effect; a leaf is taken as saved unless an earlier one made it superfluous.

    Args:
        jaxpr: the transition's; it returns the state.
        before: the state before the step.
        known: what is known beside states.
    """
    known, after = {*variables(known), *jaxpr.constvars}, jaxpr.outvars
    implied = [False] * len(before)
    for i, leaf in enumerate(after):
        saved = [v for j in range(len(before)) if j != i and not implied[j] for v in (before[j], after[j])]
        have = known.union(variables(saved))
        eqns, met = needed(jaxpr, [leaf], have.__contains__)
        made = {v for eqn in eqns for v in eqn.outvars}
        implied[i] = have.issuperset(set(met) - made) and not any(is_costly(eqn) or eqn.effects for eqn in eqns)
    return tuple(implied)


def worth_keeping(jaxpr: Jaxpr, kept: Iterable[Var], spared: Iterable[Var]) -> bool:
    """Whether it takes long enough to compute the products of `jaxpr` again to keep what spares them.

    Args:
        kept: what would be kept.
        spared: what need not be saved then.
    """
    return _work(jaxpr) >= KEEP_FROM * (sum(map(_bytes, kept)) - sum(map(_bytes, spared)))


def _work(jaxpr: Jaxpr) -> float:
    """The floating-point operations of all products; infinite where something costly is none."""
    operations = 0.0
    for eqn in filter(is_costly, jaxpr.eqns):
        if eqn.primitive.name != "dot_general":
            return math.inf
        (contracted, _), _ = eqn.params["dimension_numbers"]
        left: Any = eqn.invars[0].aval
        operations += 2 * shape_of(eqn.outvars[0]).size * math.prod(left.shape[axis] for axis in contracted)
    return operations


def _bytes(variable: Var) -> int:
    shape = shape_of(variable)
    return shape.size * shape.dtype.itemsize
