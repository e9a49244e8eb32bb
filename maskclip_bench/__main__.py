"""`python -m maskclip_bench` is the same as the console script `maskclip-bench`."""

from maskclip_bench.cli import main

if __name__ == "__main__":
    main()
