"""Which parameters are trained, and at what share of the learning rate: by rules, for a whole run or in phases.

What is frozen is taken apart before the gradient is: it has no gradient, no moments and no share in the clip norm.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import optax

from errors import UserError
from training import rules

Tree = Any
FREEZE = "freeze"
ALL_ALIKE: rules.Rules = ((".*", 1.0),)
RULES, PHASES = "config.optimizer.rules", "config.optimizer.phases"


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of a run in which the same parameters are trained.

    Attributes:
        start, end: its first step, and the one behind its last (None: to the end of the run).
        rates: for each parameter that is trained, by path, what the learning rate is multiplied with.
        since: for each of them, the start of the phase since which it has been trained without a break. Parameters
            that thaw together are a group with moments, and a count of steps for their bias correction, of its own.
    """

    start: int
    end: int | None
    rates: dict[str, float]
    since: dict[str, int]

    def split(self, params: Tree) -> tuple[dict[str, Tree], Tree]:
        """The parameters that are trained, in their groups `{since: tree}`, and those that are frozen."""
        groups = rules.partition(params, lambda path: str(self.since.get(path, FREEZE)))
        frozen = groups.pop(FREEZE, {})
        return groups, frozen


def make_phases(params: Tree, whole_run: rules.Rules, phases: Sequence[tuple[int, rules.Rules]] = ()) -> list[Phase]:
    """The phases of a run, in order; one if `phases` is empty.

    Args:
        params: the tree of all parameters; shapes will do.
        whole_run: first-match rules; a value is `freeze` or a factor of the learning rate.
        phases: `(first step, rules)` pairs, the first at step 0, in place of `whole_run`.

    Raises:
        UserError: as `rules.match` does; or a value, a start or the order of the phases is wrong.
    """
    field = PHASES if phases else RULES
    found: list[Phase] = []
    for start, own_rules in phases or [(0, whole_run)]:
        rates = _rates(own_rules, params, field)
        before = found[-1].since if found else {}
        since = {path: before.get(path, start) for path in rates}
        if found:
            found[-1] = dataclasses.replace(found[-1], end=start)
        found.append(Phase(start, None, rates, since))
    return found


def check(whole_run: Any, phases: Any, layer_decay: float) -> None:
    """Raises UserError for what can be seen without the parameters: the shapes of the options, and two at once."""
    for phase in phases:
        pair = isinstance(phase, tuple) and len(phase) == 2
        if not pair or isinstance(phase[0], bool) or not isinstance(phase[0], int) or not isinstance(phase[1], tuple):
            raise UserError(PHASES, repr(phase), "Give pairs of first step and rules: ((0, (('.*', 1.0),)), …).")
    starts = [start for start, _ in phases]
    if phases and (starts[0] != 0 or sorted(set(starts)) != starts):
        raise UserError(PHASES, f"first steps {starts}", "Begin at step 0, and let each phase begin later.")
    if phases and whole_run != ALL_ALIKE:
        raise UserError(RULES, "given beside config.optimizer.phases", "Give the rules of each phase in phases alone.")
    if layer_decay != 1 and (phases or whole_run != ALL_ALIKE):
        mend = "Give the rates in the rules alone."
        raise UserError("config.optimizer.layer_decay", f"{layer_decay} beside rules or phases", mend)


def phase_at(phases: list[Phase], step: int) -> Phase:
    """The phase that step `step`, counted from 0, belongs to."""
    return next(phase for phase in reversed(phases) if phase.start <= step)


def _rates(own_rules: rules.Rules, params: Tree, field: str) -> dict[str, float]:
    values = zip(rules.paths(params), jax.tree.leaves(rules.match(own_rules, params, field)), strict=True)
    rates = {}
    for path, value in values:
        if value == FREEZE:
            continue
        if isinstance(value, (bool, str)) or not isinstance(value, (int, float)) or not value > 0:
            raise UserError(field, f"{value!r} for {path}", "Give 'freeze' or a factor above 0, such as 0.1.")
        rates[path] = float(value)
    if not rates:
        raise UserError(field, "every parameter is frozen", "Leave something to train: ('classifier/.*', 1.0).")
    return rates


@dataclasses.dataclass(frozen=True)
class PhaseOptimizer:
    """An optax transformation over the parameters of one phase."""

    core: optax.GradientTransformation
    phase: Phase

    def init(self, params: Tree) -> Tree:
        """Fresh moments for what is trained, by group."""
        groups, _ = self.phase.split(params)
        return {name: self.core.init(group) for name, group in groups.items()}

    def update(self, gradients: Tree, opt_state: Tree, groups: Tree) -> tuple[Tree, Tree]:
        """Descent directions times each parameter's factor, and the new moments; all trees by group."""
        directions, new_state = {}, {}
        for name, group in groups.items():
            directions[name], new_state[name] = self.core.update(gradients[name], opt_state[name], group)
            directions[name] = rules.map_paths(lambda path, d: d * self.phase.rates[path], directions[name])
        return directions, new_state


def enter_phase(state: Tree, optimizer: PhaseOptimizer) -> Tree:
    """The state with the moments of a new phase: what goes on being trained keeps its own, what thaws begins afresh."""
    fresh = optimizer.init(state["params"])
    kept = dict(zip(rules.paths(state["opt_state"]), jax.tree.leaves(state["opt_state"]), strict=True))
    return {**state, "opt_state": rules.map_paths(lambda path, leaf: kept.get(path, leaf), fresh)}


def chosen_rules(whole_run: rules.Rules, layer_decay: float, num_layers: int, adapters: bool) -> rules.Rules:
    """The rules of a whole run: the user's own, a layer decay's, or those that train adapters and heads alone."""
    if layer_decay != 1:
        return layerwise_decay(num_layers, layer_decay)
    if adapters and whole_run == ALL_ALIKE:
        return (("(.*embeddings|encoder|decoder)/.*", FREEZE), (".*", 1.0))
    return whole_run


def layerwise_decay(num_layers: int, decay: float) -> rules.Rules:
    """Rules that multiply the learning rate by `decay` for each layer further from the head (Howard & Ruder 2018).

    The last layer and what is above it train at the full rate, the layer below at `decay`, the embeddings slowest.
    """
    layers = [(f"(encoder|decoder)/layers/{i}/.*", decay ** (num_layers - 1 - i)) for i in range(num_layers)]
    return ((".*embeddings/.*", decay**num_layers), *layers, (".*", 1.0))
