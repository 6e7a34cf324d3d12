"""Tables: rows of numbers and categories in, coded samples with the labels of their tasks out.

The way of a table, one module a step: `csv_file` and `parquet` give chunks of rows (`reading`); `columns` finds which
columns are numbers and which categories; `parts` divides the rows; `survey` counts what the training rows hold;
`encoding` and `targets` code inputs and labels by it; `tabulate` does so for all rows and makes the data set. `table`
is the user's own file; the other data sets of this kind know their columns and parts, and begin with the survey.

Every step takes chunks, so a table of any size goes the same way. Samples stay coded, one number a column, in memory or
mapped from a file, and are one-hot only in their batch (`coded`), or embedded by the network (`embedding`).
"""
