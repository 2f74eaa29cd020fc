import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import difference

import jax_bptt as jb
from jax_bptt.command import records
from jax_bptt.command.language_model import Training


@pytest.mark.parametrize("more", [5, 7])
def test_what_is_told_of_training_is_kept_with_it_and_may_be_lengthened(more, tmp_path):
    cell = jb.cells.elman(2, 3, 2)

    def gradient_of(k2):
        return jb.truncated_bptt(cell, jb.losses.squared_error, 1, k2)

    online = jb.training.train_adaptively(gradient_of, optax.sgd(0.1), (1, 2, 4), 0.3)
    begin = online.init(cell.init(jax.random.key(0)), cell.initial_state(2))
    after, _ = online.update(begin, jnp.ones((6, 2, 2)), jnp.ones((6, 2, 2)))
    kept = Training(after, np.asarray([3.0, 2.0]), np.asarray([4, 2]), np.asarray([np.nan, 2.5]))
    settings, where = {"adaptive": 0.3, "steps": 5}, str(tmp_path / "kept")
    with records.keep_checkpoints(where, settings) as save:
        save(kept)
    found = records.find_checkpoint(where, settings | {"steps": more}, begin)
    assert found is not None
    assert difference(found.state, after) == 0
    assert found.bits.tolist() == [3.0, 2.0]
    assert found.horizons.tolist() == [4, 2]
    np.testing.assert_array_equal(found.held_out, kept.held_out)
    with pytest.raises(ValueError, match="steps was 5 and is 4"):
        records.find_checkpoint(where, settings | {"steps": 4}, begin)
