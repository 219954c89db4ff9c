"""Where parameters lie on a mesh, and what the devices then say to each other. In a process that simulates eight."""

import json
import math
import os

import jax
import pytest

from errors import UserError
from training.communication import Array, Collective, collectives
from training.sharding import lay_out, make_mesh

# The step of a pretraining run on a mesh: its collectives, and what a device holds.
PROGRAM = """
import json, sys
import jax, numpy as np
import tasks
from cli import config as configs
from cli.experiment import assemble
from training import sharding
from training.communication import collectives
config = configs.from_command_line(["train.py", *sys.argv[1:]], "").config
task = tasks.TASKS[config.task].create(config, lambda line: None)
mesh = sharding.make_mesh(config.train.batch_size, **config.mesh)
run = assemble(config, task, mesh)
state = run.layout.template(jax.eval_shape(lambda: run.fresh_state(run.phases[0])))
rows = task.rows("train").load(np.arange(config.train.batch_size), np.zeros(config.train.batch_size, int))
compiled = run.lower(run.phases[0], state, sharding.put_batch(rows, mesh))[0].compile()
held = sum(int(np.prod(x.sharding.shard_shape(x.shape))) for x in jax.tree.leaves(state))
shapes = [leaf.shape for leaf in jax.tree.leaves(run.shapes)]
split = sum("fsdp" in spec for spec in run.layout.specs.values())
said = [[one.kind, [result.shape for result in one.results]] for one in collectives(compiled.as_text())]
whole = sum(x.size for x in jax.tree.leaves(state))
print(json.dumps({"said": said, "held": held, "whole": whole, "shapes": shapes, "split": split}))
"""
LAYERS, BATCH, LENGTH, WIDTH = 2, 24, 32, 64  # no parameter has as many rows as a device has tokens


@pytest.fixture
def step_on(corpus, command, simulated):
    """`step_on("fsdp=8", …)`: what PROGRAM prints of a run on such a mesh."""

    def compile_step(*mesh: str) -> dict:
        words = ["--config=configs/bert_mlm.py:smoke", f"--config.data.train=text:{corpus}"]
        words += ["--config.data.tokenizer=wordpiece:128", "--config.train.histogram_every=0"]
        words += [f"--config.model.num_layers={LAYERS}", f"--config.model.hidden_size={WIDTH}"]
        words += [f"--config.train.batch_size={BATCH}", "--config.model.num_heads=4"]
        words += [f"--config.mesh.{word}" for word in mesh]
        done = command("-c", PROGRAM, *words, env=os.environ | simulated(8))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return compile_step


def is_parameter(shape, shapes) -> bool:
    """Whether a result has a parameter's sides, perhaps turned, or with an axis of 1 before it."""
    sides = sorted(side for side in shape if side != 1)
    return not sides or any(sorted(side for side in other if side != 1) == sides for other in shapes)


def test_data_parallel_devices_add_up_gradients_and_say_nothing_else(step_on):
    found = step_on("data=8")
    assert {kind for kind, _ in found["said"]} == {"all-reduce"}
    assert all(is_parameter(shape, found["shapes"]) for _, results in found["said"] for shape in results)
    assert found["held"] == found["whole"]


def test_fully_sharded_devices_gather_parameters_alone_and_hold_an_eighth(step_on):
    found = step_on("data=1", "fsdp=8")
    assert found["held"] <= found["whole"] / 7
    gathered = [shape for kind, results in found["said"] if kind == "all-gather" for shape in results]
    assert all(is_parameter(shape, found["shapes"]) for shape in gathered), "no activations"
    # Once on the way there, and the kernels of each layer, which are not kept, once on the way back; never a gradient.
    assert found["split"] + 6 * LAYERS <= len(gathered) <= 2 * found["split"]
    assert {kind for kind, _ in found["said"]} <= {"all-gather", "all-reduce", "reduce-scatter"}
    summed = [shape for kind, results in found["said"] if kind != "all-gather" for shape in results]
    assert all(is_parameter(shape, found["shapes"]) for shape in summed)


def test_tensor_parallel_devices_add_up_activations_twice_a_layer_and_way_and_gather_none(step_on):
    found = step_on("data=4", "tensor=2")
    assert {kind for kind, _ in found["said"]} == {"all-reduce"}
    of_activations = [BATCH // 4, LENGTH, WIDTH]
    rows = [BATCH // 4 * LENGTH, WIDTH]
    added = [shape for _, results in found["said"] for shape in results if shape in (of_activations, rows)]
    # Behind attention and feed-forward; on the way back behind query, key, value and up, perhaps each by itself.
    assert 4 * LAYERS <= len(added) <= 6 * LAYERS
    others = [shape for _, results in found["said"] for shape in results if shape not in (of_activations, rows)]
    halves = [[side // 2 if i == at else side for i, side in enumerate(s)] for s in found["shapes"] for at in (0, 1)]
    assert all(is_parameter(shape, found["shapes"] + halves) for shape in others)


def test_collectives_are_read_from_a_programs_text():
    text = """
  %all-reduce.1 = (f32[4,8]{1,0}, bf16[]) all-reduce(%a, %b), replica_groups={{0,1}}
  %ag = (f32[2,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%x), dimensions={0}
  %done = f32[16,8]{1,0} all-gather-done(%ag)
  %other = f32[3]{0} add(%p, %q)
"""
    assert collectives(text) == [
        Collective("all-reduce", [Array((4, 8), 128), Array((), 2)]),
        Collective("all-gather", [Array((16, 8), 512)]),
    ]
    assert collectives(text)[0].bytes == 130


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ({"data": 3}, "3 with 1 devices"),
        ({"fsdp": 2}, "data -1 × fsdp 2 × tensor 1 with 1 devices"),
        ({"data": 2, "fsdp": 2, "tensor": 2}, "data 2 × fsdp 2 × tensor 2 with 1 devices"),
        ({"data": -1, "fsdp": -1}, "at most one axis"),
    ],
)
def test_a_mesh_that_is_not_the_devices_is_refused_with_both_numbers(axes, told):
    with pytest.raises(UserError) as error:
        make_mesh(8, **axes)
    assert told in str(error.value)


def test_an_axis_that_splits_nothing_is_refused():
    class Mesh:
        shape = {"data": 1, "fsdp": 1, "tensor": 4}

    tree = {"encoder": {"kernel": jax.ShapeDtypeStruct((6, 6), "float32")}}
    with pytest.raises(UserError, match="config.mesh.tensor"):
        lay_out(Mesh(), tree)
    Mesh.shape = {"data": 1, "fsdp": 4, "tensor": 1}
    with pytest.raises(UserError, match="config.mesh.fsdp: 4 splits no parameter"):
        lay_out(Mesh(), tree)
    Mesh.shape = {"data": 1, "fsdp": 3, "tensor": 1}
    layout = lay_out(Mesh(), {**tree, "b": jax.ShapeDtypeStruct((4,), "float32")})
    assert "fsdp" in layout.specs["encoder/kernel"] and layout.whole == {"b": ("fsdp",), "encoder/kernel": ()}
    assert math.prod(layout.shapes["encoder/kernel"]) == 36
