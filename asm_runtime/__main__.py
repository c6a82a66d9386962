"""`python -m asm_runtime` is the `asm-runtime` command."""

from asm_runtime.cli import main

if __name__ == "__main__":
    main()
