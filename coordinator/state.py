"""What the services share: the parts of a running coordinator."""

from __future__ import annotations

from dataclasses import dataclass

from fedpalm.clock import Clock
from fedpalm.pki.live import LiveIdentity
from fedpalm.transport.peer import Peer

from .admission import Takeover, Transfers
from .conductor import Conductor
from .config import CoordinatorSettings, Home
from .driver import Driver
from .exchange import ExchangeDesk
from .exchange_records import ExchangeRecords
from .exchange_relay import ExpertRelay
from .invitations import Invitations
from .issuing import IssuingDesk
from .notary import Notary
from .registry import Registry
from .run_records import RunRecords
from .spool import Spool
from .statements import StatementDesk
from .store import Store


@dataclass(frozen=True)
class Coordinator:
    """A coordinator's parts, wired; :meth:`build` inside the event loop."""

    settings: CoordinatorSettings
    identity: LiveIdentity
    clock: Clock
    store: Store
    registry: Registry
    invitations: Invitations
    issuing: IssuingDesk
    runs: RunRecords
    spool: Spool
    driver: Driver
    statements: StatementDesk
    exchanges: ExchangeDesk
    relay: ExpertRelay
    transfers: Transfers
    takeover: Takeover

    @classmethod
    def build(
        cls,
        home: Home,
        settings: CoordinatorSettings,
        identity: LiveIdentity,
        store: Store,
        clock: Clock,
    ) -> Coordinator:
        spool = Spool(home.models, home.spool)
        registry, runs = Registry(store), RunRecords(store)
        notary = Notary(identity, clock, registry.signing_key)
        driver = Driver(runs, spool, clock, notary, settings.keep_models)
        records = ExchangeRecords(store)
        exchanges = ExchangeDesk(
            records,
            driver.conductor,
            spool,
            clock,
            notary,
            tell=driver.instruct,
            changed=driver.changed,
            absent=registry.absent_sites,
            certified_until=registry.certified_until,
        )
        return cls(
            settings=settings,
            identity=identity,
            clock=clock,
            store=store,
            registry=registry,
            invitations=Invitations(store),
            issuing=IssuingDesk(home.authority),
            runs=runs,
            spool=spool,
            driver=driver,
            statements=StatementDesk(runs, driver.conductor, notary),
            exchanges=exchanges,
            relay=ExpertRelay(exchanges, records, driver.conductor, spool, clock, notary, runs),
            transfers=Transfers(settings.max_transfers),
            takeover=Takeover(),
        )

    @property
    def conductor(self) -> Conductor:
        return self.driver.conductor

    def now_ms(self) -> int:
        return round(self.clock.now() * 1000)

    def start(self) -> None:
        """Go on where the store says."""
        self.driver.start()
        self.exchanges.restart()
        self.driver.keep_looking(self.exchanges.expire)

    def expel(self, site: str, reason: str) -> None:
        """A site is not any more what it was: runs and exchanges go on, or end, without it.

        Raises:
            ResourceError: not all of it could be stored; again does the rest.
        """
        self.conductor.expel(site, reason)
        self.exchanges.expel(site, reason)

    def authorise(self, peer: Peer) -> None:
        """Raises RefusedError, RevokedError, UnavailableError: see ``Registry.authorise``."""
        self.registry.authorise(peer, self.now_ms())
