"""The expert that left, held against the one sanction that it may stand under; and its keys after it."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ConsentError, FedPalmError
from ..exchange.consent import Consent, Party, check_together, sanction_hash
from ..exchange.sealing import WRAPPED_BYTES, sealed_bytes
from ..exchange.terms import ExchangeTerms
from ..ledger.bodies import EntryKind
from ..ledger.entries import Entry
from ..pki.identity import COORDINATOR_NAME, Identity, Role
from ..pki.statement import SignedStatement
from ..privacy.accounting import paying_runs
from .charges import ROUNDING, Account
from .findings import AuditStopped, Exit, Finding
from .log import SEALED_EXPERT, Log
from .plans import KnownPlan, Plans
from .releases import Released, Releases, uncharged
from .trust import Signers

SEALING_MS = 60_000
"""More than lies between the last look at the clock before an expert is sealed and its entry."""
KEY_NAMES_BYTES = 256
"""More than a message says of a wrapped key beside the key."""

Place = tuple[str, str]
Agreed = Mapping[ExchangeTerms, Mapping[str, Party]]


@dataclass
class _Exchanges:
    """What the log says of exchanges: by (run, exchange), each list in the order of the log.

    ``sealed`` has of each expert that left the entry and how many sites it was sealed to.
    """

    answers: dict[Place, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    said: dict[Place, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    sealed: dict[Place, tuple[int, int]] = field(default_factory=dict)
    plans: set[bytes] = field(default_factory=set)

    @classmethod
    def of(cls, log: Log) -> _Exchanges:
        found = cls()
        for entry in log.of(EntryKind.EXCHANGE_APPROVED, EntryKind.EXCHANGE_REFUSED):
            found.answers[_place(entry)].append(entry)
        for entry in log.of(EntryKind.EXPERT_RELEASED):
            found.said[_place(entry)].append(entry)
        return found

    def approved_before(self, entry: Entry) -> Entry | None:
        """The site's yes that holds at an entry."""
        answers = self.answers[_place(entry)]
        at = bisect_left([one.seq for one in answers], entry.seq)
        newest = answers[at - 1] if at else None
        return newest if newest and newest.kind is EntryKind.EXCHANGE_APPROVED else None


def check_experts(
    found: Releases,
    log: Log,
    plans: Plans,
    account: Account,
    consents: Sequence[bytes],
    owner: Identity,
    signers: Signers,
) -> None:
    """Hold every sealed expert against its sanction, and the keys against the expert that they open.

    The sanction is put together again from the consents in the bundle: of everybody on the roster, or,
    where the plan goes on without those who refuse, of whom it was sealed to. The site's own is the one
    that its log says was approved, of that log as it was then, and claims no better privacy than was
    charged.

    Raises:
        AuditStopped: a consent that its site has not signed.
    """
    agreed = _agreed(consents, signers)
    exchanges = _Exchanges.of(log)
    coordinator = Identity(owner.federation, Role.COORDINATOR, COORDINATOR_NAME).uri
    found.findings += _numbers(log)
    for entry in log.sent.values():
        if entry.body["payload"] != SEALED_EXPERT:
            continue
        where, place = f"log, entry {entry.seq}", _place(entry)
        known = plans.get(place[0])
        if known is None or not place[1] or not known.plan.expert_layout:
            found.findings.append(uncharged(where, "an expert left outside any exchange of a plan"))
            continue
        found.released.append(Released(entry))
        wrong = list(_shape(entry, known, coordinator))
        if known.plan.hash in exchanges.plans:
            wrong.append("a second expert left under one plan")
        exchanges.plans.add(known.plan.hash)
        exchanges.sealed.setdefault(place, (entry.seq, len(known.plan.roster) - 1))
        if known.plan.draft.privacy.unit != "none" and not _paid(entry, known, account):
            wrong.append("an expert left that no committed reservation pays for")
        yes = exchanges.approved_before(entry)
        own = None if yes is None else _consent_of(yes, agreed, owner)
        if yes is None:
            wrong.append("an expert left without this site's approval of the exchange")
        elif own is None:
            wrong.append("an expert left under another consent than the site's approved one")
        else:
            wrong += _consented(own, yes, known, log)
            wrong += _sanctioned(entry, own, agreed[own.terms], known, exchanges)
            if better := _coverage(own, known, account):
                found.findings.append(Finding(Exit.EPSILON, f"log, entry {yes.seq}", better))
        found.findings += [uncharged(where, one) for one in wrong]
    found.findings += _keys(log, exchanges, coordinator)


