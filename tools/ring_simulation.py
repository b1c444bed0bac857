# /// script
# requires-python = ">=3.11"
# ///
"""Simulate payments in a ring of debtors, day by day, until the debts are settled or somebody defaults.

A textbook case of systemic liquidity: every agent owes the next one, so the same money can pay all debts one
after the other if it is in the right place on the right day.  Amounts are whole cents, and the total cash of
all agents never changes.

Each event has `kind`, `day` and `phase` (`setup` on day 0, then `settlement` and `closing`), and:

    PhaseStarted          no further members; the events after it belong to the phase
    CashMinted            agent, amount_cents
    PayableCreated        payable, debtor, creditor, amount_cents, due_day
    CashTransferred       payable, payer, payee, amount_cents; its purpose is the next event
    PayableSettled        payable, debtor, creditor, amount_cents, due_day
    PartialSettlement     payable, debtor, creditor, amount_cents (paid), owed_cents
    ObligationDefaulted   payable, debtor, creditor, amount_cents (not paid), owed_cents, due_day
    AgentDefaulted        agent, payable
    ObligationWrittenOff  payable, debtor, creditor, amount_cents
"""

import csv
import io
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from html import escape
from statistics import fmean, stdev
from typing import Any, Literal, get_args

from shared import toolkit

Handling = Literal["fail-fast", "expel-agent"]
Liquidity = Literal["uniform", "single_at", "vector"]
Checks = Literal["daily", "setup", "none"]
Shown = Literal["detailed", "summary", "none"]
Event = dict[str, Any]
BOUNDS: dict[str, tuple[Any, float, float]] = {
    "n_agents": (int, 2, 10_000),
    "days": (int, 1, 1_000),
    "total_debt_cents": (int, 1, 10**12),
    "kappa": (float, 0, 1_000),
    "concentration": (float, 1e-6, 1e6),
    "mu": (float, 0, 1),
    "quiet_days": (int, 0, 1_000),
    "max_days": (int, 1, 10_000),
}
CHOICES = {
    "liquidity": get_args(Liquidity),
    "default_handling": get_args(Handling),
    "check_invariants": get_args(Checks),
    "show_events": get_args(Shown),
}
MAX_EVENTS_SHOWN = 1_000
MAX_ACCOUNTS_SHOWN = 50
DAY_COLUMNS = {
    "Due": "due",
    "Settled": "PayableSettled",
    "Settled in part": "PartialSettlement",
    "Not paid": "ObligationDefaulted",
    "Written off": "ObligationWrittenOff",
}
STYLE = """
body { font: 15px/1.4 sans-serif; margin: 2em } main { display: flex; flex-wrap: wrap; gap: 2em }
svg { width: min(40em, 90vw) } text { font-size: 11px; text-anchor: middle } figure { margin: 0 }
path { fill: none; stroke: #999 } path.settled { stroke: #2a78b8 } path.defaulted { stroke: #cc3d3d }
circle { fill: #2a78b8 } circle.defaulted { fill: #cc3d3d } dt { float: left; clear: left; width: 14em }
table { border-collapse: collapse } th, td { text-align: right; padding: .3em .8em; border: 1px solid #ccc }
"""
MEASURES: dict[str, Callable[[Event], float]] = {
    "shortfall": lambda run: (run["written_off_cents"] + run["open_cents"]) / run["debt_cents"],
    "default_rate": lambda run: run["agents_defaulted"] / run["agents"],
    "days": lambda run: run["days_run"],
}
CONFIDENCE = 0.95
BALANCE_COLUMNS = ("day", "agent", "cash_cents", "owes_cents", "is_owed_cents", "defaulted")


class ConservationError(RuntimeError):
    """Cash or debt was created or lost; an error in this tool."""


