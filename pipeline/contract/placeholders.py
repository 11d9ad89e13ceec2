"""How a prompt names products: `{product}`, or `{a-concept-id}`."""

PLACEHOLDER = r"\{([^{}]*)\}"  # Python's and DuckDB's regular expressions read it alike; group 1 is the name
