"""Leaving Keras: small files, LiteRT models that are faster where they can be, and the truth."""
