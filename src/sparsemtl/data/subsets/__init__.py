"""How small tasks are cut out of data sets: sources joined, classes and samples drawn, samples given new labels."""
