"""The pictures of the documents: read docs/make_figures.py first."""
