"""``python -m stablebptt``."""

from stablebptt.cli import main

if __name__ == "__main__":
    main()
