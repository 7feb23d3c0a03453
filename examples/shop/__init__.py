"""A small shop: orders into its own tables, clicks counted in batches, mails through a slow service."""
