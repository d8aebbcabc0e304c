"""The embedded broker, a log in one SQLite file. Imports the protocol."""
