"""Pictures of which one part stays and the rest is drawn: a product in a given scene, a new background of a product."""
