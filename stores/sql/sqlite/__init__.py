"""What SQLite alone is: its connections and threads, its files and locks, its statements."""
