"""From outcomes to published tables: staged parts, the final rows, the commit marker, and views."""
