"""How many sites a masked round needs: the threshold and the floors that every site checks for itself.

n is the whole roster of the plan and never shrinks within a run; a site that is away counts as dropped.
With n_c declared colluders, two divergent unmaskings need 2t <= n + n_c; the threshold is one above.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError

MAX_MASKED_SITES = 200
MIN_MASKED_SITES = 3


@dataclass(frozen=True)
class SecAggTerms:
    """Parameters of masking in a run.

    Args:
        roster: every site of the plan, sorted; a site's share has its position, from 1.
        colluders: n_c, sites that may work together with a lying coordinator.
    Raises:
        ConfigError: fewer than 3 or more than 200 sites, or no threshold that they can meet.
    """

    roster: tuple[str, ...]
    colluders: int = 1

    def __post_init__(self) -> None:
        if not MIN_MASKED_SITES <= self.sites <= MAX_MASKED_SITES:
            raise ConfigError(
                f"masking works with {MIN_MASKED_SITES} to {MAX_MASKED_SITES} sites, "
                f"this roster has {self.sites}",
                next_step="above that every site would mask with too many peers: see "
                "docs/adr/0012-complete-graph.md",
            )
        if not 0 <= self.colluders <= self.sites - 2:
            raise ConfigError(
                f"{self.colluders} colluders of {self.sites} sites: at least two must be honest"
            )
        if self.threshold > self.sites:
            raise ConfigError(
                f"{self.sites} sites with {self.colluders} colluders would need "
                f"{self.threshold} shares"
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
        """n_min: with n_c colluders in it, a sum still hides at least two honest sites."""
        return max(3, self.colluders + 2)

    @property
    def quorum(self) -> int:
        """Fewest sites that every step needs."""
        return max(self.threshold, self.min_survivors)

    def position(self, site: str) -> int:
        """Where a site's share lies: 1 to n."""
        return self.roster.index(site) + 1
