import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from errors import UserError
from training import phases, rules
from training.phases import PhaseOptimizer, chosen_rules, enter_phase, layerwise_decay, make_phases, phase_at
from training.step import create_state, empty_totals, make_train_step

KEY = jax.random.key(0)
LAYERS = 3


def params():
    """A small deep linear network whose paths are those of a Transformer."""
    keys = jax.random.split(KEY, LAYERS + 2)
    return {
        "embeddings": {"kernel": jax.random.normal(keys[0], (4, 8)) / 2},
        "encoder": {
            "layers": {str(i): {"kernel": jax.random.normal(keys[i + 1], (8, 8)) / 3} for i in range(LAYERS)},
        },
        "classifier": {"kernel": jax.random.normal(keys[-1], (8, 2)) / 3, "bias": jnp.zeros(2)},
    }


def forward(tree, model_state, batch, key):
    x = batch["x"] @ tree["embeddings"]["kernel"]
    for i in range(LAYERS):
        x = jnp.tanh(x @ tree["encoder"]["layers"][str(i)]["kernel"])
    error = x @ tree["classifier"]["kernel"] + tree["classifier"]["bias"] - batch["y"]
    return {"loss": jnp.square(error).sum(), "weight": jnp.float32(len(error))}, model_state


def batch(seed):
    draw = np.random.default_rng(seed)
    return {"x": draw.normal(size=(16, 4)).astype(np.float32), "y": draw.normal(size=(16, 2)).astype(np.float32)}


FROZEN = ((".*layers/[01]/.*|embeddings/.*", "freeze"), (".*", 1.0))


def train(own_rules, own_phases=(), steps=6, core=None, **settings):
    core = core or optax.scale_by_adam()
    found = make_phases(params(), own_rules, own_phases)
    state = create_state(params(), {}, PhaseOptimizer(core, found[0]))
    norms = []
    for step in range(steps):
        phase = phase_at(found, step)
        if step == phase.start and step:
            state = enter_phase(state, PhaseOptimizer(core, phase))
        function = make_train_step(forward, PhaseOptimizer(core, phase), lambda step: 0.01, seed=0, **settings)
        state, totals = jax.jit(function)(state, empty_totals(forward, state, batch(0)), batch(step))
        norms.append(float(totals["gradient_norm"]))
    return state, norms


def flat(tree):
    return dict(zip(rules.paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))


def test_frozen_parameters_are_byte_identical_and_the_others_move():
    state, _ = train(FROZEN)
    before, after = flat(params()), flat(state["params"])
    for path, leaf in before.items():
        same = leaf.tobytes() == after[path].tobytes()
        assert same == path.startswith(("embeddings", "encoder/layers/0", "encoder/layers/1")), path


def test_frozen_parameters_have_no_moments():
    state, _ = train(FROZEN)
    held = [path for path in rules.paths(state["opt_state"]) if "mu" in path]
    assert sorted(path.split("mu/")[1] for path in held) == [
        "classifier/bias", "classifier/kernel", "encoder/layers/2/kernel",
    ]  # fmt: skip


def test_frozen_parameters_have_no_share_in_the_clip_norm():
    _, norms = train(FROZEN, steps=1)
    gradient = flat(jax.grad(lambda tree: forward(tree, {}, batch(0), None)[0]["loss"] / 16)(params()))
    trained = [g for path, g in gradient.items() if path.startswith(("classifier", "encoder/layers/2"))]
    assert norms[0] == pytest.approx(np.sqrt(sum((g**2).sum() for g in trained)), rel=1e-5)
    assert norms[0] < 0.99 * np.sqrt(sum((g**2).sum() for g in gradient.values()))


def test_no_operations_are_compiled_for_what_is_frozen():
    def flops(own_rules):
        (phase,) = make_phases(params(), own_rules)
        optimizer = PhaseOptimizer(optax.scale_by_adam(), phase)
        state = create_state(params(), {}, optimizer)
        step = make_train_step(forward, optimizer, lambda step: 0.01, seed=0)
        arguments = state, empty_totals(forward, state, batch(0)), batch(0)
        analysis = jax.jit(step).lower(*arguments).compile().cost_analysis()
        return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]

    assert flops(FROZEN) < 0.8 * flops(((".*", 1.0),))


def test_a_rate_scales_the_step_of_its_parameters_alone():
    plain, _ = train(((".*", 1.0),), steps=1)
    scaled, _ = train((("encoder/.*", 0.1), (".*", 1.0)), steps=1)
    start, plain, scaled = flat(params()), flat(plain["params"]), flat(scaled["params"])
    for path, leaf in start.items():
        factor = 0.1 if path.startswith("encoder") else 1.0
        np.testing.assert_allclose(scaled[path] - leaf, factor * (plain[path] - leaf), rtol=1e-3, atol=1e-7)


THAW = ((0, (("classifier/.*", 1.0), (".*", "freeze"))), (3, FROZEN), (5, ((".*", 1.0),)))