def ring_simulation(
    n_agents: int = 100,
    days: int = 10,
    total_debt_cents: int = 1_000_000,
    kappa: float = 1.0,
    concentration: float = 1.0,
    mu: float = 0.5,
    liquidity: Liquidity = "uniform",
    liquidity_agent: str = "H1",
    liquidity_vector: list[float] | None = None,
    default_handling: Handling = "fail-fast",
    quiet_days: int = 2,
    max_days: int = 90,
    check_invariants: Checks = "daily",
    show_events: Shown = "detailed",
    show_balances: list[str] | None = None,
    t_account: bool = False,
    seed: int | None = None,
) -> dict[str, Any]:
    """Run one ring and keep `scenario.yaml`, `events.jsonl`, `balances.csv` and `run.html` as artifacts.

    Agents are called H1 to Hn; each owes the next, the last owes H1.  A debt whose share of the
    total comes to less than a cent may be 0, and then there is no such debt.  On its due day a
    debt is paid in full from the debtor's cash, in order of creation, or the debtor defaults;
    cash that arrives later the same day comes too late.  With `fail-fast` the first default ends
    the simulation, nothing of that debt is paid, and that is a result of the run, not its
    failure.  With `expel-agent` the debtor pays what it has, the rest of its debts is written
    off, and it can still receive.  A day is quiet when no cash moved.

    Args:
        n_agents: How many agents, 2 to 10,000.
        days: The debts are due on days 1 to this one.
        total_debt_cents: Q, the sum of all debts.
        kappa: The money in the system is kappa * Q, rounded to whole cents.
        concentration: How equal the debts are: they are shares of Q by weights from
            Gamma(concentration, 1); large is equal, small lets a few owe nearly all.
        mu: Shifts due days apart, 0 to 1; with 0 all debts are due on day 1 (see `due_days`).
        liquidity: Who gets the money: all equally, one agent, or each by `liquidity_vector`.
        liquidity_agent: The one, with `single_at`.
        liquidity_vector: With `vector`, a share per agent; only their proportions matter.
        default_handling: What follows a default, see above.
        quiet_days: End after so many quiet days in a row when nothing is open.
        max_days: End then in any case.
        check_invariants: When to check that no cash and no debt was created or lost: after the setup
            and each day, after the setup only, or never.
        show_events: What `run.html` has of the events: sums by day and a list of the first 1,000,
            the sums only, or nothing.
        show_balances: The agents whose balances by day `run.html` has.
        t_account: Whether `run.html` has the final accounts of these agents, or of the first 50.
        seed: Of the generator; without it the run's own, or else a fresh one that is reported.

    Returns:
        `status`: `settled` (all paid in full), `quiet` (nothing open, but some written off),
        `stopped: default` (fail-fast) or `max_days` (some still open); `first_default`;
        the seed, counts, and sums in cents.
    """
    parameters: Event = dict(locals())  # before any other local variable exists
    check(parameters)
    check_display(n_agents, show_balances, t_account)
    shares = liquidity_shares(n_agents, liquidity, liquidity_agent, liquidity_vector)
    parameters["seed"] = choose_seed(seed)
    weights = gamma_weights(random.Random(parameters["seed"]), n_agents, concentration)  # noqa: S311
    # Decimal arithmetic: 0.29 * 100 is 29 cents, not 28.999...
    money_cents = round(Fraction(str(kappa)) * total_debt_cents)
    cash, amounts = hand_out(money_cents, shares), hand_out(total_debt_cents, weights)
    ring = Ring(cash, amounts, due_days(n_agents, days, mu), check_invariants)
    toolkit.artifact("scenario.yaml", scenario(ring, parameters).encode())
    status = simulate(ring, default_handling, quiet_days, max_days)
    return report(ring, parameters, status)


def aggregate(replicates: Sequence[Event], target_data: Mapping[str, float] | None = None) -> Event:
    """Say what replicates of one ring have in common, how surely, and how far that is from a target.

    Three measures are taken of each: `shortfall`, the part of the debt that was not paid,
    `default_rate`, the part of the agents that defaulted, and `days`, until the end.  With
    `fail-fast` a shortfall counts what was not yet due as well.

    Args:
        replicates: runs of this tool, by `result`.
        target_data: the mean that is wanted, by measure; without it a shortfall of 0.

    Returns:
        `loss`: the root mean square of the differences between mean and target, taken as they
        are, so that a day weighs as much as all of the debt; without a target the mean shortfall.
        `diagnostics`: `n`; by measure, the mean, and as `MEASURE_margin` what the 95% confidence
        interval extends to either side, by Student's t; None of a single run.
        `outputs`: how many runs ended with each `status`.
    """
    results = [one["result"] for one in replicates]
    samples = {key: [measure(one) for one in results] for key, measure in MEASURES.items()}
    means = {key: fmean(sample) for key, sample in samples.items()}
    target = check_target(target_data)
    return {
        "loss": math.sqrt(fmean((means[key] - wanted) ** 2 for key, wanted in target.items())),
        "diagnostics": {
            "n": len(results),
            **means,
            **{f"{key}_margin": margin(sample) for key, sample in samples.items()},
        },
        "outputs": {"statuses": dict(Counter(one["status"] for one in results))},
    }


