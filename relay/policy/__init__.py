"""Policy sets: schema, loading, and the decisions made under them."""
