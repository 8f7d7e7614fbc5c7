"""The result of an audit as one page, to be read, printed and signed.

Self-contained: no script, nothing fetched. It says what NIST SP 800-226 asks of a claim of differential
privacy: unit, parameters, neighbours, mechanism, whom one has to trust, and what is not covered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from math import exp
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ConfigError
from ..ledger.bodies import EntryKind
from ..pki.identity import COORDINATOR_NAME
from .findings import Exit
from .log import SEALED_EXPERT, UPDATE
from .plans import KnownPlan
from .plots import COLOURS, Bar, Step, bytes_plot, epsilon_plot
from .verify import NO_PRIVACY, Audit

MAX_ROWS = 60
MAX_ATTACK_BYTES = 4 * 1024 * 1024
_WORDS = {
    Exit.OK: ("The bundle holds", "Nothing in it contradicts anything else, as far as it goes."),
    Exit.TAMPERED: ("Tampered", "Something is not what was signed, or not by whom it names."),
    Exit.FORKED: ("Truncated or forked", "The log is not the one that a signed checkpoint shows."),
    Exit.UNCHARGED: ("Uncharged release", "Something left that nothing in the log allows or pays."),
    Exit.OVER_BUDGET: ("Over budget", "More was spent than the site's own budget allowed."),
    Exit.EPSILON: ("Epsilon mismatch", "A figure is not what the charges add up to."),
    Exit.UNWITNESSED: ("Unwitnessed", "Too few others vouch for what left."),
    Exit.MALFORMED: ("Malformed", "This is not a whole bundle."),
}
_SERIES = ("updates", "sealed experts", "masking messages", "other messages")


@dataclass(frozen=True)
class Attack:
    """The figures of an empirical audit; ``entry`` is that of the site's log which names this very file."""

    said: dict[str, Any]
    entry: int | None


def read_attack(path: Path, audit: Audit) -> Attack:
    """What ``fedpalm audit attack --json`` printed.

    Raises:
        ConfigError: not such a file.
    """
    try:
        data = path.read_bytes()
        said = json.loads(data) if len(data) <= MAX_ATTACK_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(said, dict) or not {"result", "findings"} <= set(said):
        raise ConfigError(f"{path}: not the JSON that fedpalm audit attack prints")
    digest = hashlib.sha256(data).hexdigest()
    named = [e.seq for e in audit.log.of(EntryKind.AUDIT) if e.body["report_hash"] == digest]
    return Attack(said, named[0] if named else None)


def report_page(audit: Audit, bundle: Path, attack: Attack | None = None) -> str:
    """The whole page."""
    with bundle.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    css = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    title = f"Audit of site {audit.site or '?'}, federation {audit.federation or '?'}"
    sections = [
        _head(audit, title),
        _findings(audit),
        *(_account(audit, unit) for unit in audit.account.units),
        _left(audit),
        _witnesses(audit),
        _privacy(audit),
        _attack(attack),
        _limits(audit),
        _evidence(audit, digest),
        _signature(),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in sections if part)
        + "\n</body>\n</html>\n"
    )


# --- sections -----------------------------------------------------------------------------------------


def _head(audit: Audit, title: str) -> str:
    words, why = _WORDS[audit.exit]
    good = audit.exit is Exit.OK
    spent = [audit.account.of(unit)[-1] for unit in audit.account.units]
    cards = [
        *(
            (f"{one.claimed:.3f}", f"epsilon spent by {one.unit}, delta {one.delta:g}")
            for one in spent
        ),
        *((f"{one.budget:g}", "the site's budget when it was last charged") for one in spent[-1:]),
        (f"{len(_sent(audit, UPDATE)):,}", "updates left the site"),
        (f"{len(_sent(audit, SEALED_EXPERT)):,}", "sealed experts left the site"),
        (f"{audit.vouched:,} of {audit.log.size:,}", "log entries vouched for by others"),
    ]
    return (
        f"<h1>{escape(title)}</h1>"
        f'<p class="lead">{_span(audit)} Written by fedpalm {escape(__version__)} on '
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC.</p>"
        f'<div class="verdict {"good" if good else "bad"}"><strong>{words}</strong>'
        f"<p>{why} Exit code {int(audit.exit)}.</p></div>"
        '<div class="cards">'
        + "".join(
            f'<div class="card"><b>{escape(figure)}</b><span>{escape(about)}</span></div>'
            for figure, about in cards
        )
        + "</div>"
        + ("" if spent else f"<p><strong>{escape(NO_PRIVACY.capitalize())}.</strong></p>")
    )


