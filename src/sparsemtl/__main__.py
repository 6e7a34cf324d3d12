"""`python -m sparsemtl`: the command line."""

from sparsemtl.cli.main import main

if __name__ == "__main__":
    main()
