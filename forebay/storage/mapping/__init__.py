"""Messages as rows of a table of the user's own: which field goes where, checked before it is sent."""
