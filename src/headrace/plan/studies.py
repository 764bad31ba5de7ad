"""How a plan's step changes with one thing: the context, the share that is rebuilt, the rows.

Every policy is decided anew at every point, so each curve is that of the best plan there. Small
programs are simulated at every point; of large ones only as many as ``SIMULATED_WORK`` allows, the
cheapest first, and the other points have what the rates allow (latencies and waits left out).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from headrace.model.cost import activation_bytes_per_token, kv_bytes_per_token
from headrace.plan.decision import Decision
from headrace.plan.demands import Schedule
from headrace.plan.limits import most
from headrace.plan.outcome import Plan
from headrace.plan.plan import Planner
from headrace.plan.policies import Policy
from headrace.plan.study import Curve, Studies, Study, StudyPoint

DEVICE_MEMORY, HOST_MEMORY, POSITIONS = "device memory", "host memory", "positions"
"""What can end a curve."""

SIMULATED_WORK = 200_000
"""Operations, times the steps simulated of each, that a study may cost: about a second."""

_REBUILDING = (Policy.RECOMPUTE, Policy.KVPR)
_SHARES, _SHARES_SIMULATED = 20, 10
_LONGER, _SHORTER, _SHORTEST = 8, 16, 16
_MOST_ROWS = 64
_MANY_OPERATIONS = 5_000
_CLOSE = 0.12


def make_studies(planner: Planner, plan: Plan, known: Mapping[Policy, Plan]) -> Studies:
    """Return the studies of a plan.

    Args:
        planner: made the plan.
        plan: the plan; its rows may be fewer than the planner's.
        known: plans of the plan's own workload, by the policy that they were asked for under.
    """
    there = replace(planner, workload=plan.workload)
    return Studies(
        context_study(there, known),
        share_study(there, plan),
        rows_study(there, known, planner.workload.rows),
    )


def context_study(planner: Planner, known: Mapping[Policy, Plan] | None = None) -> Study:
    """Return each policy's step over contexts of a row, other things being equal.

    Args:
        planner: of the workload from whose prompts longer and shorter ones are made.
        known: plans of that workload, which are then not simulated again.
    """
    workload, room = planner.workload, planner.shape.max_context - planner.workload.generate_len
    longest = max(workload.prompt_len, min(room, _LONGER * workload.prompt_len))

    def of(prompt_len: int) -> Planner:
        return replace(planner, workload=replace(workload, prompt_len=prompt_len))

    line = _Line(of, lambda at: at.workload.mean_context, workload.prompt_len, known or {})
    resident = Policy.RESIDENT if Policy.RESIDENT in planner.available() else Policy.AUTO
    all_resident = most(lambda tokens: line.fits(tokens, resident), longest)
    shortest = min(workload.prompt_len // _SHORTER, max(all_resident, _SHORTEST) // 2)
    numbers = _round_numbers({max(1, shortest), workload.prompt_len, longest})
    return line.study(_policies(planner), sorted(numbers))


def rows_study(
    planner: Planner, known: Mapping[Policy, Plan] | None = None, asked: int = 1
) -> Study:
    """Return each policy's step over numbers of rows, from 1 to the most that fit.

    Args:
        planner: of the workload whose rows are changed.
        known: plans of that workload, which are then not simulated again.
        asked: rows that are looked at in any case.
    """
    workload = planner.workload
    asked = max(asked, workload.rows)

    def of(rows: int) -> Planner:
        batches = min(rows, workload.batches)
        return replace(planner, workload=replace(workload, rows=rows, batches=batches))

    line = _Line(of, lambda at: at.workload.rows, workload.rows, known or {})
    limit = _MOST_ROWS * asked
    high = max(asked, most(lambda rows: line.fits(rows, Policy.AUTO), limit))
    numbers = {2**power for power in range(high.bit_length())} | {high, asked, workload.rows}
    if high < limit:
        numbers.add(high + max(1, high // 2))
    return line.study(_policies(planner), sorted(numbers))


def share_study(planner: Planner, plan: Plan) -> Study:
    """Return the step of the policies that rebuild over the share of each prompt kept as X.

    Args:
        planner: of the plan's workload.
        plan: the plan, whose share of X is the place looked at.
    """
    policies = [policy for policy in _REBUILDING if policy in planner.available()]
    curves = [_share_curve(planner, policy, len(policies)) for policy in policies]
    return Study(tuple(curves), 0.0, 1.0, plan.placement.recompute)


def _share_curve(planner: Planner, policy: Policy, curves: int) -> Curve:
    free = replace(planner, options=replace(planner.options, recompute_fraction=None))
    best = _fastest(free.decider.decide(policy, order) for order in _orders(free))
    options = replace(free.options, schedule=best.schedule, policy=policy)

    def at(share: float) -> Planner:
        return replace(planner, options=replace(options, recompute_fraction=share))

    # A plan is compared with ``stream``, which is simulated too.
    whole = at(1.0)
    cost = 2 * max(_work(free, best), _work(whole, whole.decider.decide(policy, best.schedule)))
    count = min(_SHARES_SIMULATED, SIMULATED_WORK // (curves * cost))
    best_x = best.placement.recompute
    simulated = {n / count for n in range(count + 1)} if count > 1 else set()
    points = []
    for share in sorted({n / _SHARES for n in range(_SHARES + 1)} | simulated | {best_x}):
        decision = at(share).decider.decide(policy, best.schedule)
        runs = share in simulated or (share == best_x and count > 0)
        step_s = at(share).of(policy).step_s if runs else None
        points.append(StudyPoint(share, decision.least_s, step_s, _lack(at(share), decision)))
    return Curve(policy, tuple(points), best_x=best_x)


@dataclass(frozen=True)
class _Line:
    """Planners along one number, such as the rows.

    Attributes:
        planner_at: the planner for a number.
        x_of: the place of a planner.
        here: the number of the plan.
        known: plans there.
    """

    planner_at: Callable[[int], Planner]
    x_of: Callable[[Planner], float]
    here: int
    known: Mapping[Policy, Plan]
    _planners: dict[int, Planner] = field(default_factory=dict)
    _decisions: dict[tuple[int, Policy, Schedule], Decision] = field(default_factory=dict)

    def at(self, number: int) -> Planner:
        """Return the planner; always the same, for it keeps what all plans are compared with."""
        if number not in self._planners:
            self._planners[number] = self.planner_at(number)
        return self._planners[number]

    def decided(self, number: int, policy: Policy) -> Decision:
        """Return a policy's decision; that of ``auto`` may be another policy's."""
        planner = self.at(number)
        singles = planner.available() if policy is Policy.AUTO else ()
        return _fastest(
            self._decision(number, each, order)
            for each in (policy, *singles)
            for order in _orders(planner)
        )

    def _decision(self, number: int, policy: Policy, order: Schedule) -> Decision:
        place = number, policy, order
        if place not in self._decisions:
            decider = _freed(self.at(number), policy).decider
            self._decisions[place] = decider.decide(policy, order)
        return self._decisions[place]

    def fits(self, number: int, policy: Policy) -> bool:
        """Return whether memory and positions allow a number; decides no more than it has to."""
        planner = self.at(number)
        singles = planner.available() if policy is Policy.AUTO else ()
        return planner.workload.max_context <= planner.shape.max_context and any(
            self._decision(number, each, order).fits
            for each in (*singles, policy)
            for order in _orders(planner)
        )

    def study(self, policies: Sequence[Policy], numbers: Sequence[int]) -> Study:
        """Return the curves over some numbers, and over those at which a curve ends."""
        places = {policy: self._fitting(policy, numbers) for policy in policies}
        if places.get(Policy.RESIDENT):
            # Beyond this, ``auto`` has to take another path: its curve has an angle there.
            angle = places[Policy.RESIDENT][-1]
            places[Policy.AUTO] = sorted({*places[Policy.AUTO], angle})
        simulated = self._affordable(places)
        curves = []
        for policy, fitting in places.items():
            points = [self._point(number, policy, number in simulated) for number in fitting]
            last = fitting[-1] if fitting else 0
            beyond = next((number for number in numbers if number > last), None)
            lack = ""
            if beyond is not None:
                beyond = last + 1 if fitting else beyond
                lack = _lack(self.at(beyond), self.decided(beyond, policy))
            curves.append(Curve(policy, tuple(points), lack))
        low, high, here = (self.x_of(self.at(n)) for n in (numbers[0], numbers[-1], self.here))
        return Study(tuple(curves), low, high, here)

    def _point(self, number: int, policy: Policy, simulated: bool) -> StudyPoint:
        planner = self.at(number)
        step_s = None
        if number == self.here and policy in self.known:
            step_s = self.known[policy].step_s
        elif simulated:
            step_s = _freed(planner, policy).of(policy).step_s
        least_s = self.decided(number, policy).least_s
        return StudyPoint(self.x_of(planner), least_s, step_s)

    def _fitting(self, policy: Policy, numbers: Sequence[int]) -> list[int]:
        """Return the numbers that fit, and the last one between them that does."""
        fitting = [number for number in numbers if self.fits(number, policy)]
        if fitting and fitting[-1] != numbers[-1]:
            low = fitting[-1]
            high = next(number for number in numbers if number > low)
            while high - low > 1:
                middle = (low + high) // 2
                if self.fits(middle, policy):
                    low = middle
                else:
                    high = middle
            fitting += [low] if low != fitting[-1] else []
        return fitting

    def _affordable(self, places: Mapping[Policy, Sequence[int]]) -> set[int]:
        """Return the numbers that are simulated: the cheapest, within ``SIMULATED_WORK``."""
        costs: dict[int, int] = {}
        for policy, numbers in places.items():
            for number in numbers:
                if number == self.here and policy in self.known:
                    continue
                # ``auto`` simulates the policies again, to choose from them.
                times = 3 if policy is Policy.AUTO else 1
                cost = times * _work(self.at(number), self.decided(number, policy))
                costs[number] = costs.get(number, 0) + cost
        chosen: set[int] = set()
        left = SIMULATED_WORK
        for number in sorted(costs, key=lambda number: costs[number]):
            left -= costs[number]
            if left < 0:
                break
            chosen.add(number)
        return chosen


def _policies(planner: Planner) -> tuple[Policy, ...]:
    return (Policy.AUTO, *planner.available())


def _freed(planner: Planner, policy: Policy) -> Planner:
    """Return the planner that is free to choose, where ``auto`` is asked."""
    if policy is not Policy.AUTO or planner.options.recompute_fraction is None:
        return planner
    return replace(planner, options=replace(planner.options, recompute_fraction=None))


def _orders(planner: Planner) -> tuple[Schedule, ...]:
    """Return the orders of operations that may be taken."""
    if planner.workload.batches > 1 and planner.options.schedule is None:
        return Schedule.ROW, Schedule.COLUMN
    return (planner.options.schedule or Schedule.ROW,)


def _fastest(decisions: Iterable[Decision]) -> Decision:
    """Return the fastest decision that fits by what the rates allow, or the one lacking least."""
    return min(decisions, key=lambda one: (one.lacking_bytes, one.least_s))


def _lack(planner: Planner, decision: Decision) -> str:
    """Return what a decision needs more of than there is; empty where it fits."""
    if sum(decision.gpu_items.values()) > planner.decider.gpu_budget_bytes:
        return DEVICE_MEMORY
    if sum(decision.host_items.values()) > planner.decider.host_budget_bytes:
        return HOST_MEMORY
    too_long = planner.workload.max_context > planner.shape.max_context
    return POSITIONS if too_long else ""


def _work(planner: Planner, decision: Decision) -> int:
    """Return about how many operations simulating a decision takes, in all steps and orders."""
    shape, workload, geometry = planner.shape, planner.workload, decision.geometry
    block = geometry.block_tokens
    pages = workload.rows * geometry.paged_tokens(workload.mean_context) / block
    pages /= workload.batches
    streamed = pages * decision.split.stream / geometry.pages_per_granule(kv_bytes_per_token(shape))
    rebuilt = pages * decision.split.recompute
    rebuilt /= geometry.pages_per_granule(activation_bytes_per_token(shape))
    staged = (2 * streamed + 3 * rebuilt) * shape.full_layers
    operations = round((staged + 4 * shape.num_layers) * workload.batches)
    return operations * len(_orders(planner)) * (4 if operations < _MANY_OPERATIONS else 2)


def _round_numbers(given: set[int]) -> set[int]:
    """Return given numbers, and between them powers of two and the numbers halfway between those.

    A round number that is close to a given one is left out.
    """
    low, high = min(given), max(given)
    powers = range(low.bit_length() - 1, high.bit_length())
    rounds = {number for power in powers for number in (2**power, 3 * 2**power // 2)}
    apart = {
        number
        for number in rounds
        if low < number < high and all(abs(number - one) > _CLOSE * one for one in given)
    }
    return apart | given