def _findings(audit: Audit) -> str:
    if not audit.findings:
        return ""
    rows = [
        (one.exit.name.lower().replace("_", " "), str(int(one.exit)), one.where, one.what)
        for one in audit.findings[:MAX_ROWS]
    ]
    more = len(audit.findings) - len(rows)
    return (
        "<h2>What is wrong</h2>"
        + _table(("finding", "code", "where", "what"), rows)
        + (f"<p>and {more} more.</p>" if more else "")
    )


def _account(audit: Audit, unit: str) -> str:
    spent = audit.account.of(unit)
    last = spent[-1]
    exact = sum(one.recomputed is not None for one in spent)
    steps = [Step(str(one.round or "·"), one.claimed, one.recomputed) for one in spent]
    whose = "person" if unit == "subject" else "image"
    factor = f"{exp(last.claimed):,.2f}" if last.claimed < 12 else f"e^{last.claimed:.1f}"
    meaning = (
        f"Whatever anybody can compute from all that was charged is at most {factor} times as likely with "
        f"one {whose} of the site as without, but for a probability of {last.delta:g}."
        if audit.exit is Exit.OK
        else "<strong>With the findings above, this figure bounds nothing.</strong>"
    )
    between = "; the others lie between their neighbours" if exact < len(spent) else ""
    return (
        f"<h2>What was spent, by {escape(unit)}</h2>"
        f"<p>After {len(spent)} charges the ledger claims epsilon {last.claimed:.4f} at delta "
        f"{last.delta:g}. {meaning}</p>"
        f"<figure>{epsilon_plot(steps, last.budget)}<figcaption>Line: the figure that the ledger "
        f"claims after each charge. Circles: recomputed here from the mechanisms alone, by privacy loss "
        f"distributions, at {exact} of {len(spent)} charges{between}."
        "</figcaption></figure>"
    )


def _left(audit: Audit) -> str:
    if not audit.log.traffic:
        return ""
    rounds: dict[tuple[str, int], list[float]] = {}
    for (run, number), payloads in audit.log.traffic.items():
        # What belongs to no round of training is one bar: enrolment, plans, the exchange.
        values = rounds.setdefault((run, number) if number else ("", 0), [0.0] * len(_SERIES))
        for payload, size in payloads.items():
            values[_series(payload)] += size
    bars = [Bar(str(at[1]) if at[1] else "other", tuple(one)) for at, one in rounds.items()]
    totals = [sum(bar.values[at] for bar in bars) for at in range(len(_SERIES))]
    counts = {
        "updates": len(_sent(audit, UPDATE)),
        "sealed experts": len(_sent(audit, SEALED_EXPERT)),
        "masking messages": sum(
            n for kind, (n, _) in audit.log.control.items() if _series(kind) == 2
        ),
        "other messages": sum(
            n for kind, (n, _) in audit.log.control.items() if _series(kind) == 3
        ),
    }
    receipts = sum(one.receipt for one in audit.releases.released)
    keys = "".join(
        f'<span class="key" style="background:{colour}"></span>{name}'
        for colour, name in zip(COLOURS, _SERIES, strict=True)
    )
    rows = [
        (name, f"{counts[name]:,}", f"{int(total):,}")
        for name, total in zip(_SERIES, totals, strict=True)
    ]
    return (
        "<h2>What left the site</h2>"
        f"<p>Every payload that the log names, by round. {receipts} of "
        f"{len(audit.releases.released)} payloads of weights have the coordinator's signed receipt. Other "
        "messages carry names, hashes, keys and signed statements.</p>"
        f"<figure>{bytes_plot(bars)}<figcaption>{keys}. “other” belongs to no round."
        "</figcaption></figure>" + _table(("what", "count", "bytes"), rows, numbers=(1, 2))
    )


