"""Optimizers and learning-rate schedules by name, from optax.

The transformations here give a direction; the step multiplies it by minus the learning rate of its number, so that the
rate that is logged is the rate that was used and gradient accumulation cannot advance it twice.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from errors import UserError
from training import rules

# How weight decay enters: added to the gradient (L2, before the moments), or to the direction (decoupled, behind them).
COUPLED = ("sgd", "rmsprop", "adam")
DECOUPLED = ("adamw", "lion", "lamb", "adafactor")
OPTIMIZERS = COUPLED + DECOUPLED
SCHEDULES = ("constant", "linear", "cosine", "rsqrt", "exponential")


def make_optimizer(
    name: str,
    params: Any,
    *,
    b1: float,
    b2: float,
    epsilon: float,
    weight_decay: float,
    decay_rules: rules.Rules,
    l1: float = 0.0,
) -> optax.GradientTransformation:
    """A transformation from gradients to descent directions of learning rate 1, for any part of the tree `params`.

    Args:
        name: one of OPTIMIZERS. `sgd` uses `b1` as its momentum, `rmsprop` `b2` as its averaging.
        params: the tree of all parameters, for the decay mask.
        decay_rules: first-match rules; each value, 0 or 1, says whether a parameter has `weight_decay` and `l1`.
        l1: the factor of the sum of absolute values that is added to the loss.
    """
    multipliers = rules.match(decay_rules, params, "config.optimizer.decay_rules")
    decays = dict(zip(rules.paths(params), jax.tree.leaves(multipliers), strict=True))
    for path, value in decays.items():
        if value not in (0, 1):
            raise UserError("config.optimizer.decay_rules", f"{value!r} for {path}", "Give 1 (decays) or 0 (does not).")

    def mask(part: Any) -> Any:
        return rules.map_paths(lambda path, _: bool(decays[path]), part)

    def add_signs(gradients: Any, part: Any) -> Any:
        return jax.tree.map(lambda g, p, m: g + l1 * jnp.sign(p) if m else g, gradients, part, mask(part))

    lasso = [optax.stateless(add_signs)] if l1 else []
    decay = optax.add_decayed_weights(weight_decay, mask) if weight_decay else optax.identity()
    cores = {
        "sgd": lambda: [optax.trace(decay=b1)],
        "rmsprop": lambda: [optax.scale_by_rms(decay=b2, eps=epsilon)],
        "adam": lambda: [optax.scale_by_adam(b1, b2, epsilon)],
        "adamw": lambda: [optax.scale_by_adam(b1, b2, epsilon)],
        "lion": lambda: [optax.scale_by_lion(b1, b2)],
        "lamb": lambda: [optax.scale_by_adam(b1, b2, epsilon)],
        "adafactor": lambda: [
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        ],
    }
    core = cores[name]()
    if name in COUPLED:
        return optax.chain(*lasso, decay, *core)
    if name == "lamb":  # the trust ratio is taken of the direction with its decay
        return optax.chain(*lasso, *core, decay, optax.scale_by_trust_ratio())
    return optax.chain(*lasso, *core, decay)


def make_schedule(
    name: str, *, learning_rate: float, warmup_steps: int, steps: int, final_share: float
) -> Callable[[jax.Array], jax.Array]:
    """The learning rate of each step, counted from 0.

    It climbs linearly over `warmup_steps`, the first step not at 0, and then goes the way of `name` until `steps`:
    `linear`, `cosine` and `exponential` end at `final_share × learning_rate`; `rsqrt` falls with the inverse root of
    the step, as in Vaswani et al. 2017; `constant` stays.
    """
    warmup = max(warmup_steps, 1)

    def schedule(step: jax.Array) -> jax.Array:
        done = jnp.clip((step - warmup_steps) / max(steps - warmup_steps, 1), 0.0, 1.0)
        shapes = {
            "constant": lambda: jnp.ones_like(done),
            "linear": lambda: 1 - (1 - final_share) * done,
            "cosine": lambda: final_share + (1 - final_share) * 0.5 * (1 + jnp.cos(math.pi * done)),
            "rsqrt": lambda: jnp.sqrt(warmup / jnp.maximum(step + 1.0, warmup)),
            "exponential": lambda: final_share**done,
        }
        climb = jnp.minimum((step + 1) / warmup, 1.0)
        return learning_rate * climb * shapes[name]()

    return schedule