# -- parameters -----------------------------------------------------------------------


def check(parameters: Event) -> None:
    """Raise ValueError for the first invalid parameter."""
    for key, (kind, lowest, highest) in BOUNDS.items():
        check_number(key, parameters[key], kind, lowest, highest)
    for key, allowed in CHOICES.items():
        if parameters[key] not in allowed:
            raise ValueError(f"{key} is {parameters[key]!r}: allowed is {' or '.join(allowed)}")


def check_number(key: str, value: Any, kind: type, lowest: float, highest: float) -> None:
    """Raise ValueError unless `value` is a number of the kind from `lowest` to `highest`."""
    fits = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not fits or not lowest <= value <= highest:
        allowed = "a whole number" if kind is int else "a number"
        raise ValueError(f"{key} is {value!r}: allowed is {allowed} from {lowest:,} to {highest:,}")


def check_display(n_agents: int, agents: object, t_account: object) -> None:
    """Raise ValueError unless these are agents of the ring, and the other is a truth value."""
    names = [name(i) for i in range(n_agents)]
    if agents is not None and not (isinstance(agents, list) and all(one in names for one in agents)):
        raise ValueError(f"show_balances is {agents!r:.200}: allowed is a list of H1 to {names[-1]}")
    if not isinstance(t_account, bool):
        raise ValueError(f"t_account is {t_account!r:.200}: allowed is true or false")  # noqa: TRY004


def liquidity_shares(n_agents: int, mode: Liquidity, agent: str, vector: object) -> list[int]:
    """Each agent's share of the money, in proportion to the others'."""
    if mode == "uniform":
        return [1] * n_agents
    if mode == "single_at":
        shares = [int(name(i) == agent) for i in range(n_agents)]
        if not any(shares):
            raise ValueError(f"liquidity_agent is {agent!r}: allowed is H1 to {name(n_agents - 1)}")
        return shares
    if not isinstance(vector, list) or len(vector) != n_agents:
        raise ValueError(f"liquidity_vector is {vector!r:.200}: allowed is a list of {n_agents} shares")
    for i, share in enumerate(vector):
        check_number(f"liquidity_vector[{i}]", share, float, 0, 1e15)
    if not any(vector):
        raise ValueError("liquidity_vector has only zeros: at least one share must be more than 0")
    exact = [Fraction(str(share)) for share in vector]
    scale = math.lcm(*(share.denominator for share in exact))
    return [int(share * scale) for share in exact]


def choose_seed(seed: int | None) -> int:
    """The given seed, otherwise the run's, otherwise a random one."""
    chosen = toolkit.run.seed if seed is None else seed
    if chosen is None:
        return random.SystemRandom().randrange(2**32)
    check_number("seed", chosen, int, 0, 2**64 - 1)
    return chosen


def check_target(target_data: object) -> Mapping[str, float]:
    """The target of each measure; a shortfall of 0 by default.  Raises ValueError if it is invalid."""
    if target_data is None:
        return {"shortfall": 0}
    if not isinstance(target_data, dict) or not target_data or not target_data.keys() <= MEASURES.keys():
        known = ", ".join(MEASURES)
        raise ValueError(f"target_data is {target_data!r:.200}: allowed is an object with any of {known}")
    for key, wanted in target_data.items():
        check_number(f"target_data[{key!r}]", wanted, float, 0, 1e6)
    return target_data


# -- debts ---------------------------------------------------------------------------