def _agreed(consents: Sequence[bytes], signers: Signers) -> Agreed:
    """Who has signed what, by terms."""
    agreed: dict[ExchangeTerms, dict[str, Party]] = defaultdict(dict)
    for at, data in enumerate(consents):
        where = f"consent {at}"
        try:
            signed = SignedStatement.from_bytes(data)
        except FedPalmError as error:
            raise AuditStopped(Exit.MALFORMED, where, error.what) from None
        said = signers.open(Consent, signed, where)
        key = signers.signer(signed.chain, where).key
        if said.federation != said.terms.federation:
            raise AuditStopped(Exit.MALFORMED, where, "it is to terms of another federation")
        if said.site in agreed[said.terms]:
            raise AuditStopped(Exit.MALFORMED, where, f"{said.site} says yes twice")
        party = Party(said.site, key, bytes.fromhex(said.recipient_key), said)
        agreed[said.terms][said.site] = party
    return agreed


def _numbers(log: Log) -> Iterator[Finding]:
    """Of each plan the exchanges that the site approved have rising numbers."""
    newest: dict[str, int] = {}
    for entry in log.of(EntryKind.EXCHANGE_APPROVED):
        plan, number = str(entry.body["plan_hash"]), int(entry.body["number"])
        if number <= newest.get(plan, 0):
            yield uncharged(
                f"log, entry {entry.seq}",
                f"exchange {number} of a plan was approved after exchange {newest.get(plan, 0)}",
            )
        newest[plan] = max(number, newest.get(plan, 0))


def _shape(entry: Entry, known: KnownPlan, coordinator: str) -> Iterator[str]:
    if not known.approved_at(entry.seq):
        yield "an expert left under a plan that the site did not approve then"
    if entry.body["recipient"] != coordinator:
        yield f"an expert left to {entry.body['recipient']}"
    if entry.body.get("layout_hash") != known.plan.released_layout.hash.hex():
        yield "an expert left with another layout than the plan's"


def _paid(entry: Entry, known: KnownPlan, account: Account) -> bool:
    """Whether a training of its run, or of one that this goes on from, was committed before."""
    runs = set(paying_runs(known.plan, known.run))
    return any(
        seq < entry.seq
        for (run, _), commits in account.paid.items()
        if run in runs
        for seq, _, _ in commits
    )


def _consent_of(yes: Entry, agreed: Agreed, owner: Identity) -> Consent | None:
    mine = (parties[owner.name].consent for parties in agreed.values() if owner.name in parties)
    return next((one for one in mine if one.hash.hex() == yes.body["consent_hash"]), None)


def _consented(own: Consent, yes: Entry, known: KnownPlan, log: Log) -> Iterator[str]:
    """The site's own consent against the entry that names it, its plan, and its log as it was then."""
    terms, body = own.terms, yes.body
    if not terms.are_of(known.plan, known.run):
        yield "an expert left under terms that are not its plan's"
    named = (terms.exchange_id, terms.number, terms.plan_hash, terms.layout_hash, own.commitment)
    fields = ("exchange", "number", "plan_hash", "layout_hash", "commitment")
    if named != tuple(body[name] for name in fields):
        yield "the approval names another exchange or commitment than the consent"
    if own.log_size != yes.seq or own.log_root != log.root(yes.seq):
        yield "the consent names another state of the log than the one that it was given in"


