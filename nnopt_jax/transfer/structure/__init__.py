"""Structure: models without their code, and models with more or fewer layers and units."""