def gamma_weights(dice: random.Random, count: int, concentration: float) -> list[int]:
    """Draws from Gamma(concentration, 1) as parts of the largest, which is 2 ** 53.

    In logarithms, each as a draw from Gamma(concentration + 1, 1) times U ** (1 / concentration):
    with a small concentration all draws may be too small for a float, their proportions are not.
    """
    logarithms = [
        math.log(dice.gammavariate(concentration + 1, 1)) + math.log(1 - dice.random()) / concentration
        for _ in range(count)
    ]
    largest = max(logarithms)
    return [int(math.exp(one - largest) * 2**53) for one in logarithms]


def hand_out(total_cents: int, shares: Sequence[int]) -> list[int]:
    """Whole cents in proportion to `shares` that sum to the total, by largest remainder.

    Of equal remainders the earlier is larger.
    """
    whole = sum(shares)
    cents = [total_cents * share // whole for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: -(total_cents * shares[i] % whole))
    for i in by_remainder[: total_cents - sum(cents)]:
        cents[i] += 1
    return cents


def due_days(n_agents: int, days: int, mu: float) -> list[int]:
    """The due day of each agent's debt, agents counted from 0.

    `lead = round(mu * (days - 1))`, halves to the even number; then agent i's debt is due on day
    `((i * lead - lead) mod days) + 1`, and all on day 1 when lead is 0.
    """
    lead = round(mu * (days - 1))
    return [(i * lead - lead) % days + 1 for i in range(n_agents)] if lead else [1] * n_agents


def name(agent: int) -> str:
    """The name of the agent at an index."""
    return f"H{agent + 1}"


# -- the ring -------------------------------------------------------------------------


@dataclass(slots=True)
class Payable:
    """A debt of agent `debtor` to the next one; `open_cents` is neither paid nor written off."""

    debtor: int
    creditor: int
    amount_cents: int
    due_day: int
    open_cents: int
    state: str = "open"

    @property
    def members(self) -> Event:
        """Its name in events."""
        parties = {"debtor": name(self.debtor), "creditor": name(self.creditor)}
        return {"payable": f"P{self.debtor + 1}", **parties}


class Ring:
    """The agents' cash and debts, and the events."""

    def __init__(
        self,
        cash_cents: list[int],
        amounts_cents: list[int],
        due_days: list[int],
        checks: Checks = "daily",
    ) -> None:
        self.checks = checks
        self.cash = [0] * len(cash_cents)
        self.payables: list[Payable] = []
        self.defaulted: dict[int, int] = {}  # agent: day
        self.events: list[Event] = []
        self.sums: Counter[Any] = Counter()
        self.balances: list[tuple[Any, ...]] = []
        self.start(0, "setup")
        for agent, cents in enumerate(cash_cents):
            self.mint(agent, cents)
        for agent, (cents, due_day) in enumerate(zip(amounts_cents, due_days, strict=True)):
            self.owe(agent, cents, due_day)
        self.close()

    def start(self, day: int, phase: str) -> None:
        """Begin a phase; the next events belong to it."""
        self.day, self.phase = day, phase
        self.record("PhaseStarted")

    def record(self, kind: str, **members: Any) -> None:
        """Record an event, and add its amount to the sums by kind, and by day and kind."""
        self.events.append({"kind": kind, "day": self.day, "phase": self.phase, **members})
        for key in (kind, (self.day, kind)):
            self.sums[key] += members.get("amount_cents", 0)

    def mint(self, agent: int, cents: int) -> None:
        """Give an agent its first cash."""
        if cents:
            self.cash[agent] += cents
            self.record("CashMinted", agent=name(agent), amount_cents=cents)

    def owe(self, debtor: int, cents: int, due_day: int) -> None:
        """Create the agent's debt to the next one, unless it is 0."""
        if cents:
            one = Payable(debtor, (debtor + 1) % len(self.cash), cents, due_day, open_cents=cents)
            self.payables.append(one)
            self.record("PayableCreated", **one.members, amount_cents=cents, due_day=due_day)
            self.sums[due_day, "due"] += cents

    def settle(self, one: Payable) -> None:
        """Pay a debt in full."""
        self.move(one, one.open_cents)
        one.state = "settled"
        self.record("PayableSettled", **one.members, amount_cents=one.amount_cents, due_day=one.due_day)

    def move(self, one: Payable, cents: int) -> None:
        """Transfer cash from the debtor to the creditor of a debt."""
        self.cash[one.debtor] -= cents
        self.cash[one.creditor] += cents
        one.open_cents -= cents
        members = {"payable": one.members["payable"], "payer": name(one.debtor), "payee": name(one.creditor)}
        self.record("CashTransferred", **members, amount_cents=cents)

    def default(self, one: Payable, handling: Handling) -> None:
        """Record that a debt can't be paid in full; `expel-agent` then pays and writes off."""
        cents = self.cash[one.debtor] if handling == "expel-agent" else 0
        if cents:
            self.move(one, cents)
            self.record("PartialSettlement", **one.members, amount_cents=cents, owed_cents=one.amount_cents)
        one.state = "defaulted"
        members = {"amount_cents": one.open_cents, "owed_cents": one.amount_cents, "due_day": one.due_day}
        self.record("ObligationDefaulted", **one.members, **members)
        self.defaulted[one.debtor] = self.day
        self.record("AgentDefaulted", agent=name(one.debtor), payable=one.members["payable"])
        if handling == "expel-agent":
            self.record("ObligationWrittenOff", **one.members, amount_cents=one.open_cents)
            one.open_cents = 0  # its only debt, as this is a ring

    def close(self) -> None:
        """Check that nothing was lost, and record all balances."""
        if self.checks == "daily" or (self.checks == "setup" and self.day == 0):
            self.check()
        owes = {one.debtor: one.open_cents for one in self.payables}
        owed = {one.creditor: one.open_cents for one in self.payables}
        for i, cents in enumerate(self.cash):
            row = (self.day, name(i), cents, owes.get(i, 0), owed.get(i, 0), int(i in self.defaulted))
            self.balances.append(row)

    def check(self) -> None:
        """Raise ConservationError if cash or debt was created or lost."""
        if sum(self.cash) != self.sums["CashMinted"] or min(self.cash) < 0:
            raise ConservationError(f"day {self.day}: the agents' cash is {self.cash}")
        ended_cents = self.sums["CashTransferred"] + self.sums["ObligationWrittenOff"]
        if ended_cents + self.open_cents != self.sums["PayableCreated"]:
            raise ConservationError(f"day {self.day}: {ended_cents} of debt ended, {self.open_cents} is open")

    @property
    def open_cents(self) -> int:
        """The sum of all open debts."""
        return sum(one.open_cents for one in self.payables)


def simulate(ring: Ring, handling: Handling, quiet_days: int, max_days: int) -> str:
    """Simulate the days until the end; returns the reason for the end."""
    due = defaultdict(list)
    for one in ring.payables:
        due[one.due_day].append(one)
    last_day = min(max_days, max(due) + quiet_days)
    debt_cents, quiet = ring.open_cents, 0
    for day in range(1, max_days + 1):
        moved_before = ring.sums["CashTransferred"]
        stopped = settle_day(ring, day, due[day], handling)
        paid_cents = ring.sums["CashTransferred"]
        toolkit.progress(day, last_day, f"day {day}: {paid_cents} of {debt_cents} cents paid")
        if stopped:
            return "stopped: default"
        quiet = quiet + 1 if paid_cents == moved_before else 0
        if quiet >= quiet_days and not ring.open_cents:
            break
    if ring.open_cents:
        return "max_days"
    return "quiet" if ring.defaulted else "settled"


def settle_day(ring: Ring, day: int, due: Sequence[Payable], handling: Handling) -> bool:
    """Settle due debts, gross and in order of creation; returns whether a default stopped it."""
    ring.start(day, "settlement")
    stopped = False
    for one in due:
        if ring.cash[one.debtor] >= one.open_cents:
            ring.settle(one)
        else:
            ring.default(one, handling)
            if stopped := handling == "fail-fast":
                break
    ring.start(day, "closing")
    ring.close()
    return stopped


# -- statistics of replicates ---------------------------------------------------------


def margin(sample: Sequence[float]) -> float | None:
    """Half of the confidence interval of the mean, for normally distributed means."""
    if len(sample) < 2:
        return None
    return quantile(len(sample) - 1) * stdev(sample) / math.sqrt(len(sample))


def quantile(freedom: int) -> float:
    """The two-sided 95% quantile of Student's distribution with `degrees` degrees of freedom."""
    low, high = 0.0, 13.0  # with one degree of freedom it is 12.7
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < CONFIDENCE else (low, middle)
    return high


def within(t: float, freedom: int) -> float:
    """The probability that Student's t is from -t to t, by Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle, is_odd = math.atan(t / math.sqrt(freedom)), freedom % 2
    term, total = math.cos(angle) if is_odd else 1.0, 0.0
    for i in range(1 + is_odd, freedom + is_odd, 2):
        total += term
        term *= math.cos(angle) ** 2 * i / (i + 1)
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if is_odd else total


# -- results --------------------------------------------------------------------------


def scenario(ring: Ring, parameters: Event) -> str:
    """The parameters, and what agents own and owe before the first day, as YAML; its values are JSON."""
    lines = [f"{key}: {json.dumps(value)}" for key, value in parameters.items()]
    agents = [{"name": name(i), "cash_cents": cents} for i, cents in enumerate(ring.cash)]
    debts = [
        {**one.members, "amount_cents": one.amount_cents, "due_day": one.due_day} for one in ring.payables
    ]
    for key, rows in {"agents": agents, "payables": debts}.items():
        lines += [f"{key}:", *(f"  - {json.dumps(one)}" for one in rows)]
    return "\n".join(lines) + "\n"


def report(ring: Ring, parameters: Event, status: str) -> Event:
    """Store the artifacts, report the sums as metrics, and return the summary."""
    summary = summarise(ring, parameters["seed"], status)
    toolkit.artifact("events.jsonl", "".join(json.dumps(one) + "\n" for one in ring.events).encode())
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([BALANCE_COLUMNS, *ring.balances])
    toolkit.artifact("balances.csv", table.getvalue().encode())
    toolkit.artifact("run.html", page(ring, parameters, summary).encode())
    for key in ("settled_cents", "written_off_cents", "agents_defaulted"):
        toolkit.metric(key, summary[key])
    return summary


def summarise(ring: Ring, seed: int, status: str) -> Event:
    """The summary of the run."""
    first = next((one for one in ring.events if one["kind"] == "ObligationDefaulted"), None)
    return {
        "status": status,
        "seed": seed,
        "days_run": ring.day,
        "agents": len(ring.cash),
        "agents_defaulted": len(ring.defaulted),
        "payables": len(ring.payables),
        "payables_settled": sum(one.state == "settled" for one in ring.payables),
        "debt_cents": ring.sums["PayableCreated"],
        "money_cents": ring.sums["CashMinted"],
        "settled_cents": ring.sums["PayableSettled"],
        "partially_settled_cents": ring.sums["PartialSettlement"],
        "written_off_cents": ring.sums["ObligationWrittenOff"],
        "open_cents": ring.open_cents,
        "first_default": {"day": first["day"], "agent": first["debtor"]} if first else None,
    }


def page(ring: Ring, parameters: Event, summary: Event) -> str:
    """The run as a self-contained HTML page."""
    facts = {**parameters, **summary}
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(facts[key]))}</dd>" for key in facts)
    title = escape(f"Ring of {len(ring.cash)} agents: {summary['status']}")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>
<body><h1>{title}</h1>
<main><figure>{picture(ring)}<figcaption>Each agent owes the next one clockwise, the wider the line the more.
Blue is settled, red defaulted, grey still open.</figcaption></figure><dl>{listed}</dl></main>
{"".join(sections(ring, parameters))}</body></html>
"""


def sections(ring: Ring, parameters: Event) -> Iterator[str]:
    """The parts of the page that parameters choose."""
    agents = parameters["show_balances"] or []
    if parameters["show_events"] != "none":
        head = row("th", ["Day", *DAY_COLUMNS, "Defaulted"])
        yield f"<h2>Day by day</h2>\n<table><thead>{head}</thead><tbody>{day_rows(ring)}</tbody></table>\n"
    if parameters["show_events"] == "detailed":
        shown = ring.events[:MAX_EVENTS_SHOWN]
        lines = "\n".join(f"<li>{escape(sentence(one))}</li>" for one in shown)
        count = f"{len(shown):,} of {len(ring.events):,}"
        yield f"<details><summary>Events, {count}</summary><ol>\n{lines}\n</ol></details>\n"
    if agents:
        head = row("th", ["Day", "Agent", "Cash", "Owes", "Is owed", "Defaulted"])
        body = "\n".join(
            row("td", [str(day), agent, *map(money, cents), "yes" if gone else ""])
            for day, agent, *cents, gone in ring.balances
            if agent in agents
        )
        yield f"<h2>Balances</h2>\n<table><thead>{head}</thead><tbody>{body}</tbody></table>\n"
    if parameters["t_account"]:
        last = [one for one in ring.balances if one[0] == ring.day and (not agents or one[1] in agents)]
        yield f"<h2>Accounts at the end</h2>\n{''.join(map(account, last[:MAX_ACCOUNTS_SHOWN]))}"


def sentence(event: Event) -> str:
    """An event as one line."""
    members = {key: value for key, value in event.items() if key not in {"kind", "day", "phase"}}
    said = ", ".join(f"{key} {value}" for key, value in members.items())
    return f"day {event['day']}, {event['phase']}: {event['kind']}" + (f" ({said})" if said else "")


def account(balance: tuple[Any, ...]) -> str:
    """An agent's balance as a T-account: assets on the left, debts and what is left on the right."""
    _, agent, cash, owes, owed, _ = balance
    sides = [("Cash", cash, "Owes", owes), ("Is owed", owed, "Net worth", cash + owed - owes)]
    rows = "\n".join(row("td", [left, signed(a), right, signed(b)]) for left, a, right, b in sides)
    return f"<table><caption>{escape(agent)}</caption><tbody>{rows}</tbody></table>\n"


def picture(ring: Ring) -> str:
    """The agents on a circle as SVG; lines and dots have tooltips."""
    count, shapes = len(ring.cash), []
    angles = [2 * math.pi * i / count for i in range(count)]
    spots = [(320 + 260 * math.sin(angle), 320 - 260 * math.cos(angle)) for angle in angles]
    most = max(one.amount_cents for one in ring.payables)
    for one in ring.payables:
        (x1, y1), (x2, y2) = spots[one.debtor], spots[one.creditor]
        arc = f'd="M {x1:.1f} {y1:.1f} A 260 260 0 0 1 {x2:.1f} {y2:.1f}"'
        debt = f"{name(one.debtor)} owed {name(one.creditor)} {money(one.amount_cents)}"
        what = f"<title>{debt}, due on day {one.due_day}: {one.state}</title>"
        width = 1 + 7 * one.amount_cents / most
        shapes.append(f'<path class="{one.state}" stroke-width="{width:.1f}" {arc}>{what}</path>')
    label_each = math.ceil(count / 40)
    for i, (x, y) in enumerate(spots):
        state = ' class="defaulted"' if i in ring.defaulted else ""
        place = f'cx="{x:.1f}" cy="{y:.1f}" r="{max(1.0, min(12.0, 400 / count)):.1f}"'
        shapes.append(f"<circle{state} {place}><title>{name(i)} has {money(ring.cash[i])}</title></circle>")
        if i % label_each == 0 and i + label_each <= count:
            x, y = 1.12 * x - 38.4, 1.12 * y - 34.4
            shapes.append(f'<text x="{x:.1f}" y="{y:.1f}">{name(i)}</text>')
    return f'<svg viewBox="0 0 640 640" role="img">{"".join(shapes)}</svg>'


def day_rows(ring: Ring) -> str:
    """A table row for each day."""
    lines = []
    for day in range(1, ring.day + 1):
        sums = [money(ring.sums[day, kind]) for kind in DAY_COLUMNS.values()]
        gone = ", ".join(name(agent) for agent, since in ring.defaulted.items() if since == day)
        lines.append(row("td", [str(day), *sums, gone]))
    return "\n".join(lines)


def row(tag: str, texts: Sequence[str]) -> str:
    """A table row of these texts."""
    return "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts) + "</tr>"


def signed(cents: int) -> str:
    """Cents as an amount of money that may be negative."""
    return f"-{money(-cents)}" if cents < 0 else money(cents)


def money(cents: int) -> str:
    """Cents as an amount of money, 1,234.56."""
    return f"{cents // 100:,}.{cents % 100:02}"