def _witnesses(audit: Audit) -> str:
    witnessed = audit.releases.witnessed
    if not witnessed:
        return (
            "<h2>Who witnessed</h2><p>No run of this bundle has checkpoints: they come with differential "
            "privacy. Who signed each manifest is still checked against the plan's quorum.</p>"
        )
    parties = sorted({site for place in witnessed for site in _roster(audit, place[0])})
    parties = [COORDINATOR_NAME, *(one for one in parties if one != audit.site)]
    shown = list(witnessed.items())[-MAX_ROWS:]
    rows = []
    for place, seen in shown:
        marks = [("yes", "signed") if name in seen.by else ("no", "–") for name in parties]
        rows.append(
            "<tr>"
            f"<td>{escape(place[0])}</td><td class='n'>{place[1]}.{place[2]}</td>"
            f"<td class='n'>{seen.size:,}</td>"
            + "".join(f"<td class='{kind}'>{mark}</td>" for kind, mark in marks)
            + f"<td class='{'yes' if seen.size else 'no'}'>{len(seen.by)} / {seen.needed}</td></tr>"
        )
    heads = "".join(f"<th class='c'>{escape(name)}</th>" for name in parties)
    less = len(witnessed) - len(shown)
    return (
        "<h2>Who witnessed</h2>"
        "<p>Before each attempt the site signed a checkpoint of its log, the charge of the round included. "
        "Each party that signed had seen that it goes on from the checkpoint before. With at most "
        f"{audit.faulty} of them lying, no other history of this log can have as many signatures.</p>"
        + (
            f"<p>The last {len(shown)} attempts; {less} earlier ones were checked as well.</p>"
            if less
            else ""
        )
        + "<table><thead><tr><th>run</th><th class='n'>attempt</th><th class='n'>entries</th>"
        f"{heads}<th class='c'>signed / needed</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _privacy(audit: Audit) -> str:
    parts = []
    for known in audit.plans.values():
        if known.approved:
            parts.append(
                f"<h2>The claim: run {escape(known.run)}</h2>" + _facts(_claim(audit, known))
            )
    return "".join(parts)


def _claim(audit: Audit, known: KnownPlan) -> list[tuple[str, str]]:
    """The fields of a claim of differential privacy, after NIST SP 800-226."""
    plan, privacy = known.plan, known.plan.draft.privacy
    about = [
        ("plan", f"{plan.draft.name}, {plan.draft.method}, {plan.hash.hex()}"),
        ("sites", ", ".join(plan.roster)),
        ("rounds", f"{plan.draft.rounds}, after {plan.rounds_before} of runs that it continues"),
    ]
    masking = (
        "secure aggregation: the coordinator reads sums over sites"
        if plan.draft.masking != "none"
        else "none: the coordinator reads this site's update"
    )
    if privacy.unit == "none":
        return [*about, ("differential privacy", f"none. {NO_PRIVACY}"), ("masking", masking)]
    own = [one for one in audit.account.of(privacy.unit) if one.run == known.run]
    figures = (
        f"epsilon {own[-1].claimed:.4f}, delta {own[-1].delta:g}: of everything that this site has "
        "charged up to this run's last round, earlier runs included"
        if own
        else "nothing was charged"
    )
    unit = (
        "one person, with all of their images"
        if privacy.unit == "subject"
        else "one image; a person with several is protected less"
    )
    return [
        *about,
        ("unit of privacy", unit),
        ("parameters", figures),
        (
            "neighbouring relation",
            "add or remove one unit (not replace one, which costs about twice)",
        ),
        (
            "mechanism",
            f"DP-SGD: each unit's gradient clipped to {privacy.clip_norm:g} in L2, Gaussian noise of "
            f"{privacy.noise_multiplier:g} times that on the sum, {privacy.steps} steps a round",
        ),
        (
            "sampling",
            f"Poisson, rate {privacy.sampling_rate:g}; at most {privacy.records} images a person",
        ),
        ("declared population", f"{privacy.population:,}, a public constant and not a count"),
        (
            "randomness",
            "ChaCha20, keyed by the operating system, the key never stored; a charge that names another "
            "source is a finding",
        ),
        (
            "trust model",
            "the site adds all of its noise itself, before anything leaves: whoever receives, and the "
            "other sites, need not be trusted; the site's own program must be",
        ),
        ("masking", masking),
        (
            "covered",
            "everything that a step moves, the closed-set expert of an exchange included, is clipped and "
            "noised as one vector",
        ),
        (
            "not covered",
            "a person enrolled at two sites is charged at both; how long a round took; what the site does "
            "outside this program; that hyper-parameters were not chosen on the same people",
        ),
    ]


def _attack(attack: Attack | None) -> str:
    if attack is None:
        return (
            "<h2>Empirical audit</h2><p>None was given. Epsilon is what was charged, not measured; "
            "that the noise was really added is what <code>fedpalm audit attack</code> tests on the site's "
            "training path.</p>"
        )
    said = attack.said
    where = (
        f"It is the report that entry {attack.entry} of the site's log names."
        if attack.entry is not None
        else "The site's log does not name this report."
    )
    members = []
    for one in _dicts(said.get("membership")):
        epsilon = one.get("epsilon")
        for name, figures in sorted((one.get("attacks") or {}).items()):
            members.append(
                (
                    f"{name}, {one.get('unit')}",
                    "none" if epsilon is None else f"{epsilon:.3f}",
                    f"{figures['auc']:.3f} ± {figures['auc_error']:.3f}",
                    f"{figures['tpr']:.3f} at {figures['fpr']:.2f}",
                )
            )
    tests = [
        (
            str(one.get("detector")),
            str(one.get("test")),
            str(one.get("figure")),
            str(one.get("expected")),
            "refuted" if one.get("refuted") else "holds",
        )
        for one in _dicts(said.get("findings"))
    ]
    return (
        f"<h2>Empirical audit</h2><p>Result: <strong>{escape(str(said['result']))}</strong>. {where}</p>"
        + (
            "<p>Membership inference on a released model: 0.5 is guessing, 1 knows every member.</p>"
            + _table(("attack", "epsilon", "AUC", "members found at false rate"), members)
            if members
            else ""
        )
        + _table(("detector", "test", "figure", "expected", ""), tests[:MAX_ROWS])
    )


def _limits(audit: Audit) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in audit.notes)
    return (
        "<h2>To be known before signing</h2>"
        + (f"<ul>{notes}</ul>" if notes else "")
        + "<p>A ledger proves what the site claimed, in order, and that it was not rewritten, as of the "
        "newest checkpoint that the verifier holds. It does not prove that the site sent nothing by "
        "another way, that the noise was drawn as claimed, or that people are disjoint across sites. The "
        "certificates are under the trust anchors that the auditor gave; revocations are not looked up.</p>"
    )


