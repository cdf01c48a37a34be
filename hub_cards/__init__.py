"""The template of model cards; the folders beside it are Hub repositories of released bundles."""
