"""``python -m bytelm``: the same as the ``bytelm`` program."""

from bytelm.cli.__main__ import main

if __name__ == "__main__":
    main()
