"""SPViT: which layers of a Vision Transformer keep attention, which MLP units stay, and the smaller model."""
