"""What operators do with dead letters: one engine for the command line and the admin API."""