def _evidence(audit: Audit, digest: str) -> str:
    log = audit.log
    return "<h2>Evidence</h2>" + _facts(
        [
            ("bundle, SHA-256", digest),
            ("signing key of the log", audit.key_id),
            ("log", f"{log.size:,} entries" + (f", root {log.root(log.size)}" if log.size else "")),
            ("sealed by the site", _time(audit.sealed_ms) if audit.sealed_ms else "not reached"),
            ("checkpoints from elsewhere", str(audit.outside)),
            ("keys not pinned by the auditor", ", ".join(audit.unpinned) or "none"),
            ("manifests checked", f"{len(audit.attempts):,}"),
        ]
    )


def _signature() -> str:
    return '<div class="sign"><div>Auditor</div><div>Place and date</div><div>Signature</div></div>'


# --- pieces -------------------------------------------------------------------------------------------


def _sent(audit: Audit, payload: str) -> list[int]:
    return [
        one.entry.seq for one in audit.releases.released if one.entry.body["payload"] == payload
    ]


def _series(payload: str) -> int:
    if payload in (UPDATE, SEALED_EXPERT):
        return 0 if payload == UPDATE else 1
    return 2 if payload.startswith("masking_") else 3


def _roster(audit: Audit, run: str) -> tuple[str, ...]:
    return audit.plans[run].plan.roster


def _span(audit: Audit) -> str:
    if not audit.log.size:
        return ""
    return (
        f"By the site's clock its log goes from {_time(audit.log.first_ms)} to "
        f"{_time(audit.log.last_ms)}."
    )


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    return (
        "<table><tbody>"
        + "".join(
            f"<tr><th>{escape(name)}</th><td>{_value(value)}</td></tr>" for name, value in rows
        )
        + "</tbody></table>"
    )


def _value(value: str) -> str:
    words = [
        f"<code>{escape(word)}</code>" if len(word) == 64 and word.isalnum() else escape(word)
        for word in value.split(" ")
    ]
    return " ".join(words)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if at in numbers else ''}>{escape(value)}</{tag}>"
            for at, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', heads)}</tr></thead><tbody>{body}</tbody></table>"
