"""Which models go when another one needs their memory: pure decisions over what is known of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

Policy = Literal["lru", "lfu", "ttl"]


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded model as a policy sees it; `expires_s` None means that it may stay as long as it likes."""

    key: int
    num_bytes: int
    last_used_s: float
    num_uses: int
    expires_s: float | None = None


def in_order(tenants: Sequence[Tenant], policy: Policy) -> list[Tenant]:
    """Who goes first: the one not used for longest, the one used least, or the one whose time ends first."""
    if policy == "lru":
        return sorted(tenants, key=lambda tenant: tenant.last_used_s)
    if policy == "lfu":
        return sorted(tenants, key=lambda tenant: (tenant.num_uses, tenant.last_used_s))
    return sorted(
        tenants, key=lambda tenant: (math.inf if tenant.expires_s is None else tenant.expires_s, tenant.last_used_s)
    )


def choose_victims(
    tenants: Sequence[Tenant], policy: Policy, *, num_bytes: int, num_models: int
) -> tuple[Tenant, ...] | None:
    """Those who go so that so many bytes and places come free; None when even all of them are too few.

    Nobody goes who need not: what the later ones free may make an earlier one's going needless.
    """
    victims: list[Tenant] = []
    for tenant in in_order(tenants, policy):
        if _is_enough(victims, num_bytes, num_models):
            break
        victims.append(tenant)
    if not _is_enough(victims, num_bytes, num_models):
        return None
    for tenant in list(victims):
        others = [other for other in victims if other is not tenant]
        if _is_enough(others, num_bytes, num_models):
            victims = others
    return tuple(victims)


def _is_enough(victims: Sequence[Tenant], num_bytes: int, num_models: int) -> bool:
    return sum(victim.num_bytes for victim in victims) >= num_bytes and len(victims) >= num_models
