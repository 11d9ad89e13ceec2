"""ControlNets: models beside a base model that let a picture decide where things are: edges, depth, a pose."""
