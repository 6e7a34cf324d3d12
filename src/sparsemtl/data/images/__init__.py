"""Data sets of images: the MNIST family, photographs with maps, photographs in class folders."""
