"""JSON values at random, and changes to a JSON value at random places."""

from hypothesis import strategies as st

FLOATS = st.floats()


def json_values(numbers=FLOATS, odd=()):
    """A few nested values; ``numbers`` are the floating point ones, those in ``odd`` come up often."""
    plain = st.none() | st.booleans() | st.integers() | numbers | st.text(st.characters())
    return st.recursive(
        plain | st.sampled_from(odd) if odd else plain,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=8,
    )  # fmt: skip


VALUES = json_values()
FINITE = json_values(st.floats(allow_nan=False, allow_infinity=False))


def places(value, path=()):
    """Every place in a JSON value that has a parent."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def change(draw, payload, values, most=3, rooted=False):
    """One to ``most`` places of ``payload`` get another value or go; of a ``rooted`` one no key goes."""
    for _ in range(draw(st.integers(1, most))):
        *way, last = draw(st.sampled_from(sorted(places(payload), key=repr)))
        parent = payload
        for key in way:
            parent = parent[key]
        if draw(st.booleans()) or (rooted and not way):
            parent[last] = draw(values)
        else:
            del parent[last]
