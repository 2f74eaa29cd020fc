"""Losses of one step of one example, `loss(output, target) -> scalar`, over those of optax."""

import jax
import jax.numpy as jnp
import optax


def squared_error(output: jax.Array, target: jax.Array) -> jax.Array:
    """Half the squared distance, ℓ = ½‖ŷ − y‖².

    Args:
        output: ŷ, an array of any shape, `[O]` as a rule.
        target: y, an array of the same shape.

    Returns:
        A scalar.

    Raises:
        TypeError: if there is no target.
        ValueError: if the shapes differ.
    """
    if target is None:
        raise TypeError(f"target: found None, expected an array of shape {jnp.shape(output)}, as the output")
    if jnp.shape(output) != jnp.shape(target):
        raise ValueError(
            f"target: found shape {jnp.shape(target)}, expected that of the output, {jnp.shape(output)}, "
            "of one step of one example"
        )
    return jnp.sum(optax.losses.l2_loss(output, target))


def softmax_cross_entropy(output: jax.Array, target: jax.Array) -> jax.Array:
    """Cross-entropy of a softmax with an integer label, ℓ = −log softmax(ŷ)_y, in nats.

    Args:
        output: ŷ, unnormalised log-probabilities, `[O]`, or `[…, O]` for several labels a step, which are summed.
        target: y, labels in 0 … O − 1, integers of `[]`, or `[…]`. Others are not found out, and −1 counts as the last
            one: a mask leaves such steps out.

    Returns:
        A scalar.

    Raises:
        TypeError: if there are no labels, or they are not integers.
        ValueError: if the shape of the labels is not that of the output without its last axis.
    """
    if target is None:
        raise TypeError("target: found None, expected integer labels")
    if not jnp.issubdtype(jnp.result_type(target), jnp.integer):
        raise TypeError(f"target: found dtype {jnp.result_type(target)}, expected integer labels")
    if jnp.ndim(output) == 0 or jnp.shape(output)[:-1] != jnp.shape(target):
        raise ValueError(
            f"target: found labels of shape {jnp.shape(target)} for an output of shape {jnp.shape(output)}, expected "
            "the shape of the output without its last axis, of one step of one example"
        )
    return jnp.sum(optax.losses.softmax_cross_entropy_with_integer_labels(output, target))
