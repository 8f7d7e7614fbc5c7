"""What the two services share: the parts of a running coordinator."""

from __future__ import annotations

from dataclasses import dataclass

from fedpalm.clock import Clock
from fedpalm.errors import NotFoundError, RefusedError
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.identity import Role
from fedpalm.transport.peer import Peer

from .admission import Takeover, Transfers
from .conductor import Conductor
from .config import CoordinatorSettings, Home
from .driver import Driver
from .exchange import ExchangeDesk
from .exchange_records import ExchangeRecords
from .run_records import RunRecords
from .spool import Spool
from .store import Store


@dataclass(frozen=True)
class Coordinator:
    """A coordinator's parts, wired; :meth:`build` inside the event loop."""

    settings: CoordinatorSettings
    identity: TlsIdentity
    clock: Clock
    store: Store
    runs: RunRecords
    spool: Spool
    driver: Driver
    exchanges: ExchangeDesk
    transfers: Transfers
    takeover: Takeover

    @classmethod
    def build(
        cls,
        home: Home,
        settings: CoordinatorSettings,
        identity: TlsIdentity,
        store: Store,
        clock: Clock,
    ) -> Coordinator:
        spool = Spool(home.models, home.spool)
        runs = RunRecords(store)
        driver = Driver(runs, spool, clock, settings.keep_models)
        exchanges = ExchangeDesk(
            ExchangeRecords(store),
            driver.conductor,
            spool,
            clock,
            identity.root,
            tell=driver.instruct,
            changed=driver.changed,
        )
        return cls(
            settings=settings,
            identity=identity,
            clock=clock,
            store=store,
            runs=runs,
            spool=spool,
            driver=driver,
            exchanges=exchanges,
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

    def authorise(self, peer: Peer) -> None:
        """Only admitted sites, and of each only the certificate of its last admission.

        Raises:
            RefusedError: any other participant.
        """
        if peer.identity.role is not Role.PARTICIPANT:
            return
        try:
            admitted = self.store.site(peer.identity.name).fingerprint
        except NotFoundError as error:
            raise RefusedError(
                error.what, next_step="fedpalm-coordinator sites admit REQUEST"
            ) from None
        if admitted != peer.fingerprint:
            raise RefusedError(
                f"site {peer.identity.name} was admitted with another certificate since",
                next_step="install the bundle of the last admission",
            )
