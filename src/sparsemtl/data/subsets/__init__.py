"""Small tasks cut out of data sets: sources joined, classes and samples drawn, samples given new labels."""
