"""Colours, markers and dashes of all pictures, distinguishable also in grey and by the colour-blind."""

BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE)
"""Okabe and Ito's palette, "Color Universal Design", without its yellow, which is too light on white."""
BLACK = "#000000"
INK, STROKE, GREY, PALE, GRID = "#333333", "#444444", "#777777", "#BBBBBB", "#DDDDDD"
"""Greys, from that of a text to that of a grid."""
MARKERS = ("o", "s", "^", "D", "v", "P", "<", "X", ">")
DASHES = ("-", "--", "-.", ":")
