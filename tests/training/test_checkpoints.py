import jax
import jax.numpy as jnp
import numpy as np
import pytest

from errors import UserError
from training.checkpoints import Checkpoints


def state(step: int, size: int = 64) -> dict:
    key = jax.random.fold_in(jax.random.key(0), step)
    params = {
        "layers": {str(i): {"kernel": jax.random.normal(jax.random.fold_in(key, i), (size, size))} for i in (0, 2, 10)}
    }
    moments = jax.tree.map(jnp.square, params)
    return {
        "params": params,
        "opt_state": (moments, {"count": jnp.asarray(step)}),
        "step": jnp.asarray(step, jnp.int32),
    }


def template(like: dict) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_what_was_saved_comes_back_to_the_bit_with_its_position(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(state(7), {"rows": "abc", "iterator": {"next_index": 7}})
    checkpoints.wait()
    restored, position = Checkpoints(tmp_path / "checkpoints").restore(template(state(7)), 7)
    assert_same(restored, state(7))
    assert position == {"rows": "abc", "iterator": {"next_index": 7}}


def test_a_save_holds_the_state_of_its_step_though_later_steps_take_its_memory(tmp_path):
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, keep=3)
    current = state(3, size=512)
    expected = jax.tree.map(np.array, current)
    checkpoints.save(current, {})
    for _ in range(50):
        current = advance(current)
    jax.block_until_ready(current)
    checkpoints.wait()
    restored, _ = Checkpoints(tmp_path).restore(template(state(3, size=512)), 3)
    assert_same(restored, expected)


def test_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        checkpoints.save(state(step), {})
    checkpoints.close()
    assert Checkpoints(tmp_path).steps() == [3, 4]


def test_folders_that_are_no_whole_checkpoint_are_passed_over(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(5), {})
    checkpoints.close()
    (tmp_path / "900").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "12.orbax-checkpoint-tmp-0").mkdir()
    assert Checkpoints(tmp_path).steps() == [5]


def test_the_parameters_come_without_the_moments(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(5), {})
    checkpoints.close()
    params, model_state = Checkpoints(tmp_path).restore_params(
        5, {"params": template(state(5)["params"]), "model_state": {}}
    )
    assert_same(params, state(5)["params"])
    assert model_state == {}


def test_a_checkpoint_of_other_shapes_is_an_error_that_names_the_parameter(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(5), {})
    checkpoints.close()
    with pytest.raises(UserError, match=r"layers/0/kernel is float32\[64, 64\] there and float32\[32, 32\]"):
        Checkpoints(tmp_path).restore(template(state(5, size=32)), 5)
    other = template(state(5)["params"])
    other["head"] = other["layers"].pop("10")
    with pytest.raises(UserError, match="head/kernel is absent there"):
        Checkpoints(tmp_path).restore_params(5, {"params": other, "model_state": {}})
