"""`asm-runtime demo`: sessions run real commands, their process is killed, another carries on."""
