"""`python -m grouping_zoo.cli`."""

from grouping_zoo.cli import main

if __name__ == "__main__":
    main()
