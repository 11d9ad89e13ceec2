"""Model families: what differs between the pipelines of diffusers, as data. Nothing else asks for a base's family."""
