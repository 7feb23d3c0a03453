"""A bookshop that takes orders from its stock."""
