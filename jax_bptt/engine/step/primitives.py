"""What is known of primitives, by their names: which are products, which are elementwise, and which are costly.

An equation that is cheap may as well be computed twice. One that is not listed is costly, unless it seems elementwise;
what is rewritten because it is elementwise is listed.
"""

import math

import jax
import jax.numpy as jnp

from jax_bptt.engine.leaves import concrete
from jax_bptt.engine.step.equations import CALLED, Equation, bind, inner_equations, shape_of


def operations(eqn: Equation) -> float:
    """The floating-point operations of a product; infinite of what else is costly."""
    if not is_product(eqn):
        return math.inf
    (contracted, _), _ = eqn.params["dimension_numbers"]
    length = math.prod(shape_of(eqn.invars[0]).shape[axis] for axis in contracted)
    return 2.0 * concrete(shape_of(eqn.outvars[0]).size) * concrete(length)


def is_product(eqn: Equation) -> bool:
    """Whether an equation is a product of matrices."""
    return eqn.primitive.name == "dot_general"


def is_elementwise(eqn: Equation) -> bool:
    """Whether an equation is one of those that are done where their results are read, and not written."""
    return eqn.primitive.name in _ELEMENTWISE


def is_zero(eqn: Equation) -> bool:
    """Whether an equation makes an array of zeros."""
    if eqn.primitive.name != "broadcast_in_dim" or not jnp.issubdtype(shape_of(eqn.invars[0]).dtype, jnp.number):
        return False  # the value of a float0 is bytes
    return getattr(eqn.invars[0], "val", None) == 0


def is_opaque(eqn: Equation) -> bool:
    """Whether an equation is costly and no product: convolutions, solvers, loops; but draws, and what devices exchange.

    Of what calls others, it is they that count.
    """
    if eqn.primitive.name in _CALLS:
        return any(is_opaque(inside) for inside in inner_equations(eqn))
    known = is_product(eqn) or eqn.primitive.name.startswith(("random_", "threefry", "rng_", "psum", "pvary", "pcast"))
    return is_costly(eqn) and not known and eqn.primitive.name not in ("sharding_constraint", "all_gather", "ppermute")


def is_costly(eqn: Equation) -> bool:
    """Whether an equation is none of those that are as well computed twice, or has one inside that is not."""
    name = eqn.primitive.name
    if name in _CALLS:
        return any(is_costly(eqn) for eqn in inner_equations(eqn))
    return name not in _CHEAP and not _seems_elementwise(eqn)


def _seems_elementwise(eqn: Equation) -> bool:
    """Whether a primitive that is not known has nothing more to say than its operands, and takes scalars as well.

    It is cheap then, as what a release of JAX has anew for derivatives is; what may be rewritten goes by names.
    """
    if eqn.effects or eqn.params.keys() - {"accuracy", "out_dtype"}:
        return False
    shapes = [jax.ShapeDtypeStruct((), shape_of(v).dtype) for v in eqn.invars]
    try:
        made = jax.eval_shape(lambda *operands: bind(eqn, operands, eqn.params), *shapes)
    except Exception:  # whatever its rule for shapes raises, scalars are not for it
        return False
    return all(leaf.shape == () for leaf in made)


_CALLS = CALLED | {"cond", "checkpoint", "remat2", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
_ELEMENTWISE = {
    *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh"),
    *("bitcast_convert_type", "cbrt", "ceil", "clamp", "clz", "complex", "conj", "convert_element_type", "cos"),
    *("cosh", "digamma", "div", "eq", "eq_to", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge"),
    *(
        "gt",
        "imag",
        "integer_pow",
        "is_finite",
        "le",
        "le_to",
        "lgamma",
        "log",
        "log1p",
        "log2",
        "logistic",
        "lt",
        "lt_to",
    ),
    *(
        "max",
        "min",
        "mul",
        "mulhi",
        "ne",
        "neg",
        "nextafter",
        "not",
        "one_minus_square",
        "or",
        "polygamma",
        "population_count",
        "pow",
        "real",
    ),
    *("reduce_precision", "rem", "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic"),
    *("shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor"),
}
_CHEAP = _ELEMENTWISE | {
    # over axes
    *("argmax", "argmin", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "reduce_and", "reduce_max"),
    *("reduce_min", "reduce_or", "reduce_prod", "reduce_sum", "reduce_xor"),
    # moving what is there
    *("broadcast_in_dim", "concatenate", "copy", "copy_p", "dynamic_slice", "dynamic_update_slice", "empty"),
    *("expand_dims", "gather", "iota", "pad", "reshape", "rev", "scatter", "scatter-add", "scatter-max"),
    *("scatter-min", "scatter-mul", "scatter-sub", "slice", "split", "squeeze", "stack", "transpose"),
    "unstack",
    # markers, and keys that are handed on
    *("name", "optimization_barrier", "platform_index", "random_clone", "random_fold_in", "random_seed"),
    *("random_split", "random_unwrap", "random_wrap", "stop_gradient"),
}
