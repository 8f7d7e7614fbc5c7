"""How many sites a masked round needs: the threshold and the floors that every site checks for itself.

n is the whole roster of the plan and never shrinks within a run; a site that is away counts as dropped.
With n_c declared colluders, two divergent unmaskings need 2t <= n + n_c; the threshold is one above.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from ..canonical import canonical_json, domain_hash
from ..errors import ConfigError

MAX_MASKED_SITES = 200
MIN_MASKED_SITES = 3


def group_survivors(colluders: int) -> int:
    """Fewest sites in any sum: with n_c colluders among them it still hides at least two honest ones."""
    return max(3, colluders + 2)


@dataclass(frozen=True)
class SecAggTerms:
    """Parameters of masking in a run; every site derives them from the plan that it approved.

    Args:
        roster: every site of the plan, sorted; a site's share has its position, from 1.
        colluders: n_c, sites that may work together with a lying coordinator.
        smallest_sum: the least number of sites that the plan wants in the sum over everybody, if more than
            masking itself.
        groups: per group of parameters its name and members, sorted; other sites contribute zeros to it.
            Empty when every site contributes to every parameter.
    Raises:
        ConfigError: fewer than 3 or more than 200 sites, too many colluders, or a group too small to hide
            a member.
    """

    roster: tuple[str, ...]
    colluders: int = 1
    smallest_sum: int = 0
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        if not MIN_MASKED_SITES <= self.sites <= MAX_MASKED_SITES:
            raise ConfigError(
                f"masking works with {MIN_MASKED_SITES} to {MAX_MASKED_SITES} sites, "
                f"this roster has {self.sites}",
                next_step="above that every site would mask with too many peers: see "
                "docs/adr/0012-complete-graph.md",
            )
        if list(self.roster) != sorted(set(self.roster)):
            raise ConfigError("a masked roster is sorted and names each site once")
        if not 0 <= self.colluders <= self.sites - 2:
            raise ConfigError(
                f"{self.colluders} colluders of {self.sites} sites: at least two must be honest"
            )
        if not 0 <= self.smallest_sum <= self.sites:
            raise ConfigError(f"{self.sites} sites cannot make a sum of {self.smallest_sum}")
        for name, members in self.groups:
            if list(members) != sorted(set(members)) or not set(members) <= set(self.roster):
                raise ConfigError(f"group {name}: its members are not sites of the roster, sorted")
            if len(members) < self.group_survivors:
                raise ConfigError(
                    f"group {name} has {len(members)} sites, and its sum would have to hide one among "
                    f"{self.group_survivors}: it could never be unmasked",
                    next_step="give more sites that backbone, leave its trunk out of the model, so that it "
                    "stays at its sites, or train without masking",
                )

    @property
    def sites(self) -> int:
        """n."""
        return len(self.roster)

    @property
    def threshold(self) -> int:
        """t: shares that open a secret, and signatures that a site wants before it gives any."""
        return (self.sites + self.colluders) // 2 + 1

    @property
    def min_survivors(self) -> int:
        """n_min of the sum over everybody: the plan may want more than masking itself."""
        return max(group_survivors(self.colluders), self.smallest_sum)

    @property
    def group_survivors(self) -> int:
        """The same of each group's own sum, whatever quorum the plan wants of the whole."""
        return group_survivors(self.colluders)

    @property
    def to_spare(self) -> int:
        """How many sites may be away, whichever they are."""
        spare = [len(members) - self.group_survivors for _, members in self.groups]
        return min([self.sites - self.quorum, *spare])

    @property
    def quorum(self) -> int:
        """Fewest sites that every step needs."""
        return max(self.threshold, self.min_survivors)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {site: at for at, site in enumerate(self.roster, 1)}

    def position(self, site: str) -> int:
        """Where a site's share lies: 1 to n."""
        return self._positions[site]

    def chooser(self, a: str, b: str) -> str:
        """Which of two sites chooses the secret of their pair, and seals it to the other.

        Of positions p < q it is p if p + q is odd, else q: so each site seals about half of its pairs'
        secrets, and all of them send alike.
        """
        first, second = sorted((a, b), key=self.position)
        return first if (self.position(first) + self.position(second)) % 2 else second

    @cached_property
    def hash(self) -> bytes:
        """32 bytes of all of these terms: sites that differ in one accept nothing of each other."""
        return domain_hash(
            "secagg-terms/v1",
            canonical_json(
                {
                    "roster": list(self.roster),
                    "colluders": self.colluders,
                    "threshold": self.threshold,
                    "min_survivors": self.min_survivors,
                    "groups": [[name, list(members)] for name, members in self.groups],
                }
            ),
        )

    def lacks(self, sites: Collection[str]) -> str:
        """What ``sites`` are too few for, in words; empty if a sum over them may be opened."""
        if len(sites) < self.quorum:
            return f"{len(sites)} sites, masking needs {self.quorum}"
        for name, members in self.groups:
            left = len(set(members) & set(sites))
            if left < self.group_survivors:
                return f"{left} sites of group {name}, its sum needs {self.group_survivors}"
        return ""
