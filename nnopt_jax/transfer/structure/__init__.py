"""Structure: models that travel without their code, and that grow or shrink by layers and units."""
