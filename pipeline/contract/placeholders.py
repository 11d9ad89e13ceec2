"""How a prompt names products and their columns: `{product}`, `{a-concept-id}`, `{product.column}`."""

PLACEHOLDER = r"\{([^{}]*)\}"  # Python's and DuckDB's regular expressions read it alike; group 1 is the name
COLUMN_PREFIX = "product."
