"""Where accepted messages can go: the broker, its fallbacks, and the journal for when none of them can."""
