"""`python -m asm_runtime` is the `asm-runtime` command."""

from asm_runtime.cli.launcher import main

if __name__ == "__main__":
    main()
