import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from jax_bptt.command.language_model import sample, with_embedding


def test_language_model_reads_embeddings():
    cell = jb.cells.gru(4, 5, 7)
    model = with_embedding(cell, 7, 4)
    params = model.init(jax.random.key(0))
    state = jnp.ones(5)
    got = model.step(params, state, jnp.asarray(3))
    want = cell.step(params["cell"], state, params["E"][3])
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert model.initial_state(2).shape == (2, 5)


def test_sample_follows_the_model():
    """A model that is sure that c + 1 comes after c, and, elsewhere, of the unknown character."""
    size = 5

    def step(params, state, token):
        return state, 50.0 * jax.nn.one_hot((token + 1) % size, size)

    model = jb.Cell(lambda key: None, lambda batch: jnp.zeros((batch, 1)), step)
    drawn = sample(model, None, jax.random.key(0), jnp.asarray([1, 2]), 9, 1.0)
    assert drawn.shape == (9,)
    np.testing.assert_array_equal(drawn[:2], [3, 4])
    assert (drawn != 0).all()  # where the model would draw it, something else is drawn
    again = sample(model, None, jax.random.key(0), jnp.asarray([1, 2]), 9, 1.0)
    np.testing.assert_array_equal(drawn, again)
