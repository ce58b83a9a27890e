import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxm.pool.policy import Policy, Tenant, choose_victims, in_order

OLD = Tenant(key=1, num_bytes=10, last_used_s=1.0, num_uses=9, expires_s=90.0)
RARE = Tenant(key=2, num_bytes=10, last_used_s=2.0, num_uses=1)
HASTY = Tenant(key=3, num_bytes=10, last_used_s=3.0, num_uses=5, expires_s=4.0)

TENANTS = st.builds(
    Tenant,
    key=st.integers(1, 1000),
    num_bytes=st.integers(1, 100),
    last_used_s=st.floats(0, 100),
    num_uses=st.integers(0, 9),
    expires_s=st.none() | st.floats(0, 100),
)


@pytest.mark.parametrize(
    ("policy", "order"), [("lru", [OLD, RARE, HASTY]), ("lfu", [RARE, HASTY, OLD]), ("ttl", [HASTY, OLD, RARE])]
)
def test_each_policy_has_an_order_of_its_own(policy: Policy, order: list[Tenant]) -> None:
    """Unused for longest, used least, time ends first."""
    assert in_order([RARE, HASTY, OLD], policy) == order
    assert choose_victims([RARE, HASTY, OLD], policy, num_bytes=10, num_models=0) == (order[0],)
    assert choose_victims([RARE, HASTY, OLD], policy, num_bytes=1, num_models=2) == tuple(order[:2])


def test_nobody_goes_for_nothing() -> None:
    """Where there is room, and where all of them would not be enough."""
    assert choose_victims([OLD], "lru", num_bytes=0, num_models=0) == ()
    assert choose_victims([OLD], "lru", num_bytes=-5, num_models=-1) == ()
    assert choose_victims([OLD, RARE], "lru", num_bytes=21, num_models=0) is None
    assert choose_victims([OLD, RARE], "lru", num_bytes=0, num_models=3) is None


def test_what_a_larger_one_frees_saves_the_smaller_ones_before_it() -> None:
    """They need not have gone."""
    large = Tenant(key=4, num_bytes=50, last_used_s=9.0, num_uses=1)
    assert choose_victims([OLD, RARE, large], "lru", num_bytes=45, num_models=0) == (large,)


@given(st.lists(TENANTS, max_size=6, unique_by=lambda tenant: tenant.key), st.integers(0, 300), st.integers(0, 4))
def test_victims_are_enough_and_none_of_them_is_needless(tenants: list[Tenant], num_bytes: int, num: int) -> None:
    """Whatever there is."""
    for policy in ("lru", "lfu", "ttl"):
        victims = choose_victims(tenants, policy, num_bytes=num_bytes, num_models=num)  # type: ignore[arg-type]
        total = sum(tenant.num_bytes for tenant in tenants)
        if victims is None:
            assert total < num_bytes or len(tenants) < num
            continue
        freed = sum(victim.num_bytes for victim in victims)
        assert freed >= num_bytes
        assert len(victims) >= num
        assert all(freed - victim.num_bytes < num_bytes or len(victims) - 1 < num for victim in victims)
