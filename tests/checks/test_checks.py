"""Bad input gets an error, before anything is compiled, that names the argument, what was found and what expected."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb

T, B, I, H, O = 5, 2, 3, 4, 2
CELL = jb.cells.elman(I, H, O)
GOOD = {
    "params": CELL.init(jax.random.key(0)),
    "state": np.zeros((B, H), "float32"),
    "xs": np.zeros((T, B, I), "float32"),
    "targets": np.zeros((T, B, O), "float32"),
}
GOOD["params"] = jax.tree.map(lambda p: np.asarray(p, "float32"), GOOD["params"])
FUNCTIONS = {
    "bptt": jb.bptt,
    "state_gradients": jb.state_gradients,
    "reference.bptt": jb.reference.bptt,
    "truncated_bptt": functools.partial(jb.truncated_bptt, k1=2, k2=3),
    "reference.truncated_bptt": functools.partial(jb.reference.truncated_bptt, k1=2, k2=3),
}


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    """Fails a test whose bad input gets as far as a loop over time."""

    def fail(*args, **kwargs):
        raise AssertionError("a loop was traced before the input was refused")

    monkeypatch.setattr(jax.lax, "scan", fail)


@pytest.fixture(params=FUNCTIONS)
def refuses(request):
    """Checks that a gradient function refuses the call, with an error and a message."""

    def check(error, message, model=CELL, loss=jb.losses.squared_error, **changes):
        with pytest.raises(error, match=message):
            FUNCTIONS[request.param](model, loss)(**(GOOD | changes))

    return check


OPTIONS = [
    ({"reduction": "average"}, ValueError, "reduction: found 'average', expected one of 'sum', 'mean'"),
    ({"reduction": None}, ValueError, "reduction: found None, expected one of 'sum', 'mean'"),
    ({"save": "everything"}, ValueError, "save: found 'everything', expected one of 'dots', 'states', 'boundaries'"),
    ({"save": True}, ValueError, "save: found True, expected one of"),
    ({"window": 0}, ValueError, "window: found 0, expected at least 1"),
    ({"window": -3}, ValueError, "window: found -3, expected at least 1"),
    ({"window": 2.0}, TypeError, r"window: found 2\.0 of type float, expected a positive integer"),
    ({"window": True}, TypeError, "window: found True, expected a positive integer"),
    ({"argnums": 3}, ValueError, r"argnums: found 3, expected 0 \(params\), 1 \(state\), 2 \(xs\)"),
    ({"argnums": (0, 0)}, ValueError, r"argnums: found \(0, 0\), expected"),
    ({"argnums": ()}, ValueError, r"argnums: found \(\), expected"),
    ({"burn_in": -1}, ValueError, "burn_in: found -1, expected at least 0"),
    ({"burn_in": 1.0}, TypeError, r"burn_in: found 1\.0 of type float, expected an integer of at least 0"),
    ({"k1": 0}, ValueError, "k1: found 0, expected at least 1"),
    ({"k2": 2.5}, TypeError, r"k2: found 2\.5 of type float, expected a positive integer"),
    (
        {"k1": 5},
        ValueError,
        r"k2: found 3, expected at least k1 = 5, since k1 - k2 = 2 .* would be dropped; use k1 = 3",
    ),
    ({"losses": "some"}, ValueError, "losses: found 'some', expected one of 'newest', 'all', 'last'"),
    ({"context": 3}, ValueError, "context: found 3, expected a multiple of k1 = 2"),
    ({"parallel": 0}, ValueError, "parallel: found 0, expected at least 1"),
    ({"argnums": "params"}, TypeError, "argnums: found 'params', expected an integer or a sequence of integers"),
]


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (make, options, error, message)
        for make in FUNCTIONS.values()
        for options, error, message in OPTIONS
        if set(options) <= set(inspect.signature(make).parameters)
    ],
)
def test_options(make, options, error, message):
    with pytest.raises(error, match=message):
        make(CELL, jb.losses.squared_error, **options)


@pytest.mark.parametrize("make", FUNCTIONS.values())
def test_model_and_loss_are_functions(make):
    with pytest.raises(TypeError, match=r"model: found dict, expected a function step\(params, state, x\)"):
        make({}, jb.losses.squared_error)
    with pytest.raises(TypeError, match=r"loss: found 'mse' of type str, expected a function loss\(output, target\)"):
        make(CELL, "mse")


def test_a_traced_window():
    with pytest.raises(TypeError, match=r"window: found .*, expected a positive integer"):
        jax.jit(lambda window: jb.bptt(CELL, jb.losses.squared_error, window=window)(**GOOD))(3)


def test_time_axes(refuses):
    refuses(
        ValueError,
        r"targets: found 4 time steps \(shape \(4, 2, 2\)\), expected 5 as in xs \(shape \(5, 2, 3\)\)",
        targets=np.zeros((4, B, O)),
    )
    xs = {"a": np.zeros((T, B, I)), "b": np.zeros((T + 1, B))}
    refuses(ValueError, r"xs\['b'\]: found 6 time steps .* expected 5 as in xs\['a'\]", xs=xs)
    refuses(ValueError, r"xs: found shape \(0, 2, 3\) with T = 0 time steps", xs=np.zeros((0, B, I)))


def test_batch_axes(refuses):
    refuses(
        ValueError,
        r"state: found a batch of 3 \(shape \(3, 4\), batch on axis 0\), expected 2 as in xs",
        state=np.zeros((3, H), "float32"),
    )
    refuses(ValueError, r"targets: found a batch of 3 .* expected 2 as in xs", targets=np.zeros((T, 3, O)))
    refuses(ValueError, r"xs: found shape \(5, 0, 3\) with B = 0 examples", xs=np.zeros((T, 0, I)))


def test_axes_that_are_missing(refuses):
    refuses(ValueError, r"xs: found shape \(5,\), expected \[T, B, …\]", xs=np.zeros(T))
    refuses(ValueError, r"targets: found shape \(5,\), expected \[T, B, …\]", targets=np.zeros(T))
    refuses(ValueError, r"state: found shape \(\), expected \[B, …\]", state=0.0)
    refuses(ValueError, "state: found no arrays in it, expected arrays of", state=())
    refuses(TypeError, r"(?s)NoneType.*xs has no arrays in it: the step gets it as it is", xs=None)


def test_leaves_that_are_no_arrays(refuses):
    refuses(TypeError, r"params\['f'\]: found .*tanh.*, expected an array", params=GOOD["params"] | {"f": jnp.tanh})
    refuses(TypeError, r"targets\[0\]: found 'a' of type str, expected an array", targets=["a"])
    shape = jax.ShapeDtypeStruct((T, B, I), "float32")
    refuses(TypeError, r"xs: found no more than ShapeDtypeStruct\(.*, expected an array", xs=shape)


def test_mask(refuses):
    refuses(ValueError, r"mask: found shape \(4,\), expected \[T\] = \(5,\) or \[T, B\] = \(5, 2\)", mask=np.ones(4))
    refuses(ValueError, r"mask: found shape \(2, 5\), expected", mask=np.ones((B, T)))
    refuses(TypeError, "mask: found dtype complex128, expected booleans or real numbers", mask=np.ones(T) * 1j)
    refuses(TypeError, r"mask: found .* of type list, expected an array of \[T\] or \[T, B\]", mask=[True] * T)


def test_reset(refuses):
    refuses(
        ValueError,
        r"reset: found shape \(4,\), expected \[T\] = \(5,\) or \[T, B\] = \(5, 2\)",
        reset=np.zeros(4, bool),
    )
    refuses(TypeError, "reset: found dtype float64, expected booleans", reset=np.zeros(T))
    reset = np.zeros((T, B), bool)
    refuses(ValueError, "reset_state: found one, but no reset", reset_state=np.zeros((B, H), "float32"))
    refuses(
        ValueError,
        r"reset_state: found shape \(4,\), expected \(2, 4\) as in the state",
        reset=reset,
        reset_state=np.zeros(H, "float32"),
    )
    refuses(
        TypeError,
        "reset_state: found dtype float64, expected float32 as in the state",
        reset=reset,
        reset_state=np.zeros((B, H)),
    )
    refuses(TypeError, "reset_state: found structure", reset=reset, reset_state=(np.zeros((B, H)),))


@pytest.mark.parametrize("make", FUNCTIONS.values())
def test_burn_in_and_context_leave_steps(make):
    with pytest.raises(ValueError, match="burn_in: found 5, expected less than the 5 time steps"):
        make(CELL, jb.losses.squared_error, burn_in=5)(**GOOD)
    if "context" in inspect.signature(make).parameters:
        with pytest.raises(ValueError, match=r"context: found 4, expected less than the 4 .* after the burn-in"):
            make(CELL, jb.losses.squared_error, burn_in=1, context=4)(**GOOD)


def test_traced_k1_and_k2():
    for changes in ({"k1": 0}, {"k2": 0}):
        (name,) = changes

        def call(k, name=name):
            return jb.truncated_bptt(CELL, jb.losses.squared_error, **({"k1": 2, "k2": 3} | {name: k}))(**GOOD)

        with pytest.raises(TypeError, match=rf"{name}: found .*, expected a positive integer"):
            jax.jit(call)(2)


def test_a_step_that_returns_no_pair(refuses):
    refuses(TypeError, r"model: found a step that returns .*, expected a pair \(state, output\)", lambda p, h, x: h)


def test_a_step_that_returns_another_state(refuses):
    refuses(
        TypeError,
        r"model: found a step that returns a state of structure PyTreeDef\(\(\*, \*\)\), expected .* PyTreeDef\(\*\)",
        lambda p, h, x: ((h, h), h[:O]),
    )
    refuses(
        ValueError,
        r"model: found a step that returns state of shape \(2,\), expected \(4,\)",
        lambda p, h, x: (h[:O], h[:O]),
    )
    refuses(
        TypeError,
        "model: found a step that returns state of dtype bfloat16, expected float32",
        lambda p, h, x: (h.astype(jnp.bfloat16), h[:O]),
    )
    refuses(
        ValueError,
        r"model: found a step that returns state\['h'\] of shape \(1, 4\), expected \(4,\)",
        lambda p, s, x: ({"h": s["h"][None]}, x[:O]),
        state={"h": np.zeros((B, H))},
    )


def test_a_step_that_was_written_for_a_batch(refuses):
    message = "model: found a step that was written for a batch"

    def with_axes(params, h, x):
        h = jnp.tanh(jnp.einsum("bh,gh->bg", h, params["A"]) + jnp.einsum("bi,hi->bh", x, params["B"]))
        return h, jnp.einsum("bh,oh->bo", h, params["C"])

    refuses(ValueError, message, with_axes)

    def with_batched_state(params, h, x):
        return jnp.tanh(h + jnp.zeros((h.shape[0], 1)) + x.sum(-1, keepdims=True)), h

    refuses(ValueError, message, with_batched_state)


def test_arrays_that_lack_their_batch_axis(refuses):
    """A shift register of one sequence, which would take a batch of any size as well."""
    message = "or arrays that lack their batch axis: expected a state of .* and xs of "
    arrays = {"state": np.zeros(I), "xs": np.zeros((T, I)), "targets": np.zeros((T, I))}
    refuses(ValueError, message, lambda p, h, x: (jnp.concatenate([h[1:], x[:1]]), h), **arrays)


def test_an_argument_that_there_is_not_is_refused_by_a_name_that_users_know(refuses):
    refuses(TypeError, r"^(gradient|deltas)\(\) got an unexpected keyword argument 'resets'", resets=np.zeros(T, bool))


def test_errors_of_the_step_and_the_loss_say_what_they_were_called_with():
    def step(params, h, x):
        raise KeyError("no such weight")

    with pytest.raises(KeyError) as caught:
        jb.bptt(step, jb.losses.squared_error)(**GOOD)
    (note,) = (note for note in caught.value.__notes__ if "step(params, state, x) of one example" in note)
    assert "float32[4]" in note
    assert "float32[3]" in note
    with pytest.raises(ValueError, match="target: found shape") as caught:
        jb.bptt(CELL, jb.losses.squared_error)(**(GOOD | {"targets": np.zeros((T, B, O + 1))}))
    assert any("loss(output, target) of one example" in note for note in caught.value.__notes__)


def test_loss_value(refuses):
    refuses(
        ValueError,
        r"loss: found a function that returns an array of shape \(2,\) and dtype float32, expected a scalar",
        loss=lambda y, t: (y - t) ** 2,
        targets=GOOD["targets"].astype("float32"),
    )
    refuses(ValueError, "loss: found a function that returns .* expected a scalar", loss=lambda y, t: (y.sum(), t))
    refuses(
        TypeError,
        "loss: found a function that returns dtype int32, expected a real",
        loss=lambda y, t: jnp.argmax(y).astype("int32"),
    )
    refuses(
        TypeError,
        "loss: found a function that returns dtype complex64, expected a real",
        loss=lambda y, t: y.sum() * jnp.complex64(1j),
    )


@pytest.mark.parametrize("make", [jb.bptt, jb.reference.bptt])
def test_argnums_on_what_has_no_derivative(make):
    message = r"argnums: found 2, which asks for the gradient with respect to xs, but xs has dtype int\d+"
    with pytest.raises(TypeError, match=message):
        make(CELL, jb.losses.squared_error, argnums=2)(**(GOOD | {"xs": np.zeros((T, B, I), int)}))
    with pytest.raises(
        TypeError, match=r"argnums: found 0, .* with respect to params, but params\['n'\] has dtype int"
    ):
        make(CELL, jb.losses.squared_error)(**(GOOD | {"params": GOOD["params"] | {"n": 3}}))
