"""What the weights of a model and of a bundle show: pictures that explain, with their numbers."""