def _sanctioned(
    entry: Entry,
    own: Consent,
    parties: Mapping[str, Party],
    known: KnownPlan,
    exchanges: _Exchanges,
) -> Iterator[str]:
    """All consents together, and what the log says of whom it was sealed to, against what left."""
    terms, federation = own.terms, own.federation
    if strangers := sorted(set(parties) - set(terms.roster)):
        yield f"an expert left under a consent of {strangers[0]}, who is not on the roster"
    try:
        check_together(terms, parties)
    except ConsentError as error:
        yield f"an expert left under no sanction: {error.what}"
        return
    others = [site for site in sorted(parties) if site != own.site]
    exchanges.sealed[_place(entry)] = (entry.seq, len(others))
    layout = known.plan.released_layout
    size = sealed_bytes(layout, terms, sender=own.site, recipients=others)
    if entry.body["bytes"] != size:
        yield f"an expert of {entry.body['bytes']} bytes left, sealed it has {size}"
    if entry.time_ms > terms.expires_ms + SEALING_MS:
        yield "an expert left after its sanction had expired"
    said = [one.body for one in exchanges.said[_place(entry)] if one.seq < entry.seq]
    recipients = [Identity(federation, Role.PARTICIPANT, site).uri for site in others]
    if sorted(str(body["recipient"]) for body in said) != sorted(recipients):
        yield "an expert left, and the log does not say once of each recipient that it was released"
    sanction = sanction_hash(terms, parties).hex()
    if any((b["sanction"], b["plan_hash"]) != (sanction, terms.plan_hash) for b in said):
        yield "an expert left under another sanction than the consents make"
    if len({(body["expert_hash"], body["sealed_hash"]) for body in said}) > 1:
        yield "the log names different experts for one that left"


def _coverage(own: Consent, known: KnownPlan, account: Account) -> str:
    """Why the consent claims better privacy than was charged by then; empty if it does not."""
    said, unit = own.privacy, known.plan.draft.privacy.unit
    if said.unit == "none":
        return ""
    if said.unit != unit:
        return f"the consent claims privacy by {said.unit}, and the plan's unit is {unit}"
    charged = [one for one in account.of(unit) if one.seq < own.log_size]
    if not charged:
        return f"the consent claims epsilon {said.epsilon}, and nothing had been charged"
    newest = charged[-1]
    if float(said.delta) != newest.delta or float(said.epsilon) < newest.claimed - ROUNDING:
        return (
            f"the consent claims epsilon {said.epsilon} at delta {said.delta}, charged were "
            f"{newest.claimed:.4f} at {newest.delta}"
        )
    return ""


def _keys(log: Log, exchanges: _Exchanges, coordinator: str) -> Iterator[Finding]:
    """Keys go after the sealed expert that they open, to whom relays them, always the same ones."""
    first: dict[Place, str] = {}
    for entry in log.keys:
        where, place, body = f"log, entry {entry.seq}", _place(entry), entry.body
        sealed, recipients = exchanges.sealed.get(place, (entry.seq, 0))
        if sealed >= entry.seq:
            yield uncharged(where, "keys left before any sealed expert of their exchange")
            continue
        if exchanges.approved_before(entry) is None:
            yield uncharged(where, "keys left without this site's approval of the exchange")
        if body["recipient"] != coordinator:
            yield uncharged(where, f"keys left to {body['recipient']}")
        limit = KEY_NAMES_BYTES + recipients * (WRAPPED_BYTES + KEY_NAMES_BYTES)
        if int(body["bytes"]) > limit:
            yield uncharged(
                where, f"keys of {body['bytes']} bytes left, for {recipients} sites at most {limit}"
            )
        if first.setdefault(place, str(body["payload_hash"])) != body["payload_hash"]:
            yield uncharged(where, "other keys left than before")


def _place(entry: Entry) -> Place:
    return str(entry.body.get("run", "")), str(entry.body.get("exchange", ""))
