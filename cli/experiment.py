"""What a config and its task compute, put together of models and the training engine."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from errors import UserError
from models import parameters
from models.lora import Lora
from training import optimizer as optimizers
from training import sharding
from training.phases import Phase, PhaseOptimizer, chosen_rules, make_phases
from training.step import create_state, empty_totals, evaluated_params, make_histograms, make_train_step


class Run(NamedTuple):
    """What is computed in a run, as functions; nothing has been computed yet.

    Attributes:
        forward: `(params, model_state, batch, key) -> (sums, model_state)`.
        evaluate: the same for an evaluation, `-> ((sums, outputs), model_state)`.
        shapes, state_shapes: of the parameters, and of the model's other state.
        phases: what is trained from which step on.
        model: the module of a state.
        layout: where the state lies.
        optimizer, histograms, fresh_state: of a phase.
        lower: `(phase, state, batch) -> (lowered, totals)`: the step of a phase, to be compiled, and the totals that it
            begins each interval with; of state and batch shapes with shardings will do.
    """

    forward: Callable[..., Any]
    evaluate: Callable[..., Any]
    shapes: Any
    state_shapes: Any
    phases: list[Phase]
    model: Callable[[Any], Any]
    layout: sharding.Layout
    optimizer: Callable[[Phase], PhaseOptimizer]
    lower: Callable[[Phase, Any, Any], tuple[Any, Any]]
    histograms: Callable[[Phase], Any]
    fresh_state: Callable[[Phase], Any]


def assemble(config: Any, task: Any, mesh: sharding.Mesh) -> Run:
    """The model, its loss, the phases of the training and the optimizer, put together."""
    key = jax.random.key(config.seed)
    graphdef, shapes, state_shapes = parameters.structure(task.build)
    lora = Lora(**config.lora)
    shapes = jax.eval_shape(lora.add, shapes, key)
    split, heads = mesh.shape[sharding.TENSOR], getattr(task.model_config, "num_heads", 0)
    if heads % split:
        raise UserError("config.mesh.tensor", f"{split} does not divide {heads} heads", "Give a number that does.")
    layout = sharding.lay_out(mesh, shapes)
    forward = parameters.functional(graphdef, task.loss, lora)
    chosen = config.optimizer
    core = optimizers.make_optimizer(
        chosen.name,
        shapes,
        b1=chosen.b1,
        b2=chosen.b2,
        epsilon=chosen.epsilon,
        weight_decay=chosen.weight_decay,
        decay_rules=chosen.decay_rules,
        l1=chosen.l1,
    )
    schedule = optimizers.make_schedule(
        chosen.schedule,
        learning_rate=chosen.learning_rate,
        warmup_steps=chosen.warmup_steps or round(chosen.warmup_share * config.train.steps),
        steps=config.train.steps,
        final_share=chosen.final_share,
    )
    layers = config.model.get("num_layers", 0)
    trained = chosen_rules(chosen.rules, chosen.layer_decay, layers, bool(lora.rank))

    def optimizer(phase: Phase) -> PhaseOptimizer:
        return PhaseOptimizer(core, phase)

    def forward_of(phase: Phase) -> Callable[..., Any]:
        return layout.gathering(parameters.functional(graphdef, task.loss, lora, trained=phase.rates))

    def train_step(phase: Phase) -> Callable[..., Any]:
        return make_train_step(
            forward_of(phase),
            optimizer(phase),
            schedule,
            seed=config.seed,
            clip_norm=chosen.clip_norm,
            accumulate=config.train.accumulate,
            ema=config.train.ema,
        )

    def lower(phase: Phase, state: Any, batch: Any) -> tuple[Any, Any]:
        empty = sharding.put_replicated(empty_totals(forward, state, batch, config.train.log_every), mesh)
        where = layout.of(state), sharding.replicated(mesh)
        return jax.jit(train_step(phase), donate_argnums=0, out_shardings=where).lower(state, empty, batch), empty

    def histograms(phase: Phase) -> Any:
        count = make_histograms(forward_of(phase), phase, seed=config.seed, accumulate=config.train.accumulate)
        return jax.jit(count, out_shardings=sharding.replicated(mesh))

    def fresh_state(phase: Phase) -> Any:
        params, model_state = parameters.initialize(task.build, key)
        params = lora.add(params, jax.random.fold_in(key, 1))
        return create_state(params, model_state, optimizer(phase), averaged=config.train.ema > 0)

    return Run(
        forward=forward,
        evaluate=layout.gathering(parameters.functional(graphdef, task.evaluate, lora)),
        shapes=shapes,
        state_shapes=state_shapes,
        phases=make_phases(shapes, trained, chosen.phases),
        model=lambda state: nnx.merge(graphdef, lora.merge(evaluated_params(state)), state.get("model_state", {})),
        layout=layout,
        optimizer=optimizer,
        lower=lower,
        histograms=histograms,
        fresh_state=fresh_state,
    )
