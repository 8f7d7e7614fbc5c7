"""Groups of parameters: which sites have, and so contribute to, which part of the shared vector.

Where sites have backbones of their own, a tensor is called ``open_set.<group>.<tensor>``. The group
``trunk.<backbone>`` is of the sites with that backbone; any other is of all sites. A backbone whose trunk
no layout names stays at its sites, which share the other groups. Membership is public.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from .layout import OPEN_SET, Layout

TRUNK = "trunk."
EVERYBODY = "all"
"""The one group of a method with one model for all sites."""


@dataclass(frozen=True)
class Group:
    """Values ``begin`` to ``end`` of the shared vector, and the sites that contribute to them, sorted."""

    name: str
    begin: int
    end: int
    members: tuple[str, ...]

    @property
    def span(self) -> slice:
        return slice(self.begin, self.end)

    def within(self, begin: int, end: int) -> slice:
        """Its part of values ``begin`` to ``end``, counted from ``begin``; maybe empty."""
        return slice(max(self.begin, begin) - begin, max(min(self.end, end), begin) - begin)


def groups_of(layout: Layout, backbones: Mapping[str, str]) -> tuple[Group, ...]:
    """The groups of a layout of ``open_set.*`` tensors, in its order.

    Args:
        backbones: by site.
    Raises:
        ValueError: a name without a group or tensor, a group in two pieces or without a value, a trunk of
            no site, or a site of no group.
    """
    groups: list[Group] = []
    begin = 0
    for name, specs in groupby(layout.tensors, key=lambda spec: _group_of(spec.name)):
        end = begin + sum(spec.size for spec in specs)
        if any(group.name == name for group in groups):
            raise ValueError(f"the tensors of group {name} do not lie side by side in the layout")
        if begin == end:
            raise ValueError(f"group {name} has no value")
        family = name.removeprefix(TRUNK) if name.startswith(TRUNK) else None
        members = sorted(site for site, own in backbones.items() if family in (None, own))
        if not members:
            raise ValueError(f"group {name}: no site has that backbone")
        groups.append(Group(name, begin, end, tuple(members)))
        begin = end
    if left_out := sorted(set(backbones) - {site for group in groups for site in group.members}):
        raise ValueError(f"no group is of {', '.join(left_out[:5])}: nothing would leave there")
    return tuple(groups)


def foreign_to(site: str, groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """Groups that a site is no member of: it contributes zeros there."""
    return tuple(group for group in groups if site not in group.members)


def _group_of(name: str) -> str:
    parts = name.removeprefix(OPEN_SET).split(".")
    length = 2 if parts[0] == TRUNK.removesuffix(".") else 1
    if len(parts) <= length:
        raise ValueError(f"{name} is not of the form open_set.<group>.<tensor>")
    return ".".join(parts[:length])
