"""Two and three products in one picture: how often each keeps its class and its identity."""
