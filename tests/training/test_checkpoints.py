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


def three(folder) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(state(step), {"at": step})
    checkpoints.close()
    return Checkpoints(folder, keep=3)


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_a_damaged_newest_is_set_aside_with_its_reason_and_the_one_before_is_used(tmp_path):
    checkpoints, told = three(tmp_path), []
    flip(largest(tmp_path / "3"))
    with pytest.raises(UserError, match="is damaged: .* has other content than was saved"):
        checkpoints.restore(template(state(3)), 3)
    assert checkpoints.newest_whole(told.append) == 2 and (tmp_path / "3").is_dir(), "only looked at"
    assert checkpoints.newest_whole(told.append, set_aside=True) == 2
    assert not (tmp_path / "3").exists() and (tmp_path / "damaged-3").is_dir()
    assert "step 3 is damaged" in told[-1] and "set aside as damaged-3" in told[-1]
    assert checkpoints.restore(template(state(2)), 2)[1] == {"at": 2}
    checkpoints.save(state(3), {"at": 3})
    checkpoints.close()
    assert Checkpoints(tmp_path).newest_whole(told.append) == 3


def test_if_none_is_whole_that_is_an_error_and_goes_on_being_one(tmp_path):
    checkpoints = three(tmp_path)
    for step in (1, 2, 3):
        flip(largest(tmp_path / str(step)))
    for _ in range(2):
        with pytest.raises(UserError, match="holds no checkpoint that is whole"):
            checkpoints.newest_whole(lambda line: None, set_aside=True)
    assert Checkpoints(tmp_path / "new").newest_whole(print) is None


def test_what_a_dead_process_left_half_made_is_no_checkpoint_and_is_cleaned(tmp_path):
    three(tmp_path)
    (tmp_path / "4.saving" / "state").mkdir(parents=True)
    (tmp_path / "4.saving" / "state" / "half").write_text("half")
    checkpoints = Checkpoints(tmp_path, keep=3)
    assert checkpoints.newest_whole(print, set_aside=True) == 3
    checkpoints.save(state(4), {})
    checkpoints.close()
    assert checkpoints.steps() == [2, 3, 4] and not list(tmp_path.glob("*.saving"))


def test_a_process_killed_while_one_takes_the_place_of_another_has_lost_none(tmp_path):
    checkpoints = three(tmp_path)
    (tmp_path / "3").rename(tmp_path / "3.replaced.saving")
    assert checkpoints.newest_whole(print, set_aside=True) == 3


def test_a_save_again_replaces_what_there_is_of_its_step(tmp_path):
    checkpoints = three(tmp_path)
    checkpoints.save(state(3), {"at": "again"})
    checkpoints.wait()
    assert checkpoints.position(3) == {"at": 3}
    checkpoints.save(state(3), {"at": "again"}, again=True)
    checkpoints.close()
    assert checkpoints.position(3) == {"at": "again"} and checkpoints.complaint(3) == ""


def test_a_save_that_fails_behind_the_loop_is_told_at_the_next_step_and_the_older_ones_stay(tmp_path, monkeypatch):
    checkpoints = three(tmp_path)
    monkeypatch.setattr("training.manifest.write", lambda folder: (_ for _ in ()).throw(OSError(28, "No space left")))
    checkpoints.save(state(4), {})
    checkpoints._thread.join()
    with pytest.raises(UserError, match="cannot be written .*No space left") as error:
        checkpoints.check()
    assert "step 3, which is whole" in error.value.mend
    assert checkpoints.steps() == [1, 2, 3]
    checkpoints.check()  # told once


def test_the_best_is_kept_beside_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2, 3, 4):
        checkpoints.save(state(step), {}, best=2)
    checkpoints.close()
    assert checkpoints.steps() == [2, 4]


def test_a_checkpoint_of_before_there_were_manifests_is_still_read(tmp_path):
    import orbax.checkpoint as ocp

    handlers = {"state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler()}
    manager = ocp.CheckpointManager(tmp_path, item_names=("state", "position"), item_handlers=handlers)
    items = {"state": ocp.args.StandardSave(state(4)), "position": ocp.args.JsonSave({"at": 4, "best": {"step": -1}})}
    manager.save(4, args=ocp.args.Composite(**items))
    manager.close()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest_whole(print, set_aside=True) == 4
    restored, position = checkpoints.restore(template(state(4)), 4)
    assert_same(restored, state(4))
    assert position == {"at": 4, "best": {"step": -1}}
    checkpoints.save(state(5), {"at": 5})
    checkpoints.close()
    assert checkpoints.steps() == [5]