def test_each_phase_trains_what_its_rules_say():
    found = make_phases(params(), phases.ALL_ALIKE, THAW)
    assert [(phase.start, phase.end) for phase in found] == [(0, 3), (3, 5), (5, None)]
    assert [len(phase.rates) for phase in found] == [2, 3, 6]
    assert [phase_at(found, step).start for step in (0, 2, 3, 4, 5, 900)] == [0, 0, 3, 3, 5, 5]
    state, _ = train(phases.ALL_ALIKE, THAW, steps=3)
    moved = {p for p, leaf in flat(params()).items() if leaf.tobytes() != flat(state["params"])[p].tobytes()}
    assert moved == {"classifier/bias", "classifier/kernel"}


def test_what_thaws_gets_fresh_moments_and_bias_correction_and_what_goes_on_keeps_its_own():
    """The classifier walks as under one Adam; a layer that thaws at step 3 as under an Adam that is born there."""
    three, _ = train(phases.ALL_ALIKE, THAW, steps=3)
    four, _ = train(phases.ALL_ALIKE, THAW, steps=4)
    path = "encoder/layers/2/kernel"
    gradient = jax.grad(lambda tree: forward(tree, {}, batch(3), None)[0]["loss"] / 16)(three["params"])
    born = optax.scale_by_adam()
    direction, _ = born.update(gradient, born.init(gradient), three["params"])
    moved = flat(three["params"])[path] - flat(four["params"])[path]
    np.testing.assert_allclose(moved, 0.01 * flat(direction)[path], rtol=1e-3, atol=1e-6)
    counts = {p.split("/")[0]: int(leaf) for p, leaf in flat(four["opt_state"]).items() if p.endswith("count")}
    assert counts == {"0": 4, "3": 1}


def test_what_freezes_again_loses_its_moments():
    again = (*THAW, (6, (("classifier/.*", "freeze"), (".*", 1.0))))
    state, _ = train(phases.ALL_ALIKE, again, steps=7)
    assert not any("classifier" in path for path in rules.paths(state["opt_state"]))


def test_layerwise_decay_slows_each_layer_below_the_last():
    (phase,) = make_phases(params(), layerwise_decay(LAYERS, 0.5))
    assert phase.rates["encoder/layers/2/kernel"] == phase.rates["classifier/bias"] == 1.0
    assert phase.rates["encoder/layers/1/kernel"] == 0.5 and phase.rates["encoder/layers/0/kernel"] == 0.25
    assert phase.rates["embeddings/kernel"] == 0.125


@pytest.mark.parametrize(
    ("own_rules", "said"),
    [
        ((("encoder/.*", "freeze"),), "no rule covers"),
        ((("decoder/.*", "freeze"), (".*", 1.0)), "matches no parameter"),
        (((".*", "frozen"),), "'frozen'"),
        (((".*", 0),), "0 for"),
        (((".*", True),), "True"),
        (((".*", "freeze"),), "every parameter is frozen"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(own_rules, said):
    with pytest.raises(UserError, match=said):
        make_phases(params(), own_rules)


@pytest.mark.parametrize(
    ("whole_run", "own_phases", "layer_decay"),
    [
        (phases.ALL_ALIKE, ((1, FROZEN),), 1.0),
        (phases.ALL_ALIKE, ((0, FROZEN), (0, FROZEN)), 1.0),
        (phases.ALL_ALIKE, ((0, FROZEN), ("5", FROZEN)), 1.0),
        (phases.ALL_ALIKE, (FROZEN,), 1.0),
        (FROZEN, ((0, FROZEN),), 1.0),
        (FROZEN, (), 0.9),
    ],
)
def test_options_that_contradict_each_other_are_refused(whole_run, own_phases, layer_decay):
    with pytest.raises(UserError, match="config.optimizer"):
        phases.check(whole_run, own_phases, layer_decay)


def test_partition_and_join_are_inverse():
    parts = rules.partition(params(), lambda path: path.split("/")[0])
    assert set(parts) == {"embeddings", "encoder", "classifier"}
    assert jax.tree.structure(rules.join(*parts.values())) == jax.tree.structure(params())


def test_beside_adapters_the_whole_of_a_backbone_is_frozen_and_its_heads_are_not():
    frozen = ("embeddings/word/embedding", "target_embeddings/word/embedding", "encoder/layers/0/mlp/up/kernel")
    frozen += ("decoder/layers/1/cross_attention/query/kernel", "decoder/norm/scale")
    trained = ("classifier/kernel", "lora/decoder/layers/0/attention/query/a", "output_bias")
    tree = {}
    for path in (*frozen, *trained):
        *above, last = path.split("/")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = np.zeros(1)
    (phase,) = make_phases(tree, chosen_rules(phases.ALL_ALIKE, 1.0, 2, adapters=True))
    assert phase.rates.keys() == set(trained)
