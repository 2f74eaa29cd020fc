import jax
import jax.numpy as jnp
import numpy as np
import optax
from problems import difference

import jax_bptt as jb
from jax_bptt.command import records
from jax_bptt.command.language_model import Training


def test_horizons_are_kept_with_what_was_trained(tmp_path):
    cell = jb.cells.elman(2, 3, 2)

    def gradient_of(k2):
        return jb.truncated_bptt(cell, jb.losses.squared_error, 1, k2)

    online = jb.training.train_adaptively(gradient_of, optax.sgd(0.1), (1, 2, 4), 0.3)
    begin = online.init(cell.init(jax.random.key(0)), cell.initial_state(2))
    after, _ = online.update(begin, jnp.ones((6, 2, 2)), jnp.ones((6, 2, 2)))
    kept, settings = Training(after, np.asarray([3.0, 2.0]), np.asarray([4, 2])), {"adaptive": 0.3}
    with records.keep_checkpoints(str(tmp_path / "kept"), settings, 5) as save:
        save(kept)
    found = records.find_checkpoint(str(tmp_path / "kept"), settings, begin, 5)
    assert found is not None
    assert difference(found.state, after) == 0
    assert found.bits.tolist() == [3.0, 2.0]
    assert found.horizons.tolist() == [4, 2]
