"""Colours of classes, the same in pictures and on the page."""

# Each was chosen as the one that lies farthest, in CIELAB, from those before it, in the worst of
# normal vision and the three kinds of colour blindness (Machado et al. 2009, severity 1), among
# colours that are bright and not grey. So the first are the farthest apart.
CLASS_COLOURS = (
    "#ff9d00",
    "#00d5ff",
    "#9944ff",
    "#ee0055",
    "#ffffaa",
    "#1177bb",
    "#bb5500",
    "#bbff66",
    "#ccaa55",
    "#aa5588",
    "#9988ff",
    "#66bb88",
    "#ee00cc",
    "#ff88dd",
    "#ffdd00",
    "#99ffcc",
    "#ff7777",
    "#bbdd88",
)


def class_colours(values: list[int]) -> dict[int, str]:
    """A colour for each label value, by its place among them; beyond 18 they come again."""
    return {
        value: CLASS_COLOURS[place % len(CLASS_COLOURS)]
        for place, value in enumerate(sorted(set(values) - {0}))
    }
