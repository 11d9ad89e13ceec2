"""Photos and masks from strangers: located, fetched within limits, inspected, decoded."""
