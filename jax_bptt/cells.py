"""Recurrent cells: pure functions of one example, in a `Cell`.

Their steps are written so that they split well: what comes from the input, biases included, is summed before the
product with the state is added to it, so that all of it leaves the loop over time.

Every cell ends in the readout ŷ_t = g(C h_t) of the model that the library is about; with `outputs=None` the state
itself is the output, which is what stands between the layers of a `stack`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, glorot_uniform, orthogonal

from jax_bptt.checks.options import check_count
from jax_bptt.model import Cell

Activation = Callable[[jax.Array], jax.Array]


def elman(
    inputs: int,
    hidden: int,
    outputs: int | None,
    *,
    f: Activation = jnp.tanh,
    g: Activation = jax.nn.identity,
    bias: bool = False,
    output_bias: bool = False,
    recurrent_init: Initializer = orthogonal(),
    input_init: Initializer = glorot_uniform(),
    output_init: Initializer = glorot_uniform(),
    dtype: Any = float,
) -> Cell:
    """The simple recurrent network.

        h_t = f(A h_{t−1} + B x_t [+ b]),    ŷ_t = g(C h_t [+ c])

    Args:
        inputs, hidden, outputs: I, H and O; with `outputs=None` the output is h_t.
        f, g: activations of transition and readout.
        bias, output_bias: whether there is a b, and a c.
        recurrent_init, input_init, output_init: initialisers of A, B and C. Orthogonal recurrent weights keep the norm
            of states and credit (Saxe et al. 2014); the others are Glorot & Bengio's (2010). Biases begin at 0.
        dtype: of params and state; `float` is JAX's default.

    Returns:
        A `Cell` with params `{"A": [H, H], "B": [H, I], "C": [O, H]}` and `"b": [H]`, `"c": [O]` where asked for, and
        state `[B, H]`.

    Raises:
        TypeError, ValueError: if a size is not a positive integer.

    Source:
        J. L. Elman, "Finding structure in time", 1990; A. M. Saxe, J. L. McClelland and S. Ganguli, "Exact solutions
        to the nonlinear dynamics of learning in deep linear neural networks", 2014; X. Glorot and Y. Bengio,
        "Understanding the difficulty of training deep feedforward neural networks", 2010.
    """
    _check_sizes(inputs, hidden, outputs)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        key_A, key_B, key_C = jax.random.split(key, 3)
        params = {"A": recurrent_init(key_A, (hidden, hidden), dtype), "B": input_init(key_B, (hidden, inputs), dtype)}
        if bias:
            params["b"] = jnp.zeros(hidden, dtype)
        return params | _init_readout(key_C, (outputs, hidden), output_bias, output_init, dtype)

    def step(params: Any, h_tm1: jax.Array, x_t: jax.Array) -> tuple[jax.Array, jax.Array]:
        from_x = params["B"] @ x_t
        h_t = f(params["A"] @ h_tm1 + (from_x + params["b"] if bias else from_x))
        return h_t, g(_readout(params, h_t))

    return Cell(init, lambda batch_size: jnp.zeros((batch_size, hidden), dtype), step)


def gru(
    inputs: int,
    hidden: int,
    outputs: int | None,
    *,
    g: Activation = jax.nn.identity,
    bias: bool = True,
    output_bias: bool = False,
    recurrent_init: Initializer = orthogonal(),
    input_init: Initializer = glorot_uniform(),
    output_init: Initializer = glorot_uniform(),
    dtype: Any = float,
) -> Cell:
    """The gated recurrent unit, with PyTorch's equations (the reset gate after the product) and order of gates.

        r_t = σ(W_ir x_t + b_ir + W_hr h_{t−1} + b_hr)
        z_t = σ(W_iz x_t + b_iz + W_hz h_{t−1} + b_hz)
        n_t = tanh(W_in x_t + b_in + r_t ⊙ (W_hn h_{t−1} + b_hn))
        h_t = (1 − z_t) ⊙ n_t + z_t ⊙ h_{t−1},    ŷ_t = g(C h_t [+ c])

    Args:
        inputs, hidden, outputs, g, output_bias, dtype: as for `elman`.
        bias: whether there are b_ih and b_hh.
        recurrent_init, input_init, output_init: as for `elman`, of the weights of each gate by itself.

    Returns:
        A `Cell` with params `{"W_ih": [3H, I], "W_hh": [3H, H], "b_ih": [3H], "b_hh": [3H], "C": [O, H]}`, the gates
        stacked in the order r, z, n, and state `[B, H]`.

    Raises:
        TypeError, ValueError: if a size is not a positive integer.

    Source:
        K. Cho, B. van Merriënboer, C. Gulcehre, D. Bahdanau, F. Bougares, H. Schwenk and Y. Bengio, "Learning phrase
        representations using RNN encoder–decoder for statistical machine translation", 2014; initialisers as `elman`.
    """
    _check_sizes(inputs, hidden, outputs)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        key_gates, key_C = jax.random.split(key)
        params = _init_gates(key_gates, 3, (hidden, inputs), bias, recurrent_init, input_init, dtype)
        return params | _init_readout(key_C, (outputs, hidden), output_bias, output_init, dtype)

    def step(params: Any, h_tm1: jax.Array, x_t: jax.Array) -> tuple[jax.Array, jax.Array]:
        from_x = params["W_ih"] @ x_t
        from_h = params["W_hh"] @ h_tm1
        if bias:
            from_x, from_h = from_x + params["b_ih"], from_h + params["b_hh"]
        (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(from_x, 3), jnp.split(from_h, 3)
        r_t = jax.nn.sigmoid(x_r + h_r)
        z_t = jax.nn.sigmoid(x_z + h_z)
        n_t = jnp.tanh(x_n + r_t * h_n)
        h_t = (1 - z_t) * n_t + z_t * h_tm1
        return h_t, g(_readout(params, h_t))

    return Cell(init, lambda batch_size: jnp.zeros((batch_size, hidden), dtype), step)


def lstm(
    inputs: int,
    hidden: int,
    outputs: int | None,
    *,
    g: Activation = jax.nn.identity,
    bias: bool = True,
    output_bias: bool = False,
    forget_bias: float = 1.0,
    recurrent_init: Initializer = orthogonal(),
    input_init: Initializer = glorot_uniform(),
    output_init: Initializer = glorot_uniform(),
    dtype: Any = float,
) -> Cell:
    """Long short-term memory, with PyTorch's equations and order of gates.

        i_t = σ(W_ii x_t + b_ii + W_hi h_{t−1} + b_hi)
        f_t = σ(W_if x_t + b_if + W_hf h_{t−1} + b_hf)
        g_t = tanh(W_ig x_t + b_ig + W_hg h_{t−1} + b_hg)
        o_t = σ(W_io x_t + b_io + W_ho h_{t−1} + b_ho)
        c_t = f_t ⊙ c_{t−1} + i_t ⊙ g_t
        h_t = o_t ⊙ tanh(c_t),    ŷ_t = g(C h_t [+ c])

    Args:
        inputs, hidden, outputs, g, output_bias, dtype: as for `elman`.
        bias, recurrent_init, input_init, output_init: as for `gru`.
        forget_bias: where the forget gate's bias begins. With 1 the memory is kept at the outset (Gers, Schmidhuber &
            Cummins 2000; Jozefowicz, Zaremba & Sutskever 2015). The other biases begin at 0.

    Returns:
        A `Cell` with params `{"W_ih": [4H, I], "W_hh": [4H, H], "b_ih": [4H], "b_hh": [4H], "C": [O, H]}`, the gates
        stacked in the order i, f, g, o, and state `(h, c)`, each `[B, H]`.

    Raises:
        TypeError, ValueError: if a size is not a positive integer.

    Source:
        S. Hochreiter and J. Schmidhuber, "Long short-term memory", 1997; F. A. Gers, J. Schmidhuber and F. Cummins,
        "Learning to forget: continual prediction with LSTM", 2000; R. Jozefowicz, W. Zaremba and I. Sutskever, "An
        empirical exploration of recurrent network architectures", 2015; other initialisers as `elman`.
    """
    _check_sizes(inputs, hidden, outputs)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        key_gates, key_C = jax.random.split(key)
        params = _init_gates(key_gates, 4, (hidden, inputs), bias, recurrent_init, input_init, dtype)
        if bias:
            params["b_ih"] = params["b_ih"].at[hidden : 2 * hidden].set(forget_bias)
        return params | _init_readout(key_C, (outputs, hidden), output_bias, output_init, dtype)

    def step(
        params: Any, state: tuple[jax.Array, jax.Array], x_t: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h_tm1, c_tm1 = state
        from_x = params["W_ih"] @ x_t
        if bias:
            from_x = from_x + (params["b_ih"] + params["b_hh"])
        a_i, a_f, a_g, a_o = jnp.split(params["W_hh"] @ h_tm1 + from_x, 4)
        i_t, f_t, o_t = _sigmoids(a_i, a_f, a_o)
        c_t = f_t * c_tm1 + i_t * jnp.tanh(a_g)
        h_t = o_t * jnp.tanh(c_t)
        return (h_t, c_t), g(_readout(params, h_t))

    def initial_state(batch_size: int) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros((batch_size, hidden), dtype), jnp.zeros((batch_size, hidden), dtype)

    return Cell(init, initial_state, step)


@jax.custom_jvp
def _sigmoids(*gates: jax.Array) -> tuple[jax.Array, ...]:
    """The sigmoid of each gate; all at once on CPU, where XLA does not vectorise a kernel with several of them."""

    def at_once(*gates: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(jnp.split(jax.nn.sigmoid(jnp.concatenate(gates)), len(gates)))

    def one_by_one(*gates: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(map(jax.nn.sigmoid, gates))

    return jax.lax.platform_dependent(*gates, cpu=at_once, default=one_by_one)


@_sigmoids.defjvp
def _(gates, tangents):
    values = _sigmoids(*gates)
    return values, tuple(t * (s * (1 - s)) for s, t in zip(values, tangents, strict=True))


def stack(cells: Sequence[Cell]) -> Cell:
    """Several layers: the output of each cell at step t is the input of the next one at step t.

    Args:
        cells: the layers, the one that reads the inputs first. All but the last as a rule have `outputs=None`.

    Returns:
        A `Cell` whose params and state are tuples of the layers', and whose output is that of the last layer.

    Raises:
        TypeError: if one of them is not a `Cell`.
        ValueError: if there is none.

    Source:
        A. Graves, A. Mohamed and G. Hinton, "Speech recognition with deep recurrent neural networks", 2013.
    """
    if isinstance(cells, Cell) or not all(isinstance(cell, Cell) for cell in cells):
        raise TypeError(f"cells: found {cells!r}, expected a sequence of Cells")
    if not cells:
        raise ValueError("cells: found an empty sequence, expected at least one Cell")

    def init(key: jax.Array) -> tuple[Any, ...]:
        return tuple(cell.init(k) for cell, k in zip(cells, jax.random.split(key, len(cells)), strict=True))

    def initial_state(batch_size: int) -> tuple[Any, ...]:
        return tuple(cell.initial_state(batch_size) for cell in cells)

    def step(params: Any, state: Any, x: Any) -> tuple[tuple[Any, ...], Any]:
        new_state = []
        for cell, layer_params, layer_state in zip(cells, params, state, strict=True):
            layer_state, x = cell.step(layer_params, layer_state, x)
            new_state.append(layer_state)
        return tuple(new_state), x

    return Cell(init, initial_state, step)


def _check_sizes(inputs: int, hidden: int, outputs: int | None) -> None:
    for name, size in (("inputs", inputs), ("hidden", hidden), ("outputs", 1 if outputs is None else outputs)):
        check_count(name, size)


def _init_gates(
    key: jax.Array, gates: int, sizes: tuple[int, int], bias: bool, recur: Initializer, read: Initializer, dtype: Any
) -> dict[str, jax.Array]:
    """Weights of several gates, each initialised by itself and then stacked."""
    (hidden, inputs), (keys_ih, keys_hh) = sizes, jax.random.split(key, (2, gates))
    W_ih = jnp.concatenate([read(k, (hidden, inputs), dtype) for k in keys_ih])
    W_hh = jnp.concatenate([recur(k, (hidden, hidden), dtype) for k in keys_hh])
    biases = {name: jnp.zeros(gates * hidden, dtype) for name in ("b_ih", "b_hh") if bias}
    return {"W_ih": W_ih, "W_hh": W_hh} | biases


def _init_readout(
    key: jax.Array, sizes: tuple[int | None, int], bias: bool, init: Initializer, dtype: Any
) -> dict[str, jax.Array]:
    if sizes[0] is None:
        return {}
    return {"C": init(key, sizes, dtype)} | ({"c": jnp.zeros(sizes[0], dtype)} if bias else {})


def _readout(params: Any, h_t: jax.Array) -> jax.Array:
    """C h_t + c, as far as the params have them."""
    if "C" not in params:
        return h_t
    y_t = params["C"] @ h_t
    return y_t + params["c"] if "c" in params else y_t
