"""The log in a PostgreSQL database: its tables, its connections, its files and its cursors."""
