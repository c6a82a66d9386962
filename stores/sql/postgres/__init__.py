"""A PostgreSQL database as `SQLSessionStore` uses it, through asyncpg."""
