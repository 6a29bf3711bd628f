"""Ways to pick neighbours from a row: one module each, with one compiled function `pick`.

Every `pick(edges, rule, row, draw, scratch, picks)` puts at most `draw.fanout` positions of visible
edges into `picks` and returns how many; `scratch` has room for four times the fanout. What it
picks is a function of the row's visible edges and the draw's counters.
"""
