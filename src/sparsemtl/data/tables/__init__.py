"""Tables: rows of numbers and categories in, coded samples with the labels of their tasks out.

The way of a table, one module per step: `rows` reads the files with pandas (`text_file` for CSV), `formats` has numbers
and dates in local forms, `columns` decides which columns are numbers and which categories, `parts` divides the rows,
`encoding` codes inputs and labels (`targets`) by what the training rows hold, and makes the data set. `table` is the
user's own file; the other data sets of this kind know their columns and parts.

Samples stay coded, one number per column, and are one-hot only in their batch (`coded`), or are embedded by the network
(`embedding`).
"""
