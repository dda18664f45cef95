"""The competition and the models that the template carries: nothing of it needs a hub."""
