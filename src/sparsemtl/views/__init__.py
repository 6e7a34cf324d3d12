"""Views of values for people: tables as text and HTML, and drawings on axes of matplotlib.

Every package above may use these: masks, compaction reports, results and histories show themselves in notebooks by
`_repr_html_` and draw themselves by `plot`; the report draws the same charts in the colours of its page.
"""
